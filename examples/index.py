"""What a Python source file holds: its module name, classes, functions, imports and lines. CPU work: it parses.

duodao map examples/index.py:index --paths --match '*.py' /usr/lib/python3.11 -o index.jsonl --journal index.journal
"""

import ast
import os
import tokenize
import warnings

for kind in (SyntaxWarning, DeprecationWarning):  # about the files that are read, such as an invalid escape
    warnings.simplefilter("ignore", kind)


def index(path):
    """One record about the source file at `path`. Raises SyntaxError for a file this Python can't parse."""
    with tokenize.open(path) as file:  # in the encoding that the file declares
        source = file.read()
    classes, functions, imports = [], [], set()
    for node in ast.walk(ast.parse(source, os.path.basename(path))):
        if isinstance(node, ast.ClassDef):
            classes.append(node.name)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions.append(node.name)
        elif isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.add("." * node.level + (node.module or ""))
    return {
        "module": os.path.splitext(os.path.basename(path))[0],
        "path": path,
        "classes": classes,
        "functions": functions,
        "imports": sorted(imports),
        "lines": source.count("\n"),
    }
