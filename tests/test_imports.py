"""The plan of the house: which rooms there are, and which may not import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "idsds"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py")))
#: What may never be imported: by a room, from a room.
WALLS = [
    ("plots", "studies"),
    ("statistics", "protocols"),
    ("protocols", "training"),
    ("evaluation", "studies"),
    ("datasets", "models"),
    *(("common", room) for room in ROOMS if room != "common"),
]


def room_of(path):
    """The room of a module; empty at the top level."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def only_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree, *, typing):
    """Every import of a module, those inside functions too; without those for type checkers alone unless ``typing``."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not typing and only_for_types(node):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def imported(path, *, typing=True):
    """The rooms that a module imports, by the line that does so."""
    package = ["idsds", *path.relative_to(PACKAGE).parts[:-1]]
    found = {}
    for node in statements(ast.parse(path.read_text()), typing=typing):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            start = ".".join(package[: len(package) - node.level + 1] if node.level else [])
            start = ".".join(filter(None, [start, node.module]))
            names = [f"{start}.{alias.name}" for alias in node.names] if start == "idsds" else [start]
        for name in names:
            parts = name.split(".")
            if parts[0] == "idsds" and len(parts) > 1 and parts[1] in ROOMS:
                found[parts[1]] = f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"
    return found


@pytest.mark.parametrize(("room", "other"), WALLS, ids=[f"{room}-{other}" for room, other in WALLS])
def test_a_wall_has_no_door(room, other):
    """Not for type checkers either: what one room knows of another is what it depends on."""
    assert room in ROOMS
    doors = [found[other] for path in MODULES if room_of(path) == room and other in (found := imported(path))]
    assert not doors, f"{room} must not import {other}"


def test_plots_do_not_lean_on_studies_in_words_either():
    assert not [path.name for path in MODULES if room_of(path) == "plots" and "idsds.studies" in path.read_text()]


def test_rooms_do_not_depend_on_each_other_in_a_circle():
    needs = {room: {name for path in MODULES if room_of(path) == room for name in imported(path, typing=False)} - {room} for room in ROOMS}
    floors = []
    while needs:
        floor = sorted(room for room, others in needs.items() if not others & needs.keys())
        assert floor, f"a circle among {', '.join(f'{room} -> {sorted(others & needs.keys())}' for room, others in needs.items())}"
        floors.append(floor)
        needs = {room: others for room, others in needs.items() if room not in floor}
    assert len(floors) <= 8
    assert floors[0][0] == "common"
    assert floors[-1] == ["studies"]


def test_the_top_level_is_read_at_a_glance():
    entries = {path.name for path in PACKAGE.iterdir() if not path.name.startswith((".", "__pycache__"))}
    assert len(entries - {"__init__.pyi", "py.typed"}) <= 13, sorted(entries)


def test_imports_are_found_wherever_they_stand(tmp_path, monkeypatch):
    package = tmp_path / "idsds"
    (package / "plots").mkdir(parents=True)
    module = package / "plots" / "x.py"
    module.write_text(
        "from typing import TYPE_CHECKING\nfrom idsds import statistics\nfrom ..methods import base\n"
        "if TYPE_CHECKING:\n    import idsds.studies.base\ndef f():\n    from idsds.models.base import y\n"
    )
    monkeypatch.setitem(globals(), "PACKAGE", package)
    assert sorted(imported(module)) == ["methods", "models", "statistics", "studies"]
    assert sorted(imported(module, typing=False)) == ["methods", "models", "statistics"]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_imports(path):
    """The private names that a module takes from another of the package: imported, or reached for as an attribute of the module."""
    tree, modules = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("idsds")):
            yield from filter(is_private, (alias.name for alias in node.names))
            folder = PACKAGE.parent / (node.module or "").replace(".", "/")
            found = (alias for alias in node.names if (folder / alias.name).is_dir() or (folder / f"{alias.name}.py").is_file())
            modules |= {alias.asname or alias.name for alias in found}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules and is_private(node.attr):
            yield f"{node.value.id}.{node.attr}"


def test_no_private_name_crosses_modules():
    assert not {str(path.relative_to(PACKAGE)): names for path in MODULES if (names := list(private_imports(path)))}


def test_private_names_are_found_in_both_forms(tmp_path):
    module = tmp_path / "x.py"
    module.write_text(
        "from idsds.common import hashing, paths as p\nfrom idsds.common.files import _a, b\nhashing._code\np._x\np.__doc__\nb._c\n"
    )
    assert list(private_imports(module)) == ["_a", "hashing._code", "p._x"]


#: The one function whose arguments are a notebook's; it may be longer and take more.
FRONT = "evaluate"


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_modules_and_functions_are_read_at_a_glance(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != FRONT:
            names = [
                each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if each.arg not in ("self", "cls")
            ]
            assert node.end_lineno - node.lineno < 60, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
            assert len(names) <= 10, f"{node.name} takes {len(names)} parameters"
