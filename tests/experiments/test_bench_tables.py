"""The tables that the benchmark of `sparse_dot` writes."""

import json
import re

import pytest

from experiments import measurements
from experiments.bench import sparse_dot, tables

ROW = {
    "implementation": "cpu",
    "storage": "block4x16",
    "dtype": "float32",
    "shape": [768, 3072],
    "batch": 8,
    "density": 0.5,
    "direction": "forward",
    "ms": 2.0,
    "dense_ms": 5.0,
    "gflops": 10.0,
    "speedup": 2.5,
    "speedup_over_best": 1.25,
    "speedup_in_turn": 1.5,
    "speedup_over_best_in_turn": 0.75,
}


def test_a_cell_is_the_least_of_the_shapes_and_losing_is_bold():
    slower = ROW | {"shape": [4096, 4096], "speedup": 1.5, "speedup_over_best": 0.9}
    sparser = ROW | {"density": 0.1, "speedup": 6.0, "speedup_over_best": 4.0}
    backward = ROW | {"direction": "dx", "speedup": 0.1, "speedup_over_best": 0.1}
    other = ROW | {"implementation": "xla", "speedup": 0.2, "speedup_over_best": 0.2}
    *_, line = tables.markdown([ROW, slower, sparser, backward, other]).splitlines()
    assert line == "| block4x16 float32, 0.5 / 0.1 | 1.5 / 6.0; **0.90** / 4.0 |"


def test_single_calls_in_turn_have_a_table_of_their_own():
    assert "| block4x16 float32, 0.5 | 2.5; 1.2 |" in tables.markdown([ROW])
    assert "| block4x16 float32, 0.5 | 1.5; **0.75** |" in tables.markdown([ROW], suffix="_in_turn")


def test_what_falls_short_of_a_target_is_bold_and_what_was_not_measured_is_left_out():
    sparser = ROW | {"density": 0.1, "speedup": 9.9, "gflops": 6.0}
    other = ROW | {"implementation": "xla", "speedup": 0.1}
    backward = ROW | {"storage": "block32x32", "batch": 512, "direction": "dx", "speedup": 1.0}
    lines = tables.both([ROW, sparser, other, backward], peak=100.0).splitlines()
    cells = "8 | 2.5 / 5 / 10 | 2.5 / - / **9.9** | 8% / 8% / 6% | 10% / - / **6%** |"
    assert f"| block4x16 float32, 0.5 / 0.25 / 0.1 | {cells}" in lines
    cells = "512 | 1.7 / 2.9 / 5.1 | **1.0** / - / - | - / - / - | 10% / - / - |"
    assert f"| block32x32 float32 dx, 0.5 / 0.25 / 0.1 | {cells}" in lines
    assert lines[-1] == "Met: 1 of 3 ratios, 1 of 2 shares of the peak."


def test_libraries_stand_side_by_side_and_what_is_missing_is_left_blank():
    rows = [
        ROW,
        ROW | {"implementation": "scipy CSR", "ms": 7.125},
        ROW | {"batch": 512, "ms": 20.0, "dense_ms": 80.0},
        ROW | {"direction": "dx"},
    ]
    head, _, *lines = tables.side_by_side(rows).splitlines()
    assert head.endswith("| jnp.dot | cpu | scipy CSR |")
    assert lines == [
        "| block4x16 | float32 | 768x3072 | 8 | 0.5 | 5.00 | 2.00 | 7.12 |",
        "| block4x16 | float32 | 768x3072 | 512 | 0.5 | 80.00 | 20.00 |  |",
    ]


def test_results_are_a_line_a_row_and_read_back_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(measurements, "RESULTS", tmp_path)
    path = measurements.write(
        "any", {"rows": [ROW, ROW | {"batch": 1}], "left": [], "limits": {"a": 1}}
    )
    read = json.loads(path.read_text())
    assert (read["rows"], read["left"]) == ([ROW, ROW | {"batch": 1}], [])
    assert read["machine"] == measurements.machine()
    assert sum('"storage"' in line for line in path.read_text().splitlines()) == 2


def test_new_rows_are_not_mixed_with_another_machines(monkeypatch, tmp_path):
    monkeypatch.setattr(measurements, "RESULTS", tmp_path)
    path = measurements.write("any", {"rows": [ROW]})
    assert sparse_dot.earlier_rows("any") == [ROW]
    path.write_text(path.read_text().replace('"cores": ', '"cores": 10'))
    with pytest.raises(SystemExit, match="another machine"):
        sparse_dot.earlier_rows("any")


@pytest.mark.parametrize(
    ("ratios", "density", "note"),
    [
        ((2.0, 0.5), 0.05 * 2**0.5, ""),
        ((2.0, 1.5), None, "always ahead"),
        ((0.5, 0.9), None, "always behind"),
        ((0.5, 2.0), None, "ahead where denser"),
    ],
)
def test_break_even(ratios, density, note):
    rows = [
        ROW | {"density": d, "speedup": ratio} for d, ratio in zip((0.05, 0.1), ratios, strict=True)
    ]
    (found,) = sparse_dot.break_even(rows)
    assert found["density"] == pytest.approx(density)
    assert found["note"] == note


def test_the_table_of_the_readme_is_of_the_committed_rows():
    """`50 % in 32x32 blocks | 2.0 |`: the least speed-up over `jnp.dot` of the shapes."""
    found = json.loads((measurements.RESULTS / "sparse_dot.json").read_text())
    least = tables.least(tables.forward(found["rows"], "cpu"), "speedup")
    text = (measurements.RESULTS.parents[2] / "README.md").read_text()
    table = re.search(r"^\| weights kept \|(.*)\n.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    batches = [int(n) for n in re.findall(r"batch (\d+)", table[1])]
    assert batches == [512, 64, 8, 1]
    lines = table[2].splitlines()
    assert len(lines) == 7
    for line in lines:
        label, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        percent = re.match(r"(\d+) %", label)
        density = int(percent[1]) / 100 if percent else 0.5
        block = re.search(r"\d+x\d+", label)
        storage = f"block{block[0]}" if block else "2:4" if label == "2:4" else "unstructured"
        for batch, cell in zip(batches, cells, strict=True):
            assert cell == f"{least[storage, 'float32', batch][density]:.1f}", (label, batch)


def test_the_committed_table_is_made_of_the_committed_rows():
    path = measurements.RESULTS / "sparse_dot.json"
    found = json.loads(path.read_text())
    table = tables.both(found["rows"], found["limits"]["gflops"])
    assert path.with_suffix(".md").read_text() == table
