"""Folders depend one way, and no module on itself by way of others."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# What each folder may import, besides itself. Modules that lie in no folder of jaxsparse are
# foundations, which stand below the rest, but for tools, which stand above.
PATTERNS = {"kernels", "foundations"}
PRUNING = PACKED = PATTERNS | {"patterns"}
PRODUCTS = PACKED | {"packed"}
ABOVE = PRODUCTS | {"products", "pruning"}
ALL = ABOVE | {
    *("activations", "allocation", "calibration", "export", "graph", "nn", "quantized", "recipes"),
    "tools",
}
MAY_IMPORT = {
    "kernels": set(),
    "foundations": {"kernels"},
    "patterns": PATTERNS,
    "pruning": PRUNING,
    "packed": PACKED,
    "products": PRODUCTS,
    "quantized": ABOVE | {"calibration"},
    "graph": ABOVE,
    "export": ABOVE,
    "calibration": ABOVE,
    "activations": ABOVE,
    "nn": ABOVE | {"activations", "graph"},
    "allocation": ABOVE | {"graph", "calibration"},
    "recipes": ABOVE | {"graph", "calibration", "allocation"},
    "tools": ABOVE | {"graph", "export"},
    "jaxsparse": ALL,
    "experiments": ALL | {"jaxsparse"},
}
TOOLS = {"reports", "checkpoint"}


def modules() -> dict[str, pathlib.Path]:
    """Every module by its dotted name as it is imported."""
    found = {}
    for top, name in (("jaxsparse",) * 2, ("kernels", "jaxsparse.kernels"), ("experiments",) * 2):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            found[".".join([name, *parts]).removesuffix(".__init__")] = path
    return found


def folder_of(module: str) -> str:
    """The key of `MAY_IMPORT` that a module belongs to."""
    top, _, below = module.partition(".")
    if top == "experiments" or not below:
        return top
    first, _, rest = below.partition(".")
    if first in TOOLS:
        return "tools"
    return first if rest or first in MAY_IMPORT else "foundations"


def imports(path: pathlib.Path, known: set[str]) -> set[str]:
    """Modules of ours that a file imports, wherever in it: late imports are edges, too.

    Ones that are not there are among them.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in names}
    return {name for name in found if name.split(".")[0] in {n.split(".")[0] for n in known}}


PATHS = modules()
EDGES = {name: imports(path, set(PATHS)) for name, path in PATHS.items()}


def broken(edges: dict[str, set[str]]) -> set[str]:
    """Edges from one folder to another that it may not import."""
    pairs = ((name, other) for name, others in edges.items() for other in others)
    return {
        f"{name} -> {other}"
        for name, other in pairs
        if (here := folder_of(name)) != (there := folder_of(other))
        and there not in MAY_IMPORT[here]
    }


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that lead back to the first of them; none where there are none."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_folders_depend_one_way():
    assert broken(EDGES) == set()


def test_no_module_imports_itself_by_way_of_others():
    assert circle(EDGES) == []


def test_what_is_imported_is_there():
    missing = {name: others - set(EDGES) for name, others in EDGES.items() if others - set(EDGES)}
    assert not missing


def test_the_order_itself_has_no_circle():
    assert circle(MAY_IMPORT) == []
    assert set().union(*MAY_IMPORT.values()) <= set(MAY_IMPORT)


def test_every_folder_has_a_place_in_the_order():
    folders = {path.parent for path in PATHS.values() if path.name == "__init__.py"}
    beside = {folder.name for folder in folders if folder.parent == ROOT / "jaxsparse"}
    assert beside <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("jaxsparse.kernels.layouts", "jaxsparse.trees"),
        ("jaxsparse.trees", "jaxsparse.graph"),
        ("jaxsparse.graph", "jaxsparse.nn.surgery"),
        ("jaxsparse.graph", "experiments.run"),
        ("jaxsparse.activations.maps", "jaxsparse"),
    ],
)
def test_an_edge_upwards_is_seen(module, other):
    assert broken({module: {other}}) == {f"{module} -> {other}"}
    assert not broken({other: {module}})
    assert circle({module: {other}, other: {module}})


def test_late_and_partial_imports_are_edges(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("def f():\n    from a import b, c\n    import a.d as d, e\n    import a.f\n")
    assert imports(file, {"a", "a.b", "a.d"}) == {"a", "a.b", "a.d", "a.f"}


def test_files_of_tests_have_names_of_their_own():
    """Folders of tests are no packages: of two files of one name the second is not collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
