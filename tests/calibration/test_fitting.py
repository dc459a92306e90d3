"""Pieces of a pruned model, fitted to the dense one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse.calibration import Part, fit, fit_parts, prune_oneshot, quadratic, wanda

KEYS = jax.random.split(jax.random.key(0), 6)
MIX = jnp.eye(8) + 0.5 * jax.random.normal(KEYS[0], (8, 8))
X = [jax.random.normal(key, (32, 8)) @ MIX for key in KEYS[1:3]]
DENSE = {
    "0": {"mix": jax.random.normal(KEYS[3], (8, 8)) / 3},
    "1": {"up": jax.random.normal(KEYS[4], (8, 16)) / 3,
          "down": jax.random.normal(KEYS[5], (16, 8)) / 4, "gain": jnp.ones(8)},
    "act": jnp.tanh,
}  # fmt: skip


def mix(params, x):
    return x + params["act"](x @ params["0"]["mix"])


def feed(params, x):
    params, act = params["1"], params["act"]
    return x + act((x * params["gain"]) @ params["up"]) @ params["down"]


PARTS = [Part(mix, "0/.*"), Part(feed, "1/.*")]


def model(params, x):
    return feed(params, mix(params, x))


def pruned():
    rules = [js.Rule(".*(mix|up|down)", js.NM(2, 4))]
    return prune_oneshot(model, DENSE, [(x,) for x in X], rules, criterion=wanda())


def test_a_linear_piece_reaches_least_squares_under_its_mask():
    weight = DENSE["0"]["mix"]
    mask = jnp.abs(weight) > 0.25
    run = lambda params, x: x @ params["w"]  # noqa: E731
    params = {"w": weight.astype(jnp.float32)}
    targets = [run(params, x) for x in X]
    found = fit(run, params, {"w": mask}, X, targets, optimizer=optax.adam(0.03), steps=400)
    assert not found.params["w"][~mask].any() and not np.signbit(found.params["w"][~mask]).any()
    problem = quadratic(weight, sum(x.T @ x for x in X), 0.0)
    best = js.calibration.reconstruct(problem, mask, steps=60)
    size = sum(jnp.sum(y**2) for y in targets)
    assert found.after == pytest.approx(float(problem.loss(best) / size), rel=0.02)
    start = problem.loss(jnp.where(mask, weight, 0)) / size
    assert found.before == pytest.approx(float(start), rel=1e-3)


def test_parts_are_fitted_one_after_another_on_pruned_inputs():
    start = pruned()
    seen = {}
    params = fit_parts(
        PARTS, start.params, DENSE, start.masks, X,
        optimizer=optax.adam(0.01), steps=60, on_part=seen.__setitem__,
    )  # fmt: skip
    assert list(seen) == [0, 1] and all(found.after < found.before for found in seen.values())
    for path, mask in start.masks.items():
        leaf = js.leaves_by_path(params)[path]
        assert not leaf[~mask].any()
    assert params["act"] is jnp.tanh
    # The second part's inputs are those of the fitted first one, its targets of the dense second.
    inputs = [mix(params, x) for x in X]
    wanted = [feed(DENSE, x) for x in inputs]
    now = [feed(start.params, x) for x in inputs]
    error = sum(jnp.sum((a - b) ** 2) for a, b in zip(now, wanted, strict=True))
    size = sum(jnp.sum(y**2) for y in wanted)
    assert seen[1].before == pytest.approx(float(error / size), rel=1e-3)

    def change(p):
        return sum(float(jnp.sum((model(p, x) - model(DENSE, x)) ** 2)) for x in X)

    assert change(params) < change(start.params)


def test_only_what_paths_name_is_trained_and_a_step_too_large_loses_nothing():
    start = pruned()
    inputs, targets = X, [feed(DENSE, x) for x in X]
    options = {"paths": "1/down", "steps": 10}
    found = fit(feed, start.params, start.masks, inputs, targets, **options)
    for path, leaf in js.leaves_by_path(start.params).items():
        same = found.params[path.split("/")[0]]
        same = same[path.split("/")[1]] if "/" in path else same
        assert (path == "1/down") != (same is leaf or np.array_equal(same, leaf))
    wild = fit(
        feed, start.params, start.masks, inputs, targets, optimizer=optax.sgd(1e6), **options
    )
    assert wild.after == wild.before
    np.testing.assert_array_equal(wild.params["1"]["down"], start.params["1"]["down"])


def test_states_of_nnx_and_bf16():
    layer = nnx.Linear(8, 8, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    graph, state = nnx.split(layer)
    run = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    masks = {"kernel": jnp.tile(jnp.arange(8)[:, None] % 2 == 0, (1, 8))}
    targets = [run(state, x) for x in X]
    found = fit(run, state, masks, X, targets, optimizer=optax.adam(0.03), steps=40)
    kernel = found.params["kernel"][...]
    assert kernel.dtype == jnp.bfloat16 and not kernel[1::2].any()
    assert found.after < found.before


MASKS = {"0/mix": jnp.ones((8, 8), bool)}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"paths": "nothing"}, "names no leaf of floats"),
        ({"masks": {"2/mix": MASKS["0/mix"]}}, "a mask for '2/mix'"),
        ({"masks": {"0/mix": MASKS["0/mix"][0]}}, r"has shape \(8,\), the leaf \(8, 8\)"),
        ({"inputs": []}, "0 inputs, 2 targets"),
        ({"targets": [x[:, :2] for x in X]}, "of input 0 the function makes shapes"),
        ({"inputs": [X[0], X[1] * jnp.nan]}, "is not finite"),
    ],
    ids=["paths", "mask", "shape", "none", "targets", "nan"],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    call = {"params": DENSE, "masks": MASKS, "inputs": X, "targets": X} | change
    with pytest.raises(ValueError, match=message):
        fit(mix, **call)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"parts": []}, "no parts"),
        ({"batches": []}, "no batches"),
        ({"parts": [*PARTS, Part(mix, "0/.*")]}, r"parts \[0, 2\] all train '0/mix'"),
        ({"dense": DENSE["0"]}, "different structure"),
    ],
    ids=["none", "batches", "twice", "structure"],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    call = {"parts": PARTS, "params": DENSE, "dense": DENSE, "masks": MASKS, "batches": X} | change
    with pytest.raises(ValueError, match=message):
        fit_parts(**call)
