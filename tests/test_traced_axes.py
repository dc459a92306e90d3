"""Rules whose axes come from the trace, or contradict it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsparse as js
from jaxsparse.packed.packing import pack_params
from jaxsparse.patterns.rules import resolve

BLOCK = js.Block(4, 16)


def axes(rule):
    return rule.in_axis, rule.out_axis, rule.batch_axis


def attend(params, x):
    return jnp.einsum("btnh,nhd->btd", x, params["attention/out"]["w"])


GEMMA, HEADS = {"attention/out": {"w": jnp.ones((4, 8, 32))}}, jnp.ones((2, 3, 4, 8))


def test_every_leaf_gets_a_rule_of_its_own():
    params = {
        "a": {"w": jnp.ones((8, 16))},
        "b.c": {"w": jnp.ones((32, 16))},  # (out, in)
        "stack": {"w": jnp.ones((3, 16, 16))},
        "norm": {"w": jnp.ones(32)},
    }

    def model(params, x):
        x = lax.scan(lambda x, w: (x @ w, None), x @ params["a"]["w"], params["stack"]["w"])[0]
        return x @ params["b.c"]["w"].T * params["norm"]["w"]

    rules = js.read_axes([js.Rule(".*w", js.NM(2, 4, pad=True))], model, params, jnp.ones((2, 8)))
    assert [(rule.path, *axes(rule)) for rule in rules] == [
        ("a/w", 0, 1, ()),
        (r"b\.c/w", 1, 0, ()),
        ("norm/w", None, None, None),
        ("stack/w", 1, 2, 0),
    ]
    specs = resolve(rules, params)
    assert specs["b.c/w"].view.matrix_shape == (16, 32)
    assert specs["stack/w"].view.batch_shape == (3,)


def test_the_rules_of_any_framework_keep_its_model_packed():
    """(out, in) weights and convolutions as Equinox and torch have them."""
    params = {
        "conv": {"weight": jax.random.normal(jax.random.key(0), (16, 8, 3, 3))},
        "linear": {"weight": jax.random.normal(jax.random.key(1), (32, 16))},
    }

    def model(params, x):
        x = lax.conv_general_dilated(x, params["conv"]["weight"], (1, 1), "SAME")
        return jnp.tanh(x).mean((2, 3)) @ params["linear"]["weight"].T

    x = jax.random.normal(jax.random.key(2), (2, 8, 5, 5))
    rules = [js.Rule(".*weight", BLOCK, sparsity=0.5)]
    with pytest.raises(ValueError, match=r"'conv/weight' of shape .*js\.read_axes"):
        js.compute_masks(params, rules)
    rules = js.read_axes(rules, model, params, x)
    masks = js.compute_masks(params, rules)
    run = js.sparsify(model, on_dense="error")
    expected = model(js.mask_params(params, masks), x)
    np.testing.assert_allclose(run(pack_params(params, masks, rules), x), expected, rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    [nm] = js.read_axes([js.Rule("linear/weight", js.NM(2, 4))], model, params, x)
    mask = np.asarray(js.compute_masks(params, [nm])["linear/weight"])
    assert (mask.reshape(32, 4, 4).sum(-1) == 2).all()


def test_an_nnx_module_and_its_state():
    model = nnx.Sequential(nnx.LinearGeneral(8, (4, 4), rngs=nnx.Rngs(0)))
    rules = [js.Rule("layers/0/kernel", BLOCK)]
    [rule] = js.read_axes(rules, lambda m, x: m(x), model, jnp.ones((2, 8)))
    graph, state = nnx.split(model)
    [same] = js.read_axes(rules, lambda s, x: nnx.merge(graph, s)(x), state, jnp.ones((2, 8)))
    assert axes(rule) == axes(same) == (0, (1, 2), ())


@pytest.mark.parametrize(
    "given",
    [{"in_axis": (0, 1), "out_axis": 2}, {"in_axis": (1, 0), "out_axis": -1, "batch_axis": ()}],
)
def test_axes_that_a_rule_states_stay(given):
    [rule] = js.read_axes([js.Rule(".*w", BLOCK, **given)], attend, GEMMA, HEADS)
    assert axes(rule) == axes(js.Rule("w", BLOCK, **given))


def test_axes_that_the_model_contradicts():
    rules = [js.Rule(".*w", BLOCK, batch_axis=0)]
    with pytest.raises(ValueError) as error:
        js.read_axes(rules, attend, GEMMA, HEADS)
    words = str(error.value)
    assert "'attention/out/w' of shape (4, 8, 32)" in words
    assert "says in_axis=1, out_axis=2, batch_axis=0" in words
    assert "dot_general sums over in_axis=(0, 1), out_axis=2" in words


def test_a_stack_whose_kernels_multiply_one_input_may_be_a_batch():
    params, x = {"w": jnp.ones((3, 8, 16))}, jnp.ones((2, 8))

    def model(params, x):
        return jax.vmap(lambda w: x @ w)(params["w"])

    for given in {}, {"batch_axis": 0}:
        [rule] = js.read_axes([js.Rule("w", BLOCK, **given)], model, params, x)
        assert axes(rule) == ((None, None, 0) if given else (1, (0, 2), ()))


def test_a_tied_embedding_goes_by_its_head():
    params = {"embedding": jnp.ones((32, 16))}

    def lookup(params, ids):
        return params["embedding"][ids]

    def tied(params, ids):
        return lookup(params, ids) @ params["embedding"].T

    for model in lookup, tied:
        [rule] = js.read_axes([js.Rule("embedding", BLOCK)], model, params, jnp.arange(3))
        assert axes(rule) == (1, 0, ())
    # A lookup can be had from either side.
    other = js.Rule("embedding", BLOCK, in_axis=0, out_axis=1)
    [rule] = js.read_axes([other], lookup, params, jnp.arange(3))
    assert axes(rule) == (0, 1, None)
    with pytest.raises(ValueError, match="sums over in_axis=1, out_axis=0"):
        js.read_axes([other], tied, params, jnp.arange(3))


def test_products_that_contradict_one_another():
    params, x = {"w": jnp.ones((8, 16))}, jnp.ones((2, 8))

    def autoencoder(params, x):
        return jnp.tanh(x @ params["w"]) @ params["w"].T

    with pytest.raises(ValueError, match=r"in_axis=0, out_axis=1 and .*in_axis=1.*state in its"):
        js.read_axes([js.Rule("w", BLOCK)], autoencoder, params, x)
    for given in {"in_axis": 0, "out_axis": 1}, {"in_axis": 1, "out_axis": 0}:
        [rule] = js.read_axes([js.Rule("w", BLOCK, **given)], autoencoder, params, x)
        assert axes(rule)[:2] == tuple(given.values())
    # Single weights lie where they lie, whichever side sums.
    [rule] = js.read_axes([js.Rule("w", js.Unstructured())], autoencoder, params, x)
    assert axes(rule) == (None, None, None)


def test_half_an_axis():
    params, x = {"w": jnp.ones((8, 16))}, jnp.ones((2, 2))

    def model(params, x):
        return jnp.einsum("bi,ijn->bjn", x, params["w"].reshape(2, 4, 16))

    with pytest.raises(ValueError, match=r"sums over part of the axes \(0,\)"):
        js.read_axes([js.Rule("w", BLOCK)], model, params, x)


def test_a_weight_that_no_product_meets():
    params = {"kernel": jnp.ones((8, 16)), "other": jnp.ones((2, 8, 16))}

    def model(params, x):
        return x + params["kernel"].sum()

    [rule] = js.read_axes([js.Rule("kernel", BLOCK)], model, params, jnp.ones(3))
    assert axes(rule) == (None, None, None)
    with pytest.raises(ValueError, match=r"'other' of shape .* does not tell"):
        js.read_axes([js.Rule("other", BLOCK)], model, params, jnp.ones(3))
    with pytest.raises(ValueError, match="'typo' matches no leaf"):
        js.read_axes([js.Rule("typo", BLOCK)], model, params, jnp.ones(3))
