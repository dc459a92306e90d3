"""Schedules against their formulas, and counts against exact arithmetic."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from members import CountedJit

import jaxsparse as js
from jaxsparse.pruning import schedules

S0, S, BEGIN, END, EVERY = 0.2, 0.9, 10, 45, 8  # T = 4: updates at 10, 18, 26, 34, 42, 45
FORMULAS = {
    "cubic": lambda p: S0 + (S - S0) * (1 - (1 - p) ** 3),
    "linear": lambda p: S0 + (S - S0) * p,
    "cosine": lambda p: S0 + (S - S0) * (1 - math.cos(math.pi * p / 2)),
    "exponential": lambda p: 1 - (1 - S0) * ((1 - S) / (1 - S0)) ** p,
}


def pruned(schedule, step, target, size, limit=1.0):
    share = schedule.share(step, target, size, limit)
    return int(share.high) * 2**32 + int(share.low)


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    schedule = getattr(js, name)(S0, begin=BEGIN, end=END, every=EVERY)
    updates = [t for t in range(60) if schedule.updates_at(t)]
    assert updates == [10, 18, 26, 34, 42, 45]
    sparsity = jax.jit(lambda t: schedule.sparsity(t, S))
    assert float(sparsity(BEGIN - 1)) == 0
    for step in range(BEGIN, 60):
        k = min((step - BEGIN) // EVERY, 4)
        assert float(sparsity(step)) == pytest.approx(FORMULAS[name](k / 4), abs=1e-6)
    assert float(sparsity(END)) == pytest.approx(S, abs=1e-7)


def test_forced_update_at_end_when_the_interval_does_not_divide():
    schedule = js.cubic(begin=0, end=10, every=4)  # T = 2
    assert [t for t in range(20) if schedule.updates_at(t)] == [0, 4, 8, 10]
    assert [float(schedule.progress(t)) for t in (0, 3, 4, 8, 10, 99)] == [0, 0, 0.5, 1, 1, 1]
    traced = jax.jit(schedule.updates_at)
    assert [bool(traced(t)) for t in (8, 9, 10, 11, 12)] == [True, False, True, False, False]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_room_for_an_interval_is_one_shot(name):
    schedule = getattr(js, name)(S0, begin=5, end=7, every=100)
    assert float(schedule.sparsity(4, S)) == 0
    assert float(schedule.sparsity(5, S)) == pytest.approx(S, abs=1e-7)
    shot = js.one_shot(5)
    assert [t for t in range(9) if shot.updates_at(t)] == [5]
    assert pruned(shot, 5, 0.9, 20_000_000) == 18_000_000


def test_constant_goes_on():
    schedule = js.constant(begin=3, every=5)
    assert [t for t in range(20) if schedule.updates_at(t)] == [3, 8, 13, 18]
    assert float(schedule.sparsity(1000, 0.75)) == 0.75


def test_iterative_densities_are_geometric():
    schedule = js.iterative(5, begin=7, every=10)
    assert [t for t in range(100) if schedule.updates_at(t)] == [7, 17, 27, 37, 47]
    for i in range(5):
        density = 1 - float(schedule.sparsity(7 + 10 * i, 0.98))
        assert density == pytest.approx(0.02 ** ((i + 1) / 5), rel=1e-5)
    once = js.iterative(1, begin=2, every=3)
    assert float(once.sparsity(2, 0.9)) == pytest.approx(0.9, abs=1e-7)


@pytest.mark.parametrize("name", [*FORMULAS, "iterative"])
def test_counts_are_exact(name):
    if name == "iterative":
        schedule = js.iterative(5, begin=0, every=10)
    else:
        schedule = getattr(js, name)(begin=0, end=40, every=10)
    for target, size in ((0.9, 20_000_000), (0.7, 10), (0.5, 2**33 + 1), (0.99, 12_345_678_901)):
        for step in (10, 20, 30):
            exact = Fraction(float(np.float32(schedule.sparsity(step, target)))) * size
            assert pruned(schedule, step, target, size) == round(exact)
        assert pruned(schedule, 40, target, size) == round(target * size)
    assert 20_000_000 - pruned(schedule, 40, 0.9, 20_000_000) == 2_000_000


def test_share_is_relative_to_what_the_pattern_can_prune():
    schedule = js.linear(begin=0, end=4, every=1)
    assert [pruned(schedule, t, 0.5, 100, limit=0.5) for t in range(5)] == [0, 25, 50, 75, 100]


def test_given_is_the_sparsity_itself():
    assert pruned(schedules.given(0.25), 0, 0.0, 8) == 2
    traced = jax.jit(lambda s: schedules.given(s).share(3, 0.0, 1000))(jnp.float32(0.75))
    assert int(traced.low) == 750
    assert schedules.is_given(schedules.given(0.5)) and not schedules.is_given(js.one_shot())


def test_a_float_or_traced_schedule_prunes():
    params = {"w": jnp.arange(1.0, 11.0)}

    @CountedJit
    def kept(sparsity):
        tx = js.prune([js.Rule("w", js.Unstructured())], schedule=sparsity)
        return js.masks(tx.update(params, tx.init(params), params)[1])["w"]

    assert kept(jnp.float32(0.3)).tolist() == [False] * 3 + [True] * 7
    assert kept(jnp.float32(0.8)).tolist() == [False] * 8 + [True] * 2
    assert kept.traces == 1
    tx = optax.chain(js.prune([js.Rule("w", js.Unstructured())], schedule=0.5))
    assert int(js.masks(tx.update(params, tx.init(params), params)[1])["w"].sum()) == 5


def test_ramp_is_zero_outside():
    schedule = js.linear(begin=10, end=20, every=1)
    assert [float(schedule.ramp(t)) for t in (0, 9, 10, 20, 30)] == [0] * 5
    assert float(schedule.ramp(15)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: js.cubic(begin=9, end=3), ["begin=9", "end=3"]),
        (lambda: js.cubic(begin=-1, end=3), ["begin=-1"]),
        (lambda: js.linear(begin=0, end=3, every=0), ["every=0"]),
        (lambda: js.cosine(1.0, begin=0, end=3), ["1.0", "[0, 1)"]),
        (lambda: schedules.given(90), ["90", "did you mean 0.9"]),
        (lambda: schedules.given(float("nan")), ["nan"]),
        (lambda: js.iterative(0, every=1), ["levels=0"]),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words)
