"""Imports run one way: no circle between files or rooms, and ``nacme`` knows nothing of DomainBed.

A room is a file or a folder directly in a package. Imports inside functions count as those at the top do.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("nacme", "domainbed_plugins")
#: The one way from the instrument up to what touches DomainBed: the commands, each in its function.
ROOF = "nacme.cli"
LONGEST = 410


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports(module):
    """Modules of ours that a file imports, wherever in it; a name of a package is the package's own file."""
    nodes = list(ast.walk(ast.parse(MODULES[module].read_text())))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= inside & MODULES.keys() or {node.module}
    return (named & MODULES.keys()) - {module}


def room(module):
    return ".".join(module.split(".")[:2])


def assert_no_circle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imported by the next, in a circle: " + " -> ".join(error.args[1]))


def test_no_files_import_each_other_in_a_circle():
    assert_no_circle({module: imports(module) for module in MODULES})


@pytest.mark.parametrize("package", PACKAGES)
def test_no_rooms_import_each_other_in_a_circle(package):
    graph = {}
    for module in MODULES:
        if module.startswith(package):
            graph.setdefault(room(module), set()).update(map(room, imports(module)))
    assert_no_circle({name: rooms - {name} for name, rooms in graph.items()})


def test_only_the_roof_of_nacme_knows_the_plugins():
    knowing = {m for m in MODULES if m.startswith("nacme") and any("domainbed" in name for name in imports(m))}
    assert knowing == {ROOF}


def test_no_file_is_too_long_to_read():
    lines = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    assert {module: count for module, count in lines.items() if count > LONGEST} == {}
