"""EIE: its storage bit for bit, its cycles against a machine that counts them one by one."""

import json
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsparse.activations import eie

FACTS = json.loads((pathlib.Path(__file__).parents[1] / "cases/eie.json").read_text())
VARIANTS = {"reset at every column": "reset", "runs go on across columns": "continue"}


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case["name"])


@named(FACTS["codec"])
def test_a_stream_is_stored_as_published(case):
    column = np.array(case["codes"], int).reshape(-1, 1)
    encoded = eie.encode(column)
    assert encoded.streams[0].codes.tolist() == case["v"]
    assert encoded.streams[0].runs.tolist() == case["z"]
    assert (encoded.nonzeros, encoded.padding) == (case["nonzeros"], case["padding"])
    np.testing.assert_array_equal(eie.decode(encoded), column)


@named(FACTS["matrices"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_matrix_is_stored_as_published(case, variant):
    facts, codes = case["variants"][variant], np.array(case["codes"])
    encoded = eie.encode(codes, case["pes"], VARIANTS[variant])
    for stream, fact in zip(encoded.streams, facts["per_pe"], strict=True):
        assert stream.codes.tolist() == fact["v"]
        assert stream.runs.tolist() == fact["z"]
        assert stream.pointers.tolist() == fact["ptr"]
    np.testing.assert_array_equal(eie.decode(encoded), codes)
    bits = eie.storage_bits(encoded)
    names = ("nonzero_bits", "padding_bits", "pointer_bits", "codebook_bits", "total_bits")
    assert (*bits, bits.total) == tuple(facts[name] for name in names)


@pytest.mark.parametrize("runs", ["reset", "continue"])
def test_thousands_of_random_matrices_come_back(runs):
    rng = np.random.default_rng(3)
    for trial in range(5_000):
        shape = rng.integers(0, [1 + 80 * (trial % 3 == 0) + 6, 9])
        kept = rng.random(shape) < rng.choice([0.0, 0.02, 0.1, 0.5, 1.0])
        codes = np.where(kept, rng.integers(1, 16, shape), 0)
        encoded = eie.encode(codes, int(rng.integers(1, 9)), runs)
        np.testing.assert_array_equal(eie.decode(encoded), codes)
        assert encoded.nonzeros == np.count_nonzero(codes)


def test_work_of_a_matrix_is_what_its_active_columns_hold():
    rng = np.random.default_rng(0)
    codes = np.where(rng.random((150, 12)) < 0.06, 7, 0)
    encoded, activations = eie.encode(codes, 4), np.where(rng.random(12) < 0.5, 1.5, 0.0)
    every = eie.column_work(codes.T != 0, 4)
    np.testing.assert_array_equal(encoded.work(activations), every[activations != 0])
    np.testing.assert_array_equal(encoded.work(np.array([3, 1])), every[[3, 1]])
    assert every.sum() == encoded.entries > encoded.nonzeros


@named(FACTS["simulator"])
def test_cycles_of_given_work(case):
    work = np.array(case["work"], int).reshape(case["columns"], case["pes"])
    for depth, cycles in case["cycles"].items():
        run = eie.simulate(work, int(depth))
        assert run.cycles == cycles
        expected = case["efficiency"][depth]
        assert math.isnan(run.efficiency) if expected is None else run.efficiency == expected
        honest = eie.simulate(work, int(depth), least=1)
        assert honest.cycles == case["cycles_if_an_empty_entry_takes_one"][depth]


def cycle_by_cycle(work, depth):
    """A machine stepped clock by clock, without any closed form."""
    inputs, pes = work.shape
    queues, busy_until, sent, last, cycle = [[] for _ in range(pes)], [0] * pes, 0, 0, 0
    while sent < inputs or any(queues):
        for pe, queue in enumerate(queues):
            while queue and busy_until[pe] <= cycle:
                busy_until[pe] = cycle + queue.pop(0)
                last = max(last, busy_until[pe])
        if sent < inputs and all(len(queue) < depth for queue in queues):
            for pe, queue in enumerate(queues):
                queue.append(work[sent, pe])
            sent += 1
        cycle += 1
    return last


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_cycles_equal_a_machine_stepped_clock_by_clock(data):
    pes, inputs = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 14))
    cells = st.lists(st.integers(0, 6), min_size=pes * inputs, max_size=pes * inputs)
    work = np.array(data.draw(cells)).reshape(inputs, pes)
    counted = [eie.simulate(work, depth).cycles for depth in (1, 2, 3, 8)]
    assert counted == [cycle_by_cycle(work, depth) for depth in (1, 2, 3, 8)]
    assert counted == sorted(counted, reverse=True)
    assert work.sum(0).max() <= counted[-1] and counted[0] <= work.max(1).sum() + inputs + 1


@pytest.mark.parametrize("fact", FACTS["layers_simulated"]["rows"], ids=lambda fact: fact["layer"])
def test_published_layers_balance_and_pad_as_published(fact):
    depths = tuple(map(int, fact["by_depth"]))
    report = eie.simulate_layer(fact["layer"], depths)
    for depth in depths:
        run, published = report.by_depth[depth], fact["by_depth"][str(depth)]
        assert run.efficiency == pytest.approx(published["efficiency"], rel=0.02)
        # Draws differ in how many inputs are active, not in what one takes.
        each = published["cycles"] / fact["active_columns"]
        assert run.cycles / report.active == pytest.approx(each, rel=0.02)
        assert run.microseconds == pytest.approx(run.cycles / 800)
    assert report.expected_padding == pytest.approx(fact["expected_padding_per_nonzero_reset"])
    assert report.padding == pytest.approx(report.expected_padding, rel=0.02)
    density = fact["weight_density_pct"] / 100
    assert eie.expected_padding(density) == pytest.approx(fact["endless_stream"])


def test_the_published_table():
    rows = FACTS["published_table"]["rows"]
    ours = [
        [name, x.inputs, x.outputs, 100 * x.weight_density, 100 * x.activation_density, x.speedup]
        for name, x in eie.LAYERS.items()
    ]
    for mine, published in zip(ours, rows, strict=True):
        assert mine[0] == published[0]
        assert mine[1:] == pytest.approx(published[1:])
    mean = math.exp(sum(math.log(x.speedup) for x in eie.LAYERS.values()) / len(eie.LAYERS))
    assert mean == pytest.approx(FACTS["published_table"]["geometric_mean"])


def test_expected_padding_of_short_columns_is_a_sum_over_all_columns():
    density, rows = 0.03, 18
    fillers = nonzeros = 0.0
    for mask in range(1 << rows):
        kept = [row for row in range(rows) if mask >> row & 1]
        chance = density ** len(kept) * (1 - density) ** (rows - len(kept))
        gaps = [b - a - 1 for a, b in zip([-1, *kept], kept, strict=False)]
        fillers += chance * sum(gap // 16 for gap in gaps)
        nonzeros += chance * len(kept)
    assert eie.expected_padding(density, rows) == pytest.approx(fillers / nonzeros)


def test_a_code_book_keeps_zero_exact_and_every_weight_near():
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(60, 50)) * (rng.random((60, 50)) < 0.2)
    codes, book = eie.quantize(weights)
    assert ((codes == 0) == (weights == 0)).all() and codes.max() <= 15
    distances = np.abs(weights[weights != 0][:, None] - book[1:])
    np.testing.assert_allclose(
        np.abs(weights - book[codes])[weights != 0], distances.min(axis=1), atol=1e-15
    )
    for code in range(1, 16):  # a fixed point of Lloyd's iteration
        assert book[code] == pytest.approx(weights[codes == code].mean())
    again = eie.quantize(weights, book[[0, *range(15, 0, -1)]])[0]
    np.testing.assert_array_equal(np.where(again, 16 - again, 0), codes)


def test_code_books_of_few_weights():
    codes, book = eie.quantize(np.zeros((3, 2)))
    assert not codes.any() and not book.any()
    codes, book = eie.quantize(np.array([0.0, 2.5, 0.0]))
    np.testing.assert_array_equal(book[codes], [0.0, 2.5, 0.0])
    codes, book = eie.quantize(np.array([-1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(book[codes], [-1.0, 0.0, 1.0])


REFUSED = [
    (ValueError, "16", lambda: eie.encode(np.array([[16]]))),
    (ValueError, "-1", lambda: eie.encode(np.array([[-1]]))),
    (TypeError, "float64", lambda: eie.encode(np.array([[np.nan]]))),
    (ValueError, r"\(3,\)", lambda: eie.encode(np.zeros(3, int))),
    (ValueError, "pes=0", lambda: eie.encode(np.zeros((2, 2), int), 0)),
    (ValueError, "'wrap'", lambda: eie.encode(np.zeros((2, 2), int), runs="wrap")),  # type: ignore
    (ValueError, r"nan at \(0, 1\)", lambda: eie.quantize(np.array([[1.0, np.nan]]))),
    (ValueError, r"inf at \(0,\)", lambda: eie.kmeans(np.array([np.inf]))),
    (ValueError, "0 values", lambda: eie.kmeans(np.array([]))),
    (ValueError, "zero first", lambda: eie.quantize(np.ones(2), np.ones(16))),
    (ValueError, "depth=0", lambda: eie.simulate(np.ones((1, 1), int), 0)),
    (ValueError, "-1", lambda: eie.simulate(np.array([[-1]]))),
    (TypeError, "float64", lambda: eie.simulate(np.ones((1, 1)))),
    (ValueError, "cannot be skipped", lambda: eie.encode(np.eye(2, dtype=int), 1, "continue").work(
        np.array([True, False]))),
    (ValueError, "3 activations", lambda: eie.encode(np.eye(2, dtype=int)).work(np.ones(3))),
    (ValueError, r"\[0, 2\)", lambda: eie.encode(np.eye(2, dtype=int)).work(np.array([2]))),
    (KeyError, "Alex-6", lambda: eie.simulate_layer("Alex-9")),
    (ValueError, "density=0", lambda: eie.expected_padding(0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "quoted", "call"), REFUSED)
def test_bad_input_is_refused(kind, quoted, call):
    with pytest.raises(kind, match=quoted):
        call()


def test_a_damaged_stream_is_refused():
    whole = eie.encode(np.eye(4, dtype=int))
    stream = whole.streams[0]
    for runs in ("reset", "continue"):
        beyond = stream._replace(runs=np.array([0, 0, 0, 15], np.uint8))
        with pytest.raises(ValueError, match="element 0"):
            eie.decode(eie.EIEMatrix((4, 4), runs, (beyond,)))
