"""The tree is the architecture: what imports what, how long files are and what they are called is held here, by ast."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
CORE = SRC / "duodao"

LAYERS = {
    **dict.fromkeys(("errors", "outcome", "telemetry", "clock", "arena", "pickling", "descriptors"), 0),
    **dict.fromkeys(("sync", "children", "cost"), 1),
    "channel": 2,
    "lanes": 3,
    "pipeline": 4,
    **dict.fromkeys(("servers", "watch", "store"), 5),
    "__init__": 6,
    **dict.fromkeys(("cli", "testing", "dropin"), 7),
    "__main__": 8,
}
"""First part of a module's name below `duodao` -> its layer. A new folder or top file gets its line here first."""

PUBLIC_ONLY = ("cli", "duodao_crawl", "duodao_console")
"""These use Duodao as a user does: `duodao` itself and its public modules."""
PUBLIC_MODULES = ("errors", "sync", "store", "watch", "testing", "dropin")
COMMAND_LINE = ("duodao.cli.options", "duodao.cli.interrupt", "duodao.cli.explain")
"""What commands of companion packages share with ours: how times and sizes are written, Ctrl-C, exit codes."""

FORBIDDEN_STEMS = ("utils", "util", "helpers", "helper", "manager", "managers", "common", "misc")
LIMIT = 400


def name_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = list(path.relative_to(SRC).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


FILES = sorted(SRC.rglob("*.py"))
MODULES = {name_of(path): path for path in FILES}


def is_type_checking(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` and `if typing.TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def walk(node: ast.AST, *, deep: bool, typing_only: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, with whether it stands under TYPE_CHECKING; without `deep`, function bodies are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not deep:
            continue
        below = typing_only or is_type_checking(child)
        yield child, below
        yield from walk(child, deep=deep, typing_only=below)


def imports(path: Path, *, deep: bool = True, with_typing: bool = True) -> Iterator[tuple[str, int]]:
    """(full dotted name, line) of everything the file imports; `from a import b` is a.b where that is a module."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node, typing_only in walk(ast.parse(path.read_text()), deep=deep):
        if typing_only and not with_typing:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in MODULES else base), node.lineno


def unit_of(module: str) -> str | None:
    """The folder or top file of `duodao` a module belongs to; None outside of duodao."""
    parts = module.split(".")
    if parts[0] != "duodao":
        return None
    return parts[1] if len(parts) > 1 else "__init__"


def own_unit(path: Path) -> str | None:
    """As unit_of, for a file."""
    return unit_of(name_of(path)) if path != CORE / "__init__.py" else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down(path: Path) -> None:
    """A file imports only from its own folder and from folders of lower layers; top files of one layer may meet."""
    here = own_unit(path)
    if here is None:
        return
    assert here in LAYERS, f"{here} has no layer in {Path(__file__).name}"
    for target, line in imports(path):
        there = unit_of(target)
        if there is None or there == here:
            continue
        where = f"{path.relative_to(SRC)}:{line} imports {target}"
        assert there in LAYERS, f"{where}, which has no layer in {Path(__file__).name}"
        both_top = LAYERS[here] == LAYERS[there] == 0
        assert LAYERS[there] < LAYERS[here] or both_top, f"{where}: layer {LAYERS[here]} -> {LAYERS[there]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_programs_use_public_names(path: Path) -> None:
    """The command line and the companion packages import `duodao` and its public modules only, as a user would."""
    top = name_of(path).split(".")[0]
    here = own_unit(path) or top
    if here not in PUBLIC_ONLY:
        return
    for target, line in imports(path):
        there = unit_of(target)
        if there is None or there in {"__init__", here} or target in COMMAND_LINE:
            continue
        assert there in PUBLIC_MODULES, f"{path.relative_to(SRC)}:{line} imports {target}, which is not public"


def graph() -> dict[str, set[str]]:
    """Module -> modules of ours it needs to run, wherever in the file it imports them."""
    return {
        module: {target for target, _ in imports(path, with_typing=False) if target in MODULES and target != module}
        for module, path in MODULES.items()
    }


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """One cycle of the graph, or an empty list."""
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for target in sorted(edges.get(module, ())):
            found = visit(target, [*trail, module])
            if found:
                return found
        done.add(module)
        return []

    for start in sorted(edges):
        found = visit(start, [])
        if found:
            return found
    return []


def test_no_cycles() -> None:
    """No module needs itself through others, not even by an import inside a function."""
    assert cycle(graph()) == []


def test_the_cycle_finder_finds() -> None:
    """The search above sees a cycle of three, and is quiet about a diamond."""
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_files_are_short_and_named_for_what_they_do(path: Path) -> None:
    """No file over 400 lines, none called utils, helpers or manager."""
    lines = len(path.read_text().splitlines())
    assert lines <= LIMIT, f"{path.relative_to(SRC)} has {lines} lines: it holds more than one idea"
    if path.is_relative_to(CORE / "dropin"):
        return  # its names are the standard library's, whatever we think of them
    assert path.stem not in FORBIDDEN_STEMS
    assert not any(part in FORBIDDEN_STEMS for part in path.relative_to(SRC).parts)


def public_functions() -> set[str]:
    """Names of `duodao.__all__` that are no modules."""
    import duodao

    return {name for name in duodao.__all__ if not hasattr(getattr(duodao, name), "__path__")}


def test_no_folder_hides_a_public_function() -> None:
    """No folder or top file has the name of a public function: importing it would overwrite the function."""
    taken = {path.stem for path in CORE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert taken & public_functions() == set()


def test_nothing_foreign_at_import_time() -> None:
    """What `import duodao` loads imports the standard library alone at its module level."""
    seen: set[str] = set()
    waiting = ["duodao"]
    while waiting:
        module = waiting.pop()
        if module in seen or module not in MODULES:
            continue
        seen.add(module)
        for target, line in imports(MODULES[module], deep=False, with_typing=False):
            top = target.split(".")[0]
            assert top == "duodao" or top in sys.stdlib_module_names, f"{module}:{line} imports {target}"
            parts = target.split(".")
            waiting += [".".join(parts[: n + 1]) for n in range(len(parts))] if top == "duodao" else []
    assert "duodao" in seen


@pytest.mark.parametrize("folder", [n for n, layer in LAYERS.items() if 1 <= layer <= 4])
def test_subtle_folders_explain_themselves(folder: str) -> None:
    """Each folder of layers 1 to 4 that holds code has a README of at most 60 lines: purpose, invariants, races."""
    here = CORE / folder
    if not [p for p in here.glob("*.py") if p.name != "__init__.py"]:
        return
    readme = here / "README.md"
    assert readme.exists(), f"{folder}/README.md is missing"
    assert len(readme.read_text().splitlines()) <= 60


def test_nothing_sleeps() -> None:
    """Nothing polls: no sleep() outside clock.py, so that a fake clock is all a test needs. sleep(0) only yields."""
    for path in FILES:
        if path == CORE / "clock.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node).rpartition("(")[2] != "0)":
                name = ast.unparse(node.func)
                assert name.rpartition(".")[2] != "sleep", f"{path.relative_to(SRC)}:{node.lineno} calls {name}()"
