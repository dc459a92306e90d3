"""The API reference has every public name, and something to say about each."""

import importlib.util
import inspect
import pathlib
import subprocess
import sys

import pytest

FILE = pathlib.Path(__file__).parent.parent / "docs" / "reference.py"
spec = importlib.util.spec_from_file_location("reference", FILE)
assert spec is not None and spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

MODULES = {module.__name__: module for module in reference.public_modules()}
NAMES = [(module, name) for module in MODULES for name in reference.public_names(MODULES[module])]


def test_the_public_modules():
    expected = {"", ".checkpoint", ".graph", ".nn", ".nn.linen", ".nn.nnx"}
    assert {f"jaxsparse{name}" for name in expected} <= set(MODULES)
    assert ("jaxsparse", "prune") in NAMES and ("jaxsparse.graph", "shrink") in NAMES
    assert ("jaxsparse.checkpoint", "Checkpointer") in NAMES


@pytest.mark.parametrize(("module", "name"), NAMES, ids=".".join)
def test_a_public_name_has_a_docstring_of_its_own(module, name):
    thing = getattr(MODULES[module], name)
    text = inspect.getdoc(thing) or ""
    # What Python writes for a class without one is its signature.
    assert text and not text.startswith(f"{name}("), f"{module}.{name}"


@pytest.mark.slow
def test_the_reference_shows_every_public_name(tmp_path):
    subprocess.run([sys.executable, FILE, tmp_path], check=True, capture_output=True, timeout=300)
    written = {
        ".".join(path.relative_to(tmp_path).with_suffix("").parts): path.read_text()
        for path in tmp_path.rglob("*.html")
    }
    assert set(MODULES) == set(written) - {"index"}
    absent = [f"{m}.{name}" for m, name in NAMES if f'id="{name}"' not in written[m]]
    assert absent == []
    # Sections of a docstring are lists and not running text.
    assert "<strong>rules:</strong>" in written["jaxsparse"]
