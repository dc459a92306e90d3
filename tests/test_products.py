"""Which axes the products of a program sum over, against tables and against probing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from jaxsparse.products.reading import products

RNGS = nnx.Rngs(0)
IMAGE, TOKENS, IDS = jnp.ones((1, 6, 6, 8)), jnp.ones((2, 5, 8)), jnp.ones((2, 3), int)


def found(fn, params, *args):
    """By path, all (in, out, batch) of the products."""
    axes = {}
    for product in products(fn, params, *args):
        assert product.sums and not product.partial
        axes.setdefault(product.path, set()).add(
            (product.in_axis, product.out_axis, product.batch_axis)
        )
    return axes


def call(module, *args):
    return module(*args)


LAYERS = {  # every kernel: in, out, batch
    "Linear": (nnx.Linear(8, 4, rngs=RNGS), TOKENS, ((0,), (1,), ())),
    "LinearGeneral out": (nnx.LinearGeneral(8, (2, 4), rngs=RNGS), TOKENS, ((0,), (1, 2), ())),
    "LinearGeneral in": (
        nnx.LinearGeneral((5, 8), 4, axis=(-2, -1), rngs=RNGS), TOKENS, ((0, 1), (2,), ()),
    ),
    "LinearGeneral batch": (
        nnx.LinearGeneral(8, 4, batch_axis={0: 2}, rngs=RNGS), TOKENS, ((1,), (2,), (0,)),
    ),
    "Einsum": (
        nnx.Einsum("btd,sdhk->sbthk", (3, 8, 2, 4), rngs=RNGS), TOKENS, ((1,), (0, 2, 3), ()),
    ),
    "Conv": (nnx.Conv(8, 4, (3, 3), rngs=RNGS), IMAGE, ((0, 1, 2), (3,), ())),
    "Conv 1x1": (nnx.Conv(8, 4, (1, 1), rngs=RNGS), IMAGE, ((0, 1, 2), (3,), ())),
    "depthwise": (
        nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=RNGS), IMAGE, ((0, 1, 2), (3,), ()),
    ),
    "ConvTranspose": (nnx.ConvTranspose(8, 4, (2, 2), rngs=RNGS), IMAGE, ((0, 1, 2), (3,), ())),
    "ConvTranspose flipped": (
        nnx.ConvTranspose(8, 4, (2, 2), transpose_kernel=True, rngs=RNGS), IMAGE,
        ((0, 1, 3), (2,), ()),
    ),
    "LSTM": (nnx.RNN(nnx.LSTMCell(8, 4, rngs=RNGS)), TOKENS, ((0,), (1,), ())),
    "GRU": (nnx.RNN(nnx.GRUCell(8, 4, rngs=RNGS)), TOKENS, ((0,), (1,), ())),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_flax(name):
    module, x, expected = LAYERS[name]
    axes = {path: seen for path, seen in found(call, module, x).items() if "kernel" in path}
    kernels = [path for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))]
    assert len(axes) == sum(path[-1] == "kernel" for path in kernels)
    assert all(seen == {expected} for seen in axes.values()), axes


class Stack(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = x + self.param("positions", linen.initializers.normal(), (5, 8))
        layers = linen.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = layers(name="layers")(x, None)
        x = linen.MultiHeadDotProductAttention(2)(x)
        x = linen.WeightNorm(linen.Dense(8, name="normed"))(x)
        return linen.DenseGeneral((4, 2), batch_dims=(0,))(x)


class Layer(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return x + linen.remat(linen.Dense)(8, name="dense")(linen.LayerNorm()(x)), None


def test_a_linen_model():
    variables = jax.eval_shape(Stack().init, jax.random.key(0), TOKENS)
    axes = found(Stack().apply, variables, TOKENS)
    attention = "params/MultiHeadDotProductAttention_0"
    expected = {
        "params/layers/dense/kernel": ((1,), (2,), (0,)),
        f"{attention}/query/kernel": ((0,), (1, 2), ()),
        f"{attention}/key/kernel": ((0,), (1, 2), ()),
        f"{attention}/value/kernel": ((0,), (1, 2), ()),
        f"{attention}/out/kernel": ((0, 1), (2,), ()),
        "params/normed/kernel": ((0,), (1,), ()),
        "params/WeightNorm_0/normed/kernel/scale": ((), (0,), ()),
        "params/DenseGeneral_0/kernel": ((1,), (2, 3), (0,)),
    }
    assert axes == {path: {seen} for path, seen in expected.items()}


def test_an_embedding_is_looked_up_and_a_head():
    embed = nnx.Embed(50, 8, rngs=RNGS)
    [lookup] = products(call, embed, IDS)
    assert (lookup.primitive, lookup.sums) == ("gather", False)
    assert (lookup.in_axis, lookup.out_axis) == ((1,), (0,))
    both = products(lambda m, ids: m.attend(m(ids)), embed, IDS)
    assert [p.sums for p in both] == [False, True]
    assert (both[1].in_axis, both[1].out_axis) == ((1,), (0,))


X = jnp.ones((3, 4))
PROGRAMS = {  # program, shape of w, expected
    "transposed": (lambda w, x: x @ w.T, (6, 4), ((1,), (0,), ())),
    "cast": (lambda w, x: x @ w.astype(jnp.bfloat16), (4, 6), ((0,), (1,), ())),
    "masked": (lambda w, x: x @ jnp.where(jnp.abs(w) > 1, w, 0), (4, 6), ((0,), (1,), ())),
    "split": (lambda w, x: x @ jnp.split(w, 2, axis=1)[1], (4, 6), ((0,), (1,), ())),
    "fused": (lambda w, x: x @ jnp.concatenate([w, w[:, :2]], 1), (4, 6), ((0,), (1,), ())),
    "padded": (lambda w, x: x @ jnp.pad(w, ((0, 0), (0, 2))), (4, 6), ((0,), (1,), ())),
    "heads in": (lambda w, x: x @ w.reshape(4, 6), (2, 2, 6), ((0, 1), (2,), ())),
    "heads out": (
        lambda w, x: jnp.einsum("bk,khd->bhd", x, w.reshape(4, 2, 3)), (4, 6), ((0,), (1,), ()),
    ),
    "normed": (lambda w, x: x @ (w / jnp.linalg.norm(w, axis=0)), (4, 6), ((0,), (1,), ())),
    "low rank": (
        lambda w, x: x @ (w + jnp.ones((4, 2)) @ jnp.ones((2, 6))), (4, 6), ((0,), (1,), ()),
    ),
    "bias": (lambda w, x: (x + jnp.sum(w, 1)) @ w, (4, 6), ((0,), (1,), ())),
    "sum of columns": (lambda w, x: x @ w.sum(1), (4, 6), ((0, 1), (), ())),
    "custom gradient": (lambda w, x: jax.nn.relu(x @ jax.nn.relu(w)), (4, 6), ((0,), (1,), ())),
    "unrolled": (lambda w, x: x @ w[0] @ w[1], (2, 4, 4), ((1,), (2,), (0,))),
    "scan": (
        lambda w, x: lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, w)[0],
        (5, 4, 4), ((1,), (2,), (0,)),
    ),
    "scans in a scan": (
        lambda w, x: lax.scan(
            lambda c, ww: (lax.scan(lambda c, w: (jnp.tanh(c @ w), None), c, ww)[0], None), x, w
        )[0],
        (2, 3, 4, 4), ((2,), (3,), (0, 1)),
    ),
    "scans of what a loop picks": (
        lambda w, x: lax.fori_loop(
            0, 2, lambda i, x: lax.scan(lambda c, w: (c @ w, None), x, w[i])[0], x
        ),
        (2, 3, 4, 4), ((2,), (3,), (0, 1)),
    ),
    "scan that carries": (
        lambda w, x: lax.scan(lambda c, _: ((c[0] @ c[1], c[1]), None), (x, w), None, 3)[0][0],
        (4, 4), ((0,), (1,), ()),
    ),
    "while": (
        lambda w, x: lax.fori_loop(0, 3, lambda i, c: (c[0] @ c[1], c[1]), (x, w))[0],
        (4, 4), ((0,), (1,), ()),
    ),
    "cond": (
        lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w.T, lambda: -(x @ w.T)),
        (6, 4), ((1,), (0,), ()),
    ),
    "one of many": (
        lambda w, x: jnp.einsum("bk,bkn->bn", x, w[jnp.argmax(x, 1) % 2]),
        (2, 4, 6), ((1,), (2,), (0,)),
    ),
    "ragged": (
        lambda w, x: lax.ragged_dot(x, w, jnp.array([1, 2])), (2, 4, 6), ((1,), (2,), (0,)),
    ),
    "mapped": (
        lambda w, x: jax.vmap(lambda x, w: x @ w, (0, 2))(x, w), (4, 6, 3), ((0,), (1,), (2,)),
    ),
    "kernels of convolutions": (
        lambda w, x: jax.vmap(
            lambda w: lax.conv_general_dilated(
                x[None], w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
        )(w),
        (2, 3, 4, 5), ((1, 2), (0, 3), ()),
    ),
    "kernels of convolutions, an image for each": (
        lambda w, x: jax.vmap(
            lambda w, x: lax.conv_general_dilated(
                x[None], w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
        )(w, jnp.stack([x, x])),
        (2, 3, 4, 5), ((1, 2), (0, 3), ()),
    ),
    "channels first": (
        lambda w, x: lax.conv_general_dilated(x.reshape(1, 3, 4), w, (1,), "SAME"),
        (6, 3, 2), ((2, 1), (0,), ()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    program, shape, expected = PROGRAMS[name]
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    assert found(lambda p, x: program(p["w"], x), params, X) == {"w": {expected}}


def test_an_axis_that_is_summed_over_in_part():
    w = jnp.ones((6, 5))
    [product] = products(lambda w, x: jnp.einsum("bi,ijn->bjn", x, w.reshape(2, 3, 5)), w,
                         jnp.ones((4, 2)))  # fmt: skip
    assert (product.partial, product.in_axis, product.out_axis) == ((0,), (), (1,))


def test_what_depends_on_data_is_no_weight():
    params = {"up": jnp.ones((4, 6)), "shift": jnp.ones((3, 6)), "down": jnp.ones((6, 2))}

    def mlp(p, x):
        return (x @ p["up"] + p["shift"]) @ p["down"]

    assert set(found(mlp, params, X)) == {"up", "down"}


def random_program(rng):
    """A weight whose axes have roles drawn at random, in a program that hides them."""
    count = int(rng.integers(2, 5))
    roles = ["in", *rng.choice(["in", "out", "batch"], count - 1)]
    rng.shuffle(roles)
    sizes = [int(size) for size in rng.choice([2, 3], count)]
    names = "abcd"[:count]
    summed = [n for n, r in zip(names, roles, strict=True) if r == "in"]
    batch = [n for n, r in zip(names, roles, strict=True) if r == "batch"]
    free = [n for n, r in zip(names, roles, strict=True) if r == "out"]
    size = dict(zip(names, sizes, strict=True))
    inputs, outputs = [*batch, "x", *summed], [*batch, "x", *free]
    rng.shuffle(inputs)
    rng.shuffle(outputs)
    order = rng.permutation(count)
    turned = "".join(names[i] for i in order)
    formula = f"{''.join(inputs)},{turned}->{''.join(outputs)}"
    ways = rng.choice(["jit", "remat", "scale", "cond", "merge", "plus", "scan"], 3, replace=False)

    def program(w, x):
        if "plus" in ways:
            w = w + 0 * w
        if "scale" in ways:
            w = -(2 * w)
        w = w.transpose(order)
        if "merge" in ways:
            w = w.reshape(-1).reshape([size[n] for n in turned])
        run = functools.partial(jnp.einsum, formula)
        if "cond" in ways:
            run = functools.partial(
                lambda f, x, w: lax.cond(x.sum() < 9, f, lambda x, w: f(x, -w), x, w), run
            )
        if "jit" in ways:
            run = jax.jit(run)
        if "remat" in ways:
            run = jax.checkpoint(run)
        return run(x, w)

    if batch and "scan" in ways:  # the first batch axis is scanned instead
        at = [names.index(batch[0]), inputs.index(batch[0]), outputs.index(batch[0])]
        left = "".join(n for n in formula if n != batch[0])

        def program(w, x):
            def body(carry, slices):
                return carry, jnp.einsum(left, slices[0], slices[1])

            xs = jnp.moveaxis(x, at[1], 0), jnp.moveaxis(w, at[0], 0).transpose(
                0, *[1 + [n for n in names if n != batch[0]].index(n)
                     for n in turned if n != batch[0]])  # fmt: skip
            return jnp.moveaxis(lax.scan(body, 0, xs)[1], 0, at[2])

    x_shape = [size.get(n, 2) for n in inputs]
    return program, sizes, x_shape


def probed(program, w_shape, x_shape):
    """The role of every axis of w, from which entries of x and y its entries connect."""
    count = int(np.prod(w_shape)), int(np.prod(x_shape))
    ws = np.eye(count[0]).reshape(count[0], *w_shape)
    xs = np.eye(count[1]).reshape(count[1], *x_shape)
    over_x = jax.vmap(program, (None, 0))
    y = np.asarray(jax.jit(jax.vmap(over_x, (0, None)))(ws, xs)).reshape(*w_shape, count[1], -1)
    connected = y != 0
    to_x, to_y = connected.any(-1), connected.any(-2)
    roles = []
    for axis in range(len(w_shape)):
        same_x, same_y = (bool((np.take(to, [0], axis) == to).all()) for to in (to_x, to_y))
        roles.append({(False, True): "in", (True, False): "out", (False, False): "batch"}
                     [same_x, same_y])  # fmt: skip
    return tuple(
        tuple(i for i, role in enumerate(roles) if role == wanted)
        for wanted in ("in", "out", "batch")
    )


@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 24))]
)
def test_random_programs_against_probing(seed):
    program, w_shape, x_shape = random_program(np.random.default_rng(seed))
    axes = found(lambda p, x: program(p["w"], x), {"w": jnp.ones(w_shape)}, jnp.ones(x_shape))
    assert axes == {"w": {probed(program, w_shape, x_shape)}}
