"""Every program that `sparsify` runs gives what it gives on dense weights, and stays packed."""

import warnings

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from jaxsparse.packed.base import is_packed
from jaxsparse.packed.packing import merge_packed, pack, pack_params, split_packed, unpack_params
from jaxsparse.patterns.base import Unstructured
from jaxsparse.patterns.groups import Block
from jaxsparse.patterns.nm import NM
from jaxsparse.patterns.rules import Rule
from jaxsparse.products.sparsify import sparsify
from jaxsparse.trees import leaves_by_path

PATTERNS = [Block(4, 16), Unstructured(), NM(2, 4)]
every_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=["block", "bitmap", "nm"])


def prune(leaf, pattern, in_axis=None, out_axis=None, batch_axis=None):
    """Zeroes about half of a leaf, in a way that every pattern can store."""
    from jaxsparse.patterns.views import view_of

    view = view_of("kernel", leaf.shape, in_axis, out_axis, batch_axis)
    matrix = np.array(view.matrix(jnp.asarray(leaf)))
    matrix[..., np.arange(matrix.shape[-2]) % 4 > 1, :] = 0
    return view.leaf(jnp.asarray(matrix))


def weight(shape, pattern, seed=0, **axes):
    dense = prune(jax.random.normal(jax.random.key(seed), shape), pattern, **axes)
    return dense, pack(dense, pattern, **axes)


def same(function, dense, packed, *args, grads=True):
    """The outputs and gradients agree, and nothing was made dense."""
    run = sparsify(function, on_dense="error")
    expected = function(dense, *args)
    for call in (run, jax.jit(run)):
        actual = call(packed, *args)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), actual, expected
        )
        assert jax.tree.map(lambda a: a.dtype, actual) == jax.tree.map(lambda a: a.dtype, expected)
    if grads:
        values, structure = split_packed(packed)

        def packed_loss(values):
            return _total(run(merge_packed(values, structure), *args))

        found = merge_packed(jax.grad(packed_loss)(values), structure)
        wanted = jax.grad(lambda d: _total(function(d, *args)))(dense)
        kept = unpack_params(merge_packed(jax.tree.map(jnp.ones_like, values), structure))
        jax.tree.map(
            lambda f, w, k: np.testing.assert_allclose(f, w * (k != 0), rtol=1e-3, atol=1e-3),
            unpack_params(found),
            wanted,
            kept,
        )


def _total(outputs):
    return sum(jnp.sum(jnp.sin(o)) for o in jax.tree.leaves(outputs))


PROGRAMS = {
    "dot": lambda w, x: x @ w,
    "left": lambda w, x: (w.T @ x.T).T,
    "transposed": lambda w, x: (x @ w) @ w.T,
    "cast": lambda w, x: x.astype(jnp.float32) @ w.astype(jnp.float32),
    "scaled": lambda w, x: x @ (-(2.0 * w) / 3.0),
    "reshaped": lambda w, x: jnp.einsum("bk,khd->bhd", x, w.reshape(16, 4, 8)),
    "split inputs": lambda w, x: jnp.einsum(
        "bij,ijn->bn", x.reshape(-1, 2, 8), w.reshape(2, 8, 32)
    ),
    "other order": lambda w, x: jnp.einsum("bji,ijn->bn", x.reshape(-1, 8, 2), w.reshape(2, 8, 32)),
    "unit axes": lambda w, x: x @ w[None, :, None][0, :, 0],
    "jit": lambda w, x: jax.jit(lambda w, x: x @ w)(w, x),
    "remat": lambda w, x: jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(w, x),
    "stop gradient of x": lambda w, x: lax.stop_gradient(x) @ w,
    "vmap": lambda w, x: jax.vmap(lambda x: x @ w)(x),
    "scan over x": lambda w, x: lax.scan(lambda c, x: (c + 1, x @ w), 0, x)[1],
    "while": lambda w, x: lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ w @ w.T), x),
    "cond": lambda w, x: lax.cond(jnp.sum(x) > 0, lambda w, x: x @ w, lambda w, x: -x @ w, w, x),
    "grad inside": lambda w, x: jax.grad(lambda x: jnp.sum(jnp.sin(x @ w)))(x),
    "custom gradient": lambda w, x: jax.nn.relu(x @ w),
    "one of two": lambda w, x: jnp.concatenate([x @ w, jnp.ones((4, 1))], 1),
}


@every_pattern
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name, pattern):
    dense, packed = weight((16, 32), pattern)
    x = jax.random.normal(jax.random.key(1), (4, 16))
    loops = name == "while"  # has no reverse mode, dense or packed
    same(PROGRAMS[name], dense, packed, x, grads=not loops)


STACKS = {
    "scan": lambda w, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0],
    "unrolled": lambda w, x: x @ w[0] @ w[1] @ w[2],
    "traced index": lambda w, x: x @ lax.dynamic_index_in_dim(w, jnp.int32(1), 0, keepdims=False),
    "vmap": lambda w, x: jax.vmap(lambda w: x @ w)(w),
    "einsum": lambda w, x: jnp.einsum("bk,ekn->ebn", x, w),
}


@every_pattern
@pytest.mark.parametrize("name", STACKS)
def test_stacked_kernels(name, pattern):
    dense, packed = weight((3, 16, 16), pattern, batch_axis=0)
    same(STACKS[name], dense, packed, jax.random.normal(jax.random.key(1), (4, 16)))


@every_pattern
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (3, 2)])
@pytest.mark.parametrize("strides", [1, 2])
def test_convolutions(pattern, kernel, strides):
    layer = linen.Conv(16, kernel, strides)
    x = jax.random.normal(jax.random.key(1), (2, 6, 7, 8))
    params = layer.init(jax.random.key(0), x)
    kernel = prune(params["params"]["kernel"], pattern, in_axis=-2)
    dense = {"params": params["params"] | {"kernel": kernel}}
    packed = {"params": params["params"] | {"kernel": pack(kernel, pattern, in_axis=-2)}}
    same(lambda p, x: layer.apply(p, x), dense, packed, x)


def test_channels_first_convolution():
    dense, packed = weight((16, 8, 3), Block(4, 16), in_axis=1, out_axis=0)
    x = jax.random.normal(jax.random.key(1), (2, 8, 10))
    same(lambda w, x: lax.conv_general_dilated(x, w, (2,), "SAME"), dense, packed, x)
    one = weight((16, 8, 1), Block(4, 16), in_axis=1, out_axis=0)
    same(lambda w, x: lax.conv_general_dilated(x, w, (1,), "SAME"), *one, x)
    same(
        lambda w, x: lax.conv_general_dilated(
            x, w, (1,), "SAME", dimension_numbers=("NCH", "OIH", "NHC")
        ),
        *one,
        x,
    )


class Model(linen.Module):
    """A tied embedding, attention, stacked layers and an einsum, in linen."""

    @linen.compact
    def __call__(self, tokens):
        embed = linen.Embed(32, 16)
        x = embed(tokens)
        x = x + linen.MultiHeadDotProductAttention(num_heads=4, name="attention")(x, x)
        layers = linen.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        x, _ = layers(name="layers")(x, None)
        x = linen.Einsum((16, 4, 4), "btd,dhk->bthk", use_bias=False)(x).reshape(x.shape)
        return embed.attend(linen.LayerNorm()(x))


class Layer(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return x + linen.Dense(16)(jax.nn.gelu(linen.Dense(32, dtype=jnp.float32)(x))), None


@every_pattern
def test_a_linen_model_with_no_change(pattern):
    model, tokens = Model(), jnp.arange(10).reshape(2, 5)
    params = model.init(jax.random.key(0), tokens)
    rules = [
        Rule(r"params/attention/(query|key|value|out)/kernel", pattern, 0.5),
        Rule(r"params/layers/.*/kernel", pattern, 0.5, batch_axis=0),
        Rule(r"params/Einsum_0/kernel", pattern, 0.5, in_axis=0, out_axis=(1, 2)),
        Rule(r"params/Embed_0/embedding", pattern, 0.5, in_axis=1, out_axis=0),
    ]
    check_model(lambda p, t: model.apply(p, t), params, rules, tokens, count=8)


class Block_(nnx.Module):
    """The same in nnx."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(32, 16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)
        self.einsum = nnx.Einsum("btd,dhk->bthk", (16, 4, 4), rngs=rngs)
        self.conv = nnx.Conv(16, 16, (3,), rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(x)
        x = x + self.down(jax.nn.gelu(self.up(x)))
        x = self.conv(x) + self.einsum(x).reshape(x.shape)
        return self.embed.attend(x)


@every_pattern
def test_an_nnx_model_with_no_change(pattern):
    tokens = jnp.arange(10).reshape(2, 5)
    graph, state = nnx.split(Block_(nnx.Rngs(0)), nnx.Param)
    rules = [
        Rule(r"attention/(query|key|value|out)/kernel", pattern, 0.5),
        Rule(r"(up|down|conv)/kernel", pattern, 0.5),
        Rule(r"einsum/kernel", pattern, 0.5, in_axis=0, out_axis=(1, 2)),
        Rule(r"embed/embedding", pattern, 0.5, in_axis=1, out_axis=0),
    ]
    check_model(lambda s, t: nnx.merge(graph, s)(t), state, rules, tokens, count=9)


def check_model(apply, params, rules, tokens, count):
    from jaxsparse.pruning.masking import mask_params
    from jaxsparse.pruning.prune import compute_masks

    masks = compute_masks(params, rules)
    dense = mask_params(params, masks)
    packed = pack_params(params, masks, rules)
    leaves = jax.tree.leaves(packed, is_leaf=is_packed)
    assert sum(map(is_packed, leaves)) == count
    restored = leaves_by_path(unpack_params(packed))
    for path, leaf in leaves_by_path(dense).items():
        np.testing.assert_array_equal(restored[path], leaf)
    run = sparsify(apply, on_dense="error")
    np.testing.assert_allclose(run(packed, tokens), apply(dense, tokens), rtol=1e-3, atol=1e-4)
    values, structure = split_packed(packed)
    grads = jax.grad(lambda v: jnp.sum(run(merge_packed(v, structure), tokens) ** 2))(values)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_what_has_to_be_dense_is_named_once():
    dense, packed = weight((16, 32), Block(4, 16))
    params, x = {"layer": {"kernel": packed}}, jnp.ones((4, 16))

    def norm(params, x):
        kernel = params["layer"]["kernel"]
        return x @ kernel, jnp.sum(kernel**2) + jnp.sum(kernel**2)

    with pytest.warns(
        UserWarning, match=r"layer/kernel BlockSparse.* dense for (square|integer_pow)"
    ) as seen:
        outputs = sparsify(norm)(params, x)
    assert len(seen) == 1
    np.testing.assert_allclose(outputs[1], 2 * jnp.sum(dense**2), rtol=1e-5)
    with pytest.raises(ValueError, match="layer/kernel"):
        sparsify(norm, on_dense="error")(params, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(norm, on_dense="ignore")(params, x)


def test_reshapes_across_the_weight_are_dense_and_right():
    dense, packed = weight((16, 32), Block(4, 16))
    x = jnp.ones((4, 64))
    run = sparsify(lambda w, x: x @ w.reshape(64, 8), on_dense="ignore")
    np.testing.assert_allclose(run(packed, x), x @ dense.reshape(64, 8), rtol=1e-4, atol=1e-5)
    run = sparsify(
        lambda w: w.reshape(4, 4, 32).transpose(2, 0, 1).reshape(8, 64), on_dense="ignore"
    )
    np.testing.assert_array_equal(
        run(packed), dense.reshape(4, 4, 32).transpose(2, 0, 1).reshape(8, 64)
    )


def test_what_comes_back_unchanged_stays_packed():
    _, packed = weight((16, 32), Block(4, 16))
    result = sparsify(lambda w, x: {"w": w, "y": x @ w})(packed, jnp.ones((4, 16)))
    assert is_packed(result["w"])


def test_half_precision_and_int8():
    dense, packed = weight((16, 32), Block(4, 16))
    x = jnp.ones((4, 16), jnp.bfloat16)
    y = sparsify(lambda w, x: x @ w.astype(x.dtype), on_dense="error")(packed, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        y.astype(jnp.float32), x.astype(jnp.float32) @ dense, rtol=0.02, atol=0.1
    )
    small = pack(dense, Block(4, 16), dtype=jnp.int8)
    y = sparsify(lambda w, x: x @ w, on_dense="error")(small, x.astype(jnp.float32))
    np.testing.assert_allclose(y, x.astype(jnp.float32) @ small.todense(), rtol=1e-4, atol=1e-4)


def test_unknown_options():
    with pytest.raises(TypeError, match=r"dict is no function; sparsify\(model\.apply\)"):
        sparsify({})  # pyright: ignore
    with pytest.raises(ValueError, match="on_dense='loud'"):
        sparsify(lambda x: x, on_dense="loud")
    with pytest.raises(ValueError, match="'mkl' is not one of"):
        sparsify(lambda x: x, implementation="mkl")


GUESSES = {  # what the rule says, the program, and what the warning tells
    "batch": (
        {"batch_axis": 0},
        lambda w, x: jnp.einsum("bnh,nhd->bd", x.reshape(4, 4, 4), w),
        "sums over other axes; with in_axis=(0, 1), out_axis=2 in its rule it would stay packed",
    ),
    "out": (
        {"in_axis": 1, "out_axis": (0, 2)},
        lambda w, x: jnp.einsum("bnh,nhd->bd", x.reshape(4, 4, 4), w),
        "sums over other axes; with in_axis=(0, 1), out_axis=2 in its rule it would stay packed",
    ),
    "part": (
        {"in_axis": (0, 1), "out_axis": 2},
        lambda w, x: jnp.einsum("bn,nhd->bhd", x[:, :2], w.reshape(2, 8, 32)),
        "sums over part of the axes (0,)",
    ),
    "scanned": (
        {"in_axis": (0, 1), "out_axis": 2},
        lambda w, x: lax.scan(lambda c, w: (c, x[:, :4] @ w), 0, w)[1],
        "scan, which takes axis 0 apart; with the axes that js.read_axes gives its rule it would",
    ),
    "indexed": (
        {"in_axis": (0, 1), "out_axis": 2},
        lambda w, x: x[:, :4] @ w[1],
        "slice, which takes axis 0 apart; with the axes that js.read_axes gives its rule it would",
    ),
}


@pytest.mark.parametrize("name", GUESSES)
def test_a_guess_that_a_product_contradicts_is_named_with_its_cure(name):
    axes, program, words = GUESSES[name]
    dense, packed = weight((4, 4, 32), Block(4, 16), **axes)
    x = jnp.ones((4, 16))
    run = sparsify(lambda p, x: program(p["w"], x) + program(p["w"], x))
    with pytest.warns(UserWarning, match=r"w BlockSparse\[4x16.*dense for") as seen:
        y = run({"w": packed}, x)
    [warning] = seen  # once for every weight
    assert words in str(warning.message)
    np.testing.assert_allclose(y, 2 * program(dense, x), rtol=1e-4, atol=1e-5)


@every_pattern
def test_what_a_loop_hands_on_as_it_came_stays_packed(pattern):
    dense, packed = weight((16, 16), pattern)
    x = jax.random.normal(jax.random.key(1), (4, 16))

    def scan(w, x):
        return lax.scan(lambda c, _: ((jnp.tanh(c[0] @ c[1]), c[1]), None), (x, w), None, 3)[0]

    def loop(w, x):
        return lax.fori_loop(0, 3, lambda i, c: (jnp.tanh(c[0] @ c[1]), c[1]), (x, w))

    for program in scan, loop:
        x3, w = sparsify(program, on_dense="error")(packed, x)
        assert is_packed(w)
        np.testing.assert_allclose(x3, program(dense, x)[0], rtol=1e-4, atol=1e-4)


def test_a_loop_over_a_number_of_steps_that_an_export_leaves_open():
    dense, packed = weight((16, 16), Block(4, 16))

    def recur(w, x):
        return lax.scan(lambda c, x: (jnp.tanh(x + c @ w), c), jnp.zeros(16), x)

    shape = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("steps"), 16), jnp.float32)
    exported = jax.export.export(jax.jit(sparsify(recur, on_dense="error")))(packed, shape)
    for steps in 1, 5:
        x = jax.random.normal(jax.random.key(1), (steps, 16))
        got, expected = exported.call(packed, x), recur(dense, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)
