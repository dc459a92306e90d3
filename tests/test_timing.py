"""Programs timed in turn."""

import jax.numpy as jnp
import pytest

from jaxsparse.timing import TRIES, interleave


class Ticks:
    """A clock that goes on by a millisecond whenever it is read."""

    def __init__(self):
        self.read = 0

    def __call__(self):
        self.read += 1
        return self.read / 1e3


def test_rounds_begin_one_run_later_each():
    order = []
    runs = {name: lambda name=name: order.append(name) or jnp.ones(1) for name in "abc"}
    times = interleave(runs, 2, clock=Ticks())
    assert order == list("bcacababc")
    assert times == {name: [pytest.approx(1e-3)] * 2 for name in "abc"}


def test_a_turn_is_filled_with_calls_whose_mean_counts():
    calls = []
    times = interleave({"one": lambda: calls.append(1) or jnp.ones(1)}, 1, turn=1.0, clock=Ticks())
    assert times["one"] == [pytest.approx(1e-3 / (len(calls) - 1 - TRIES))] and len(calls) > 7
