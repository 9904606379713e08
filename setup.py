"""The one part in C. pyproject.toml says the rest."""

from setuptools import Extension, setup

# optional: where it can't be compiled, the locks are pure Python, to which it is identical but for speed.
setup(ext_modules=[Extension("duodao.sync._speed", ["src/duodao/sync/_speed.c"], optional=True)])
