"""Bytes of parameters against what packing them takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.allocation import Bytes
from tests.allocation.costs_models import mobilenet, mobilenet_params

RNG = np.random.default_rng(0)


def model(params, x):
    x = jnp.tanh(params["table"][x] @ params["up"] + params["bias"])
    return jnp.einsum("bk,ekn->ben", x, params["down"])


PARAMS = {
    "table": jnp.ones((20, 6)),
    "up": jnp.ones((6, 64), jnp.bfloat16),
    "bias": jnp.ones(64),
    "down": jnp.ones((2, 64, 48)),
}
IDS = jnp.zeros(5, int)
RULES = {
    "block": [js.Rule("up|down", js.Block(2, 16))],
    "single": [js.Rule("up|down", js.Unstructured())],
    "stack": [js.Rule("down", js.Block(4, 16), in_axis=1, out_axis=2, batch_axis=0)],
    "channel": [js.Rule("down", js.Channel(-2))],
    "nothing": [],
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("density", [0.5, 0.125])
def test_a_leaf_takes_what_its_report_says(name, density):
    rules = RULES[name]
    stored = Bytes(model, PARAMS, IDS, rules=rules)
    tied = rules or [js.Rule("up|down", js.Unstructured())]
    tied = js.read_axes(tied, model, PARAMS, IDS)
    random = jax.tree.map(lambda w: jnp.asarray(RNG.normal(size=w.shape), w.dtype), PARAMS)
    masks = js.compute_masks(random, tied, sparsity=1 - density)
    report = js.report(random, masks, rules=tied)
    densities = {path: density for path in masks}
    # Channels that are gone altogether leave runs of zeros, which drawn places do not.
    rows = {row.path: row.stored_bytes for row in report.leaves}
    for path in PARAMS:
        assert stored.of(path, densities=densities) == pytest.approx(rows[path], rel=0.02)
    assert stored.total(densities=densities) == sum(
        stored.of(path, densities=densities) for path in PARAMS
    )


def test_widths_leave_smaller_arrays():
    stored = Bytes(model, PARAMS, IDS)
    (name,) = stored.units
    assert stored.total() == sum(leaf.nbytes for leaf in PARAMS.values())
    assert stored.of("down", {name: 16}) == 2 * 16 * 48 * 4
    assert stored.total({name: 16}) == 480 + 6 * 16 * 2 + 64 + 2 * 16 * 48 * 4
    half = stored.total({name: 16}, {"down": 0.5})
    assert half < stored.total({name: 16})
    assert stored.of("table", {name: 1}) == 480


def test_bytes_of_mobilenet_are_those_of_its_shapes():
    params, image = mobilenet_params(), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    stored = Bytes(mobilenet, params, image)
    assert stored.total() == sum(4 * leaf.size for leaf in jax.tree.leaves(params))


def test_densities_that_a_pattern_does_not_have_are_named():
    stored = Bytes(model, PARAMS, IDS, rules=[js.Rule("down", js.NM(2, 4))])
    assert stored.of("down", densities={"down": 0.5}) < 0.6 * stored.of("down")
    with pytest.raises(ValueError, match=r"'down' is NM\(2, 4\), which keeps 0.5, not 0.3"):
        stored.total(densities={"down": 0.3})
    with pytest.raises(ValueError, match="'down' keeps -1"):
        stored.of("down", densities={"down": -1})
    with pytest.raises(KeyError, match="no leaf 'downs'"):
        stored.of("downs")
