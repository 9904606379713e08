"""The parts in C. pyproject.toml says the rest."""

from setuptools import Extension, setup

# optional: what can't be compiled is Python and ctypes then, the same but for speed.
setup(
    ext_modules=[
        Extension(f"duodao.{name.replace('/', '.')}", [f"src/duodao/{name}.c"], optional=True)
        for name in ("sync/_speed", "sync/_robust", "servers/_quick")
    ]
)
