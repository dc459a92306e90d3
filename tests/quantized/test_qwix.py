"""Models that qwix quantized: packed, they give every bit that they gave."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxsparse as js
from jaxsparse import jaxprs, quantized

qwix = pytest.importorskip("qwix", reason="qwix is not installed: pip install 'jaxsparse[int8]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it uses Flax's old names

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32))
RULES = [js.Rule(".*/kernel", js.Block(2, 4), sparsity=0.5)]


def settings(method, static):
    return [
        qwix.QuantizationRule(
            weight_qtype="int8",
            act_qtype="int8",
            act_calibration_method=method,
            act_static_scale=static,
        )
    ]


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(4)(linen.relu(linen.Dense(12)(x)))


def packed_products(function, *args):
    found = jaxprs.equations(jax.make_jaxpr(function)(*args))
    dots = [e.primitive.name for e in found]
    return dots.count("sparse_int8_dot"), dots.count("dot_general")


def check(function, params, masks, zero_points):
    """The packed model against the one that was quantized."""
    packed = quantized.pack_codes(params, masks, RULES)
    run = quantized.sparsify(function, on_dense="error", on_float="error")
    # A zero point is multiplied, too, as one row more or as many as x has.
    assert packed_products(run, packed, X) == (4 if zero_points else 2, 0)
    np.testing.assert_array_equal(jax.jit(run)(packed, X), jax.jit(function)(params, X))


@pytest.mark.parametrize(("method", "static"), [("absmax", False), ("minmax", True)])
def test_quantization_aware_training_with_masks_in_force(method, static):
    rules = settings(method, static)
    model = qwix.quantize_model(Linen(), qwix.QtProvider(rules))
    variables = model.init(jax.random.key(0), X)
    params, stats = variables["params"], variables.get("quant_stats", {})
    pruner = js.prune(RULES, schedule=js.one_shot(begin=0))
    tx = js.pruned(optax.adam(1e-2), pruner)
    state = tx.init(params)

    @jax.jit
    def step(params, stats, state):
        def loss(params):
            y, new = model.apply({"params": params, "quant_stats": stats}, X, mutable="quant_stats")
            return jnp.mean((y - 1) ** 2), new.get("quant_stats", {})

        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state_ = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), stats, state_, value

    losses = []
    for _ in range(4):
        params, stats, state, value = step(params, stats, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    masks = js.masks(state)
    for path, mask in masks.items():
        assert mask.mean() == 0.5
        assert not np.asarray(js.leaves_by_path(params)[path])[~np.asarray(mask)].any()

    served = qwix.quantize_model(Linen(), qwix.PtqProvider(rules))
    shapes = jax.eval_shape(served.init, jax.random.key(0), X)["params"]
    codes = qwix.quantize_params(params, shapes, stats)
    check(lambda p, x: served.apply({"params": p}, x), codes, masks, method == "minmax")


def test_post_training_quantization_of_nnx():
    model = nnx.Sequential(
        nnx.Linear(8, 12, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(12, 4, rngs=nnx.Rngs(1))
    )
    state = nnx.state(model, nnx.Param)
    masks = js.compute_masks(state, RULES)
    nnx.update(model, js.mask_params(state, masks))
    served = qwix.quantize_model(model, qwix.PtqProvider(settings("absmax", False)), X)
    graph, codes = nnx.split(served)
    check(lambda s, x: nnx.merge(graph, s)(x), codes, masks, False)


def tree(**changes):
    leaf = {"qvalue": jnp.ones((8, 8), jnp.int8), "scale": jnp.ones((1, 8))} | changes
    return {"up": {"kernel": {"array": leaf}}}


@pytest.mark.parametrize(
    ("params", "masks", "words"),
    [
        (tree(zero_point=jnp.ones((1, 8), jnp.int8)), {}, r"'up/kernel' of shape \(8, 8\) have a"),
        (tree(), {"up/kernel": jnp.eye(8, dtype=bool)}, r"has code 1 at \(0, 1\), which its mask"),
        (tree(), {"up/kernal": jnp.eye(8, dtype=bool)}, "a mask for 'up/kernal', .*'up/kernel'"),
        (tree(qvalue=jnp.ones((8, 8))), {}, "matches no leaf"),
    ],
)
def test_codes_that_cannot_be_packed_are_named(params, masks, words):
    with pytest.raises(ValueError, match=words):
        quantized.pack_codes(params, masks, RULES)
