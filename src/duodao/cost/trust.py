"""Whether a function provably can't bring its process down: only such a one is tried out in the caller's own.

The proof walks the bytecode: every global, closure variable, default and import must be plain data, a safe builtin, a
function of a well-behaved standard module, or a function (or class) of the user's own of which the same holds. All that
a method is called on comes from these or from the input, whose type is checked too. What can't be shown is not trusted;
that costs a process, nothing else.

Not trusted on purpose: ast, compile, eval (deep source text overflows the C stack, says the documentation of ast),
pickle, ctypes, most of os, every extension module but a few functions of numpy, and anything at all after
sys.setrecursionlimit was raised.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

DEPTH = 6
"""Functions calling functions. Deeper code is not followed."""
WIDTH = 2000
"""Elements of a container that are looked at. A larger one is not trusted, unless it is an array."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNSAFE_BUILTINS = _words(
    "eval exec compile __import__ input breakpoint exit quit help globals locals vars getattr setattr delattr"
)
_UNSAFE_NAMES = _words("""
    _exit abort kill killpg system popen fork forkpty execv execve execl posix_spawn spawnv ctypes _ctypes sys
    builtins os setrecursionlimit set_int_max_str_digits eval exec settrace f_locals f_globals gi_frame cr_frame
    get_type_hints make_dataclass
""")
_MODULES = _words("""
    array base64 binascii bisect bz2 calendar cmath collections colorsys copy csv dataclasses datetime decimal
    difflib enum fnmatch fractions functools genericpath glob gzip hashlib heapq hmac html html.entities
    html.parser http.client io ipaddress itertools json json.decoder json.encoder keyword linecache lzma math
    mimetypes numbers operator pathlib posixpath quopri random re secrets select selectors shlex socket ssl stat
    statistics string stringprep struct textwrap time token tokenize typing unicodedata urllib urllib.error
    urllib.parse urllib.request urllib.response uuid zlib _bisect _blake2 _bz2 _collections _csv _datetime
    _decimal _functools _hashlib _heapq _io _json _lzma _md5 _operator _random _sha1 _sha2 _sha256 _sha3 _sha512
    _socket _ssl _statistics _struct
""")
_OS = _words("path sep linesep stat lstat listdir scandir getpid urandom fspath walk getcwd environ cpu_count")
_NUMPY = _words("""
    sum mean std var min max amin amax dot sort argsort cumsum prod abs sqrt exp log sin cos zeros ones arange
    array asarray linspace float64 float32 int64 int32 uint8 clip where unique concatenate histogram percentile
    median
""")
_DATA = frozenset((int, float, complex, str, bytes, bytearray, bool, range, slice, memoryview))
_DATA |= {type(value) for value in (None, ..., NotImplemented)}
_DATA_NAMES = _words("""
    datetime.datetime datetime.date datetime.time datetime.timedelta datetime.timezone decimal.Decimal
    fractions.Fraction uuid.UUID pathlib.PosixPath pathlib.PurePosixPath pathlib._local.PosixPath array.array
    re.Pattern _struct.Struct random.Random
""")


def trusted(function: Any, *others: Any, items: Iterable[Any] = ()) -> bool:
    """True when calling `function` with `items`, and with `others` as constants, provably can't end this process.

    It may still raise, wait, or run for ever: a lane deals with those.
    """
    try:
        if sys.getrecursionlimit() > 10_000:
            return False
        walk = _Walk()
        return (
            walk.value(function, 0)
            and all(walk.value(other, 0) for other in others)
            and all(walk.data(item, 0) for item in items)
        )
    except Exception:  # a property of a user's object that raises: not proven
        return False


class _Walk:
    """One proof. `seen`: what is proven or being proven; a cycle is as safe as the rest of it."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.kept: list[Any] = []  # ids are only worth something while their objects live

    def value(self, value: Any, depth: int) -> bool:
        """A global, a closure variable, a default, a constant."""
        if id(value) in self.seen:
            return True
        if depth > DEPTH:
            return False
        self.seen.add(id(value))
        self.kept.append(value)
        if isinstance(value, types.FunctionType):
            return _standard(value) or self.function(value, depth)
        if isinstance(value, functools.partial):
            return type(value) is functools.partial and all(
                self.value(part, depth + 1) for part in (value.func, *value.args, *value.keywords.values())
            )
        if isinstance(value, types.MethodType):
            return self.value(value.__func__, depth + 1) and self.value(value.__self__, depth + 1)
        if isinstance(value, types.BuiltinFunctionType):
            return self.builtin(value, depth)
        if isinstance(value, type):
            return self.kind(value, depth)
        if isinstance(value, (types.MethodDescriptorType, types.WrapperDescriptorType)):
            return self.kind(value.__objclass__, depth)
        if _numpy_function(value):
            return True
        return self.data(value, depth)

    def builtin(self, value: types.BuiltinFunctionType, depth: int) -> bool:
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            module = value.__module__ or ""
            if module == "builtins":
                return value.__name__ not in _UNSAFE_BUILTINS
            return module in _MODULES or (module, value.__name__) == ("_thread", "get_ident")  # a dataclass's repr
        return self.value(owner, depth + 1)

    def kind(self, value: type, depth: int) -> bool:
        """A class: builtin, of a well-behaved module, or of the user's with nothing but safe functions in it."""
        module = value.__module__
        if module == "builtins":
            return True
        if module in _MODULES and sys.modules.get(module) is not None and _standard_module(module):
            return True
        if type(value) is not type or "__del__" in vars(value):
            return False
        for name, member in vars(value).items():
            inner = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
            inner = inner.fget if isinstance(inner, property) else inner
            if isinstance(inner, types.FunctionType):
                if not self.value(inner, depth + 1):
                    return False
            elif name in {"__dict__", "__weakref__", "__dataclass_fields__", "__dataclass_params__"} or isinstance(
                inner, (types.MemberDescriptorType, types.GetSetDescriptorType)
            ):
                continue
            elif not self.data(inner, depth + 1):
                return False
        return all(self.value(base, depth + 1) for base in value.__bases__)

    def data(self, value: Any, depth: int) -> bool:
        """A value with no code of its own."""
        kind = type(value)
        if kind in _DATA:
            return True
        if kind in (list, tuple, set, frozenset):
            return len(value) <= WIDTH and depth <= 2 * DEPTH and all(self.data(part, depth + 1) for part in value)
        if kind is dict:
            return (
                len(value) <= WIDTH
                and depth <= 2 * DEPTH
                and all(self.data(k, depth + 1) and self.data(v, depth + 1) for k, v in value.items())
            )
        if f"{kind.__module__}.{kind.__name__}" in _DATA_NAMES:
            return True
        if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
            return value.dtype.hasobject is False
        return kind.__module__ == "numpy" and kind.__name__ in _NUMPY

    def function(self, function: types.FunctionType, depth: int) -> bool:
        """A function written in Python, looked into."""
        cells = {}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                cells[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                return False
        outside = [*cells.values(), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        return all(self.value(part, depth + 1) for part in outside) and self.code(
            function.__code__, function.__globals__, depth
        )

    def code(self, code: types.CodeType, scope: dict[str, Any], depth: int) -> bool:
        """Every name the code asks for outside of itself, and the same of the functions inside it."""
        if any(isinstance(const, types.CodeType) and not self.code(const, scope, depth) for const in code.co_consts):
            return False
        if any(name in _UNSAFE_NAMES and name not in scope for name in code.co_names):
            return False
        steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "PRECALL", "EXTENDED_ARG")]
        return all(self.step(steps, at, scope, depth) for at in range(len(steps)))

    def step(self, steps: list[dis.Instruction], at: int, scope: dict[str, Any], depth: int) -> bool:
        name = steps[at].opname
        word = steps[at].argval
        if name in ("LOAD_GLOBAL", "LOAD_NAME"):
            value = scope.get(word, getattr(builtins, word, _MISSING))
            if value is _MISSING:
                return True  # NameError, an ordinary exception
            if isinstance(value, types.ModuleType):
                return self.module(value, steps, at + 1, depth)
            return self.value(value, depth + 1)
        if name == "IMPORT_NAME":
            return word in _MODULES and _standard_module(word)
        if name in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "STORE_ATTR"):
            return not (str(word).startswith("__") and str(word).endswith("__") and word not in _PLAIN_DUNDERS)
        return not name.startswith(("STORE_GLOBAL", "DELETE_GLOBAL"))

    def module(self, module: types.ModuleType, steps: list[dis.Instruction], at: int, depth: int) -> bool:
        """`module.name` or `module.module.name`: what it stands for now must be safe. A module by itself is not."""
        if at >= len(steps) or steps[at].opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            return False
        word = str(steps[at].argval)
        value = getattr(module, word, _MISSING)
        if value is _MISSING:
            return True
        if module.__name__ == "os" and word not in _OS:
            return False
        if isinstance(value, types.ModuleType):
            return self.module(value, steps, at + 1, depth)
        if module.__name__ == "os":
            return True
        if module.__name__ in _MODULES and _standard_module(module.__name__):
            return not word.startswith("_") and (not isinstance(value, types.FunctionType) or _standard(value))
        return self.value(value, depth + 1)


_MISSING: Any = object()
_PLAIN_DUNDERS = frozenset(
    {
        "__init__",
        "__class__",
        "__qualname__",
        "__name__",
        "__doc__",
        "__len__",
        "__enter__",
        "__exit__",
        "__iter__",
        "__next__",
    }
)


def _standard_module(name: str) -> bool:
    """The module of that name is the standard library's and not one of the user's that shadows it."""
    module = sys.modules.get(name)
    if module is None:
        return name.partition(".")[0] in sys.stdlib_module_names and _not_shadowed(name)
    file = getattr(module, "__file__", None)
    if file is None or name in sys.builtin_module_names:
        return True
    return any(file.startswith(place) for place in _standard_places()) and "-packages" not in file


def _not_shadowed(name: str) -> bool:
    import importlib.util

    spec = importlib.util.find_spec(name.partition(".")[0])
    origin = spec.origin if spec is not None else None
    return origin in (None, "built-in", "frozen") or any(str(origin).startswith(place) for place in _standard_places())


def _standard_places() -> Iterator[str]:
    import sysconfig

    for key in ("stdlib", "platstdlib"):
        place = sysconfig.get_path(key)
        if place:
            yield place


def _standard(function: types.FunctionType) -> bool:
    module = function.__module__ or ""
    return module in _MODULES and _standard_module(module)


def _numpy_function(value: Any) -> bool:
    kind = type(value)
    return kind.__module__.partition(".")[0] == "numpy" and getattr(value, "__name__", None) in _NUMPY
