"""Every public name is documented, every example in prose and docstrings runs."""

import doctest
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import jaxsparse as js

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "jaxsparse").rglob("*.py")
)
NOTEBOOKS = sorted(ROOT.glob("docs/**/*.ipynb"))
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *NOTEBOOKS])
FILES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md"]


def module(name):
    __import__(name)
    return sys.modules[name]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    results = doctest.testmod(module(name))
    assert results.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name):
    assert module(name).__doc__, name
    for label, thing in vars(module(name)).items():
        if label.startswith("_") or getattr(thing, "__module__", None) != name:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), f"{name}.{label}"


def test_the_top_level_names_are_listed():
    public = {n for n, x in vars(js).items() if not n.startswith("_") and inspect.isroutine(x)}
    public |= {n for n, x in vars(js).items() if inspect.isclass(x)}
    packages = {"activations", "allocation", "calibration", "checkpoint", "graph", "nn"}
    packages |= {"quantized", "recipes"}
    assert public | packages == set(js.__all__)


def blocks_of(page):
    if page in NOTEBOOKS:
        cells = json.loads(page.read_text())["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[] if p.name == "README.md" else pytest.mark.slow) for p in PAGES],
    ids=lambda p: "/".join(p.parts[-2:]),
)
def test_pages_run_from_top_to_bottom(page, tmp_path):
    """The Python blocks of a page are one program, run as a reader of a checkout would."""
    blocks = blocks_of(page)
    if not blocks:
        assert "```python" not in page.read_text()
        return
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", FILES, ids=lambda p: "/".join(p.parts[-2:]))
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().split()) < 700


def test_every_page_is_in_the_table_of_contents():
    contents = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs") and page.name != "README.md":
            assert f"({page.relative_to(ROOT / 'docs')})" in contents


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_committed_without_outputs(page):
    cells = json.loads(page.read_text())["cells"]
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)
