"""What CONTRIBUTING asks of tests and texts, as far as a program can see it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT / "tests")))
def test_every_test_says_its_fact(path: Path) -> None:
    """Every test function has a docstring: the fact it holds."""
    silent = [
        f"{path.name}:{node.lineno} {node.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_test_files_have_names_of_their_own() -> None:
    """No two test files share a name, so that each can be run and imported without packages around it."""
    names = [path.name for path in TESTS]
    assert sorted(set(names)) == sorted(names)


def test_error_tree_is_drawn() -> None:
    """The tree in the docstring of errors.py shows every error class there is."""
    from duodao import errors

    drawn = (errors.__doc__ or "").split()
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    ours = [value.__name__ for value in classes if issubclass(value, errors.DuodaoError)]
    assert [name for name in ours if name not in drawn] == []
