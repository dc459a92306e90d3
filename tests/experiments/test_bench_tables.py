"""The tables that the benchmark of `sparse_dot` writes."""

from experiments.bench import tables

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
    "speedup": 2.5,
    "speedup_over_best": 1.25,
}


def test_a_cell_is_the_least_of_the_shapes_and_losing_is_bold():
    slower = ROW | {"shape": [4096, 4096], "speedup": 1.5, "speedup_over_best": 0.9}
    sparser = ROW | {"density": 0.1, "speedup": 6.0, "speedup_over_best": 4.0}
    backward = ROW | {"direction": "dx", "speedup": 0.1, "speedup_over_best": 0.1}
    other = ROW | {"implementation": "xla", "speedup": 0.2, "speedup_over_best": 0.2}
    *_, line = tables.markdown([ROW, slower, sparser, backward, other]).splitlines()
    assert line == "| block4x16 float32, 0.5 / 0.1 | 1.5 / 6.0; **0.90** / 4.0 |"


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


def test_the_committed_table_is_made_of_the_committed_rows():
    path = tables.timing.RESULTS / "sparse_dot.json"
    rows = tables.json.loads(path.read_text())["rows"]
    assert path.with_suffix(".md").read_text() == tables.markdown(rows)
