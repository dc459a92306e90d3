"""Ranges of what weights meet: against those of the same values by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.calibration import minmax, moving_average, observe, percentile


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {"up": jnp.asarray(numbers(8, 12)), "down": jnp.asarray(numbers(12, 4, seed=1))}
BATCHES = [(numbers(5, 8, seed=2),), (3 * numbers(5, 8, seed=3),)]


def model(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def ranges(reducer):
    states = None
    for batch in BATCHES:
        _, states = observe(model, PARAMS, *batch, reducer=reducer, states=states)
    return {site.path: (float(s["low"]), float(s["high"])) for site, s in states.items()}


def hidden(x):
    return np.maximum(x @ np.asarray(PARAMS["up"]), 0)


def test_ranges_of_all_batches():
    found = ranges(minmax())
    xs = np.concatenate([x for (x,) in BATCHES])
    np.testing.assert_allclose(found["up"], (xs.min(), xs.max()), rtol=1e-6)
    np.testing.assert_allclose(found["down"], (0, hidden(xs).max()), rtol=1e-5)


def test_a_moving_average_of_ends():
    (one,), (two,) = BATCHES
    expected = [0.75 * f(one) + 0.25 * f(two) for f in (np.min, np.max)]
    np.testing.assert_allclose(ranges(moving_average(0.75))["up"], expected, rtol=1e-5)


def test_a_percentile_is_the_mean_of_quantiles():
    share = 0.9
    expected = [np.mean([np.quantile(x, q) for (x,) in BATCHES]) for q in (1 - share, share)]
    np.testing.assert_allclose(ranges(percentile(share))["up"], expected, rtol=1e-5)
    every = [np.mean([f(x) for (x,) in BATCHES]) for f in (np.min, np.max)]
    np.testing.assert_allclose(ranges(percentile(1.0))["up"], every, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: moving_average(1.0), "decay=1.0 is not in"),
        (lambda: moving_average(float("nan")), "decay=nan"),
        (lambda: percentile(0.5), "share=0.5 is not in"),
    ],
)
def test_bad_settings_of_ranges(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("reducer", [minmax(), moving_average(), percentile()])
def test_nan_reaches_the_range(reducer):
    x = np.full((2, 8), np.nan, np.float32)
    _, states = observe(model, PARAMS, x, reducer=reducer, paths="up")
    [state] = states.values()
    assert np.isnan(state["low"]) and np.isnan(state["high"])
