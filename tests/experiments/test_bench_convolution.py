"""The benchmark of convolutions, at sizes that take no time."""

import jax
import pytest

import jaxsparse as js
from experiments.bench import convolution


def test_resnet50_has_its_convolutions():
    found = convolution.resnet50()
    assert sum(found.values()) == 52  # 53 with the first
    weights = sum(n * i * o * k * k for (_, i, o, k, _), n in found.items())
    assert weights == 23_445_504  # 23,454,912 with the first's 9,408
    assert found[7, 512, 512, 3, 1] == 2 and found[14, 512, 512, 3, 2] == 1


def test_a_table_has_every_row(monkeypatch):
    monkeypatch.setattr(convolution, "resnet50", lambda: {(4, 8, 16, 3, 2): 2, (4, 8, 16, 1, 1): 1})
    monkeypatch.setattr(convolution, "CELLS", {"2:4": (js.NM(2, 4), None)})
    rows = convolution.network(1, 1)
    assert rows[-1]["dense"] == pytest.approx(2 * rows[0]["dense"] + rows[1]["dense"])
    text = convolution.markdown({"cells": [], "resnet50": rows})
    assert text.count("| 1 |") == 3 and "| all x 1 | 1 |" in text
    jax.clear_caches()
