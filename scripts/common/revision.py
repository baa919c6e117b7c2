"""Hash the source that made a file, to tell files that outlive a run apart by their code."""

import ast
import functools
import hashlib
import importlib.util
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path


@functools.cache
def revision(name: str, within: str) -> str:
    """Return a hash of a module and of all that it imports from the package ``within``, as 8 hexadecimal digits.

    ``name`` may be that of something in the module. The JSON files beside a module count as well.
    """
    while not _is_module(name):
        name = name.rpartition(".")[0]
    todo = [name]
    sources = {}
    while todo:
        if (name := todo.pop()) not in sources:
            path = Path(inspect.getfile(import_module(name)))
            sources[name] = [file.read_text() for file in (path, *sorted(path.parent.glob("*.json")))]
            todo += _imported(name, sources[name][0], within)
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:8]


def _imported(name: str, source: str, within: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), name.rpartition(".")[0] or None)
            found = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        yield from (other for other in found if f"{other}.".startswith(f"{within}.") and _is_module(other))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a class or a function of a module
        return False
