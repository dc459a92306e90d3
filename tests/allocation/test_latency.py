"""Tables of latency, and what they predict. Clocks tick by the call: nothing is timed here."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.allocation import (
    Latency,
    LatencyReport,
    LatencyRow,
    LatencyTable,
    Network,
    latency_report,
)
from jaxsparse.allocation.costs.calls import Loop
from jaxsparse.allocation.costs.fingerprint import fingerprint
from jaxsparse.allocation.costs.program import Program
from jaxsparse.allocation.costs.remainder import Remainder
from jaxsparse.allocation.costs.table import NOTHING, TURN
from jaxsparse.timing import TRIES
from tests.allocation.costs_models import mobilenet, mobilenet_params


class Ticks:
    """A clock that goes on by a millisecond whenever it is read."""

    def __init__(self):
        self.read = 0

    def __call__(self):
        self.read += 1
        return self.read / 1e3


def table(path=None, **options):
    return LatencyTable(path, rounds=2, clock=Ticks(), **options)


def mlp(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


PARAMS = {"up": jnp.ones((4, 16)), "down": jnp.ones((16, 8))}
X = jnp.ones((5, 4))
NEURONS = "up, down"


def handmade(times, **options):
    """A latency whose table has these times of products, by a part of their name."""
    found = table()
    latency = Latency(found, mlp, PARAMS, X, **options)
    latency.total({NEURONS: 8})
    latency.total({NEURONS: 4})
    latency.total(densities={"down": 0.5})
    for name in found.entries:
        found.entries[name] = next(time for part, time in times.items() if part in name)
    return Latency(found, mlp, PARAMS, X, **options)


TIMES = {
    NOTHING: 0.5,
    "without its products": 1.5,
    "program": 9.5,
    "float32[4,16]": 3.0,
    "float32[16,8]": 5.0,
    "float32[4,8]": 1.5,
    "float32[8,8]": 2.0,
    "float32[4,4]": 1.0,
    "sparse_dot": 3.5,
    "float32[5,4]": 1.0,
}


def test_dense_takes_what_it_was_measured_at():
    latency = handmade(TIMES, steps=4)
    assert latency.total() == latency.dense == 10.0
    assert (latency.of("up"), latency.of("down"), latency.unit) == (3.0, 5.0, "ms")


def test_products_are_looked_up_and_the_rest_shrinks_with_its_numbers():
    latency = handmade(TIMES, steps=4)
    assert latency.total({NEURONS: 8}) == pytest.approx(0.5 + 1.5 + 2.0 + 1.5 / 2)
    assert latency.total(densities={"down": 0.5}) == pytest.approx(0.5 + 3.0 + 3.5 + 1.5)
    assert latency.of("down", densities={"down": 0.5}) == 3.5


def test_parts_that_overlap_take_as_long_as_the_program():
    latency = handmade(TIMES | {"program": 7.5}, steps=4)
    assert latency.total() == pytest.approx(8.0)
    assert latency.total({NEURONS: 8}) == pytest.approx((0.5 + 3.5 + 0.75) * 8 / 10)
    assert latency.of("up") == pytest.approx(3.0 * 8 / 10)


def test_the_rest_of_a_program_runs_on_products_that_are_given():
    def model(params, x):
        x = jax.jit(jnp.matmul)(x, params["first"]) + 1.0
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])
        return x @ params["last"]

    params = {"first": jnp.ones((4, 6)), "stack": jnp.ones((3, 6, 6)), "last": jnp.ones((6, 2))}
    program = Program(model, params, (X,))
    arguments = [*(params[path] for path in program.shapes), X]
    (result,), operands = Remainder(program.analysis.program, arguments)()
    # Products are 0.5 everywhere; what the last one meets is made here, weights are not.
    np.testing.assert_allclose(result, np.full((5, 2), 0.5))
    assert [operand.shape for operand in operands] == [(5, 6)]
    np.testing.assert_allclose(operands[0], np.full((5, 6), np.tanh(0.5)), rtol=1e-6)


def test_widths_take_the_next_that_is_measured_above():
    latency = handmade(TIMES, steps=4)
    assert latency.total({NEURONS: 5}) == latency.total({NEURONS: 8})
    before = set(latency.table.entries)
    latency.total({NEURONS: 6})
    assert set(latency.table.entries) == before
    latency.total({NEURONS: 9})
    new = set(latency.table.entries) - before
    assert len(new) == 2 and all("[4,12]" in name or "[12,8]" in name for name in new)


def test_every_product_is_measured_once_and_kept(tmp_path):
    path = tmp_path / "tables/latency.json"
    latency = Latency(table(path), mlp, PARAMS, X, steps=2)
    latency.total({NEURONS: 8}, {"down": 0.25})
    names = set(latency.table.entries)
    assert sum("density=0.25" in name for name in names) == 1
    again = table(path, measure=False)
    assert set(again.entries) == names
    other = Latency(again, mlp, PARAMS, X, steps=2)
    # To the bit: a search that was killed goes on with the costs that it had.
    assert again.entries == latency.table.entries
    assert other.total({NEURONS: 8}, {"down": 0.25}) == latency.total({NEURONS: 8}, {"down": 0.25})
    with pytest.raises(KeyError, match=r"no time of 'dot_general float32\[5,8\]"):
        other.total({NEURONS: 1})


def test_a_kill_loses_no_batch_that_was_measured(tmp_path):
    path = tmp_path / "latency.json"
    found = table(path)

    def killed():
        raise KeyboardInterrupt

    programs = {f"program {i}": lambda: lambda: jnp.ones(3) for i in range(8)}
    with pytest.raises(KeyboardInterrupt):
        found.measure(programs | {"program 8": killed})
    assert set(table(path).entries) == {*programs, NOTHING}


def test_two_tables_of_one_file_keep_what_both_measured(tmp_path):
    path = tmp_path / "latency.json"
    one, other = table(path), table(path)
    one.measure({"one": lambda: lambda: jnp.ones(3)})
    other.measure({"other": lambda: lambda: jnp.ones(3)})
    assert set(table(path).entries) == {"one", "other", NOTHING}


@pytest.mark.parametrize("field", [*sorted(fingerprint()), "clock"])
def test_a_table_of_another_machine_is_refused(tmp_path, field):
    path = tmp_path / "latency.json"
    found = table(path)
    found.measure({"one": lambda: lambda: jnp.ones(3)})
    text = json.loads(path.read_text())
    text["fingerprint"][field] = "other"
    path.write_text(json.dumps(text))
    with pytest.raises(ValueError, match=rf"another machine: {field} is .* here, 'other' there"):
        table(path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "no table of latency"),
        ("[]", "needs fingerprint and milliseconds"),
        ('{"fingerprint": {}}', "needs fingerprint and milliseconds"),
        ('{"milliseconds": {"a": -1}}', "'a' takes -1"),
        ('{"milliseconds": {"a": NaN}}', "'a' takes nan"),
        ('{"milliseconds": {"a": "1"}}', "'a' takes '1'"),
        ('{"milliseconds": {"a": 1}}', "time of 'nothing'.* is not there"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, text, error):
    path = tmp_path / "latency.json"
    if '"a"' in text:
        text = json.dumps(json.loads(text) | {"fingerprint": table().fingerprint})
    path.write_text(text)
    with pytest.raises(ValueError, match=error):
        table(path)


def test_a_convolution_keeps_its_groups_and_packs_its_kernel():
    pointwise = ((8, 1), (12, 2))
    shapes = mobilenet_params(4, pointwise, 3)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    rules = [js.Rule("pointwise1/kernel", js.Block(2, 4))]
    latency = Latency(
        table(), lambda p, x: mobilenet(p, x, pointwise), shapes, image, rules=rules, steps=2
    )
    latency.total({name: units // 2 for name, units in latency.units.items()})
    latency.total(densities={"pointwise1/kernel": 0.5})
    names = latency.table.entries
    for groups in (4, 2):
        wanted = f"float32[1,4,4,{groups}] float32[3,3,1,{groups}]"
        assert any(wanted in n and f"feature_group_count={groups}" in n for n in names)
    assert sum("Block(2, 4) density=0.5" in name for name in names) == 1


def test_loops_and_branches_take_their_turns():
    def model(params, x):
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, params["stack"])
        return jax.lax.cond(
            x.sum() > 0, lambda x: x @ params["wide"], lambda x: x @ params["narrow"] + 1.0, x
        )

    params = {
        "stack": jnp.ones((3, 4, 4)),
        "wide": jnp.ones((4, 6)),
        "narrow": jnp.ones((4, 6)),
    }
    found = table()
    Latency(found, model, params, jnp.ones((2, 4)))
    times = {
        NOTHING: 0.0,
        "without": 7.0,
        "program": 20.0,
        "float32[4,4]": 2.0,
        "float32[4,6]": 7.0,
    }
    for name in found.entries:
        found.entries[name] = next(time for part, time in times.items() if part in name)
    latency = Latency(found, model, params, jnp.ones((2, 4)))
    assert latency.of("stack") == 6.0
    assert latency.total() == 20.0


def test_what_has_no_time_packed_is_named():
    def model(params, x):
        return x @ params["w"][:3]

    latency = Latency(table(), model, {"w": jnp.ones((4, 8))}, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"part of 'w' of shape \(4, 8\)"):
        latency.total(densities={"w": 0.5})
    with pytest.raises(KeyError, match="no leaf 'v'"):
        latency.of("v")
    with pytest.raises(ValueError, match="is no group of units"):
        latency.total({"w": 3})
    with pytest.raises(ValueError, match="steps=0"):
        Latency(table(), model, {"w": jnp.ones((4, 8))}, jnp.ones((5, 3)), steps=0)
    with pytest.raises(ValueError, match="rounds=0"):
        LatencyTable(rounds=0)


def test_every_turn_of_a_loop_depends_on_the_last():
    w, x = jnp.arange(16.0).reshape(4, 4) / 8, jnp.ones((2, 4))
    loop = Loop(jnp.dot, [x, w])
    loop.turns = 3
    expected = np.array(x)
    for _ in range(3):
        expected[0, 0] = (expected @ np.array(w))[0, 0] / 8
    np.testing.assert_allclose(loop(), expected, rtol=1e-6)


def test_times_are_those_beside_the_dense_program():
    seconds = {"one": [4.0, 8.0], "beside": [2.0, 4.0], NOTHING: [0.0, 0.0]}
    found, now = table(), {"at": 0.0}
    found.clock = lambda: now["at"]
    found.entries = {"dense": 6.0, NOTHING: 1.0}
    # A turn is one call, as each takes long; before it come the one that compiles and the tries.
    rounds = {name: [0.0] * (1 + TRIES) + times for name, times in seconds.items()}

    def spend(name):
        def run():
            now["at"] += rounds[name].pop(0)
            time.sleep(TURN)
            return jnp.ones(1)

        return run

    found.measure({"one": lambda: spend("one")}, ("dense", spend("beside")))
    # Twice as long as the dense program, which once took 7 with the call.
    assert found["one"] == pytest.approx(14.0, abs=0.1)


def test_a_report_has_every_network_beside_dense():
    latency = Latency(table(), mlp, PARAMS, X)
    half = {"up": PARAMS["up"][:, :8], "down": PARAMS["down"][:8]}
    run = jax.jit(mlp)
    networks = {"half": Network(lambda: run(half, X), {NEURONS: 8})}
    report = latency_report(latency, networks, rounds=3)
    assert [row.name for row in report.rows] == ["dense", "half"]
    assert report.rows[1].predicted == latency.total({NEURONS: 8})
    dense, other = report.rows
    # Every turn ticks once.
    assert other.beside_dense == pytest.approx(latency.dense * other.measured / dense.measured)
    assert json.loads(json.dumps(report.to_dict()))["rows"][1]["name"] == "half"
    with pytest.raises(ValueError, match="'dense' is the whole network"):
        latency_report(latency, {"dense": networks["half"]})
    with pytest.raises(ValueError, match="rounds=0"):
        latency_report(latency, networks, rounds=0)


def test_errors_are_predicted_over_measured():
    report = LatencyReport((LatencyRow("dense", 2.0, 4.0, 2.0), LatencyRow("half", 1.2, 2.0, 1.0)))
    assert [row.error for row in report.rows] == pytest.approx([-0.5, -0.4])
    assert (report.worst, report.worst_beside_dense) == pytest.approx((0.5, 0.2))
    assert "-40.0%" in str(report) and "+20.0%" in str(report)
