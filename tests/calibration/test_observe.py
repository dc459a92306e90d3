"""What weights meet: against the same values taken out of the model by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from jaxsparse.calibration import Reducer, gram, largest, observe, sites, square_norms, zeros


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sums():
    """All that it meets as a matrix, added up, and how often."""

    def init(site):
        return jnp.zeros((site.inputs,)), jnp.zeros((), int)

    def update(state, met, site):
        return state[0] + met.rows().sum(0), state[1] + 1

    return Reducer(init, update)


def by_path(states):
    assert len({site.path for site in states}) == len(states)
    return {site.path: state for site, state in states.items()}


X = numbers(3, 4)


def W(*shape):
    return jnp.asarray(numbers(*shape, seed=1))


def scanned(x, stack):
    return lax.scan(lambda x, w: (x @ w, None), x, stack)[0]


def four_in_turn(x, kernels):
    return [x, *(x := x @ kernel for kernel in kernels[:3])]


PROGRAMS = {  # program of (w, x), shape of w, x, the matrix that w meets, one for each kernel
    "plain": (lambda w, x: x @ w, (4, 6), X, X),
    "vector": (lambda w, x: x[0] @ w, (4, 6), X, X[:1]),
    "transposed": (lambda w, x: x @ w.T, (6, 4), X, X),
    "weight first": (lambda w, x: w @ x.T, (6, 4), X, X),
    "cast, scaled and masked": (
        lambda w, x: x @ jnp.where(jnp.abs(w) > 1, -2 * w, 0).astype(jnp.bfloat16), (4, 6), X, X,
    ),
    "heads in": (
        lambda w, x: jnp.einsum("btnh,nhd->btd", x, w), (2, 3, 5), numbers(2, 7, 2, 3),
        numbers(2, 7, 2, 3).reshape(-1, 6),
    ),
    "heads in, flat": (lambda w, x: x @ w.reshape(6, 5), (2, 3, 5), numbers(7, 6), numbers(7, 6)),
    "heads in, turned": (
        lambda w, x: jnp.einsum("hbn,hnd->bd", x, w.transpose(1, 0, 2)), (2, 3, 5),
        numbers(3, 7, 2), numbers(3, 7, 2).transpose(1, 2, 0).reshape(7, 6),
    ),
    "axis in two": (
        lambda w, x: jnp.einsum("bij,ijd->bd", x, w.reshape(2, 3, 5)), (6, 5), numbers(4, 2, 3),
        numbers(4, 2, 3).reshape(4, 6),
    ),
    "vmap": (jax.vmap(lambda w, x: w @ x, (None, 0)), (6, 4), X, X),
    "remat": (lambda w, x: jax.checkpoint(lambda x: jnp.sin(x) @ w)(x), (4, 6), X, np.sin(X)),
    "custom gradient": (lambda w, x: jax.nn.relu(x @ jax.nn.relu(w)), (4, 6), X, X),
    "one branch": (
        lambda w, x: lax.cond(x[0, 0] > 9, lambda x: x @ w, lambda x: (2 * x) @ -w, x),
        (4, 6), X, 2 * X,
    ),
    "used twice": (lambda w, x: (x @ w) @ w, (4, 4), X, np.concatenate([X, X @ W(4, 4)])),
    "while": (
        lambda w, x: lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] @ w), (0, x)),
        (4, 4), X, np.concatenate([X, X @ W(4, 4)]),
    ),
    "scan that carries": (
        lambda w, x: lax.scan(lambda c, _: ((c[0] @ c[1], c[1]), None), (x, w), None, 2)[0],
        (4, 4), X, np.concatenate([X, X @ W(4, 4)]),
    ),
    "convolution": (
        lambda w, x: lax.conv_general_dilated(
            x, w, (2,), [(1, 0)], dimension_numbers=("NWC", "WIO", "NWC")
        ),
        (2, 3, 5), numbers(1, 4, 3),
        np.stack([np.concatenate([np.zeros(3), numbers(1, 4, 3)[0, 0]]),
                  numbers(1, 4, 3)[0, 1:3].ravel()]),
    ),
    "stack by scan": (
        lambda w, x: lax.scan(lambda x, w: (x @ w, None), x, w)[0], (2, 4, 4), X,
        [X, X @ W(2, 4, 4)[0]],
    ),
    "stack backwards": (
        lambda w, x: lax.scan(lambda x, w: (x @ w, None), x, w, reverse=True)[0], (2, 4, 4), X,
        [X @ W(2, 4, 4)[1], X],
    ),
    "stack by hand": (lambda w, x: (x @ w[1]) @ w[0], (2, 4, 4), X, [X @ W(2, 4, 4)[1], X]),
    "stack by a number": (
        lambda w, x: lax.fori_loop(0, 2, lambda i, x: x @ w[i], x), (2, 4, 4), X,
        [X, X @ W(2, 4, 4)[0]],
    ),
    "stack taken apart": (
        lambda w, x: [x @ part[0] for part in jnp.split(w, 2)], (2, 4, 6), X, [X, X],
    ),
    "stack at once": (
        lambda w, x: jnp.einsum("ebk,ekn->ebn", x, w), (2, 4, 6), numbers(2, 3, 4),
        list(numbers(2, 3, 4)),
    ),
    "experts by vmap": (
        lambda w, x: jax.vmap(lambda w: x @ w, 2)(w), (4, 6, 2), X, X,
    ),
    "stack of stacks": (
        lambda w, x: lax.scan(
            lambda x, w: (jnp.einsum("ebk,ekn->ebn", x, w), None), x, w
        )[0],
        (2, 2, 4, 4), numbers(2, 3, 4),
        [[*numbers(2, 3, 4)], [*np.einsum("ebk,ekn->ebn", numbers(2, 3, 4), W(2, 2, 4, 4)[0])]],
    ),
    "scans in a scan": (
        lambda w, x: lax.scan(lambda x, ww: (scanned(x, ww), None), x, w)[0], (2, 2, 4, 4), X,
        four_in_turn(X, W(2, 2, 4, 4).reshape(4, 4, 4)),
    ),
    "scans of what a loop picks": (
        lambda w, x: lax.fori_loop(0, 4, lambda i, x: scanned(x, w[i // 2, i % 2]), x),
        (2, 2, 1, 4, 4), X, four_in_turn(X, W(2, 2, 1, 4, 4).reshape(4, 4, 4)),
    ),
    "backwards": (lambda w, x: x @ w[::-1], (4, 6), X, X[:, ::-1]),
    "backwards, outputs too, and back": (
        lambda w, x: x @ (w[::-1, ::-1].T[:, ::-1]).T, (4, 6), X, X,
    ),
    "backwards in two": (
        lambda w, x: jnp.einsum("bij,ijd->bd", x, w[::-1].reshape(2, 3, 5)[:, ::-1]), (6, 5),
        numbers(4, 2, 3), numbers(4, 2, 3)[:, ::-1].reshape(4, 6),
    ),
    "stack turned by scan": (
        lambda w, x: scanned(x, w[::-1]), (2, 4, 4), X, [X @ W(2, 4, 4)[1], X],
    ),
    "stack turned by hand": (
        lambda w, x: (x @ w[::-1][0]) @ w[::-1, ::-1][1], (2, 4, 4), X,
        [(X @ W(2, 4, 4)[1])[:, ::-1], X],
    ),
    "stack turned at once": (
        lambda w, x: jnp.einsum("ebk,ekn->ebn", x, w[::-1]), (2, 4, 6), numbers(2, 3, 4),
        list(numbers(2, 3, 4)[::-1]),
    ),
    "rolled outputs": (lambda w, x: x @ jnp.roll(w, 2, 1), (4, 6), X, X),
    "kernels side by side": (
        lambda w, x: x @ jnp.concatenate([w[0], w[1]], 1), (2, 4, 6), X, [X, X],
    ),
    "repeated by scan": (
        lambda w, x: scanned(x, jnp.broadcast_to(w, (2, 4, 4))), (4, 4), X,
        np.concatenate([X, X @ W(4, 4)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    program, shape, x, expected = PROGRAMS[name]
    params = {"w": W(*shape)}
    y, states = jax.jit(
        lambda p, x: observe(lambda p, x: program(p["w"], x), p, x, reducer=gram())
    )(params, x)
    np.testing.assert_allclose(
        jax.tree.leaves(y)[-1], jax.tree.leaves(program(params["w"], x))[-1], rtol=1e-5, atol=1e-5
    )
    [(site, state)] = states.items()
    nested = np.asarray(expected)
    matrices = nested.reshape(-1, *nested.shape[-2:]).astype(np.float32)
    found = state["products"].reshape(-1, site.inputs, site.inputs)
    assert len(found) == len(matrices)
    np.testing.assert_allclose(found, [m.T @ m for m in matrices], rtol=1e-4, atol=1e-4)
    assert state["rows"].reshape(-1).tolist() == [len(m) for m in matrices]
    assert state["rows"].shape == site.kernels


def test_past_the_end_is_the_last_kernel():
    """As the program takes it; what a lookup fills with NaN is no kernel."""

    def clamped(w, x):
        return x @ lax.dynamic_index_in_dim(w, jnp.uint8(x.size), keepdims=False)

    def clipped(w, x):
        return x @ w.at[x.size].get(mode="clip")

    def filled(w, x):
        return x @ w.at[-x.size].get(mode="fill")

    def filled_turned(w, x):
        return filled(w[::-1], x)

    cases = (clamped, [0, 3]), (clipped, [0, 3]), (filled, [0, 0]), (filled_turned, [0, 0])
    for program, rows in cases:
        _, states = observe(
            lambda p, x, f=program: f(p["w"], x), {"w": W(2, 4, 6)}, X, reducer=gram()
        )
        assert by_path(states)["w"]["rows"].tolist() == rows


def traced(fn, params, x, paths=".*"):
    """What `observe` has of each site where nothing is computed, which takes most of its time."""
    return jax.eval_shape(
        lambda params, x: observe(fn, params, x, reducer=gram(), paths=paths)[1], params, x
    )


REFUSED = {  # program of (w, x), shape of w, x, why
    "data choose": (
        lambda w, x: jnp.einsum("bk,bkn->bn", x, w[jnp.argmax(x, 1) % 2]), (2, 4, 6), X,
        "which kernel of the stack",
    ),
    "ragged": (lambda w, x: lax.ragged_dot(x, w, jnp.array([1, 2])), (2, 4, 6), X, "data choose"),
    "part of the inputs": (lambda w, x: x @ w[:4], (8, 6), X, "part of its inputs"),
    "sum over inputs": (lambda w, x: x @ w.sum(1), (4, 6), X, "or a sum over them"),
    "groups": (
        lambda w, x: jnp.einsum("bgk,kgn->bgn", x, w.reshape(4, 2, 3)), (4, 6), numbers(3, 2, 4),
        "groups of its outputs",
    ),
    "groups of a convolution": (
        lambda w, x: lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=2),
        (6, 3, 2), numbers(1, 6, 4), "each group of the convolution",
    ),
    "kernels of convolutions": (
        jax.vmap(
            lambda w, x: lax.conv_general_dilated(
                x[None], w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
        ),
        (2, 3, 4, 5), numbers(2, 6, 4), "each group of the convolution",
    ),
    "rolled": (lambda w, x: x @ jnp.roll(w, 2, 0), (4, 6), X, "an order that is not known"),
    "shifted": (
        lambda w, x: x @ lax.pad(w, 0.0, [(1, -1, 0), (0, 0, 0)]), (4, 6), X,
        "an order that is not known",
    ),
    "parts of two": (
        lambda w, x: x @ jnp.concatenate([w[:2], 2 * jnp.ones((2, 6))]), (4, 6), X,
        "parts put together",
    ),
    "a rolled stack": (
        lambda w, x: scanned(x, jnp.roll(w, 1, 0)), (3, 4, 4), X, "of kernels put together",
    ),
    "part of a stack": (
        lambda w, x: jnp.einsum("ebk,ekn->ebn", x[None] * jnp.ones((2, 1, 1)), w[1:]), (3, 4, 4),
        X, "of kernels put together",
    ),
    "blocks": (
        lambda w, x: jnp.einsum("bhk,hkn->bhn", x.reshape(-1, 2, 4), w.reshape(2, 4, 3)), (8, 3),
        numbers(3, 8), r"blocks of its inputs .*stored as \(2, 4, 3\)",
    ),
    "two in one": (
        lambda w, x: x @ (lax.dynamic_index_in_dim(w, x.size, keepdims=False)
                          + lax.dynamic_index_in_dim(w, x.ndim - 2, keepdims=False)),
        (2, 4, 6), X, "which kernel of the stack",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_by_name(name):
    program, shape, x, why = REFUSED[name]
    params = {"w": W(*shape), "v": jnp.eye(x.shape[-1])}

    def fn(params, x):
        return program(params["w"], x @ params["v"])

    with pytest.raises(ValueError, match=f"'w' of shape .*{why}"):
        traced(fn, params, x)
    assert [site.path for site in traced(fn, params, x, "v")] == ["v"]


NOT_FOLLOWED = {  # program of (w, x), shape of w, x
    "rows picked": (lambda w, x: x @ w[jnp.array([2, 0, 1, 3])], (4, 6), X),
    "chosen by data": (lambda w, x: x @ jnp.where(x[0, 0] > 0, w, -w), (4, 6), X),
    "part of axes put together": (lambda w, x: x @ w.reshape(6, 5)[:4], (2, 3, 5), X),
    "shards": (
        lambda w, x: jax.shard_map(
            jnp.matmul,
            mesh=jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
            in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data"),
        )(x, w),
        (4, 6), X,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_weights_that_are_not_followed_have_no_site(name):
    program, shape, x = NOT_FOLLOWED[name]
    y, states = observe(lambda p, x: program(p["w"], x), {"w": W(*shape)}, x, reducer=gram())
    np.testing.assert_allclose(y, program(W(*shape), x), rtol=1e-5, atol=1e-5)
    assert states == {}


LAYERS = {f"l{i}": W(4, 4) for i in range(3)}


@pytest.mark.parametrize(
    "program",
    [
        lambda layers, x: scanned(x, jnp.stack(layers)),
        lambda layers, x: x @ jnp.stack(layers)[1],
        lambda layers, x: scanned(x, jnp.concatenate([layer[None] for layer in layers])),
        lambda layers, x: jnp.einsum("bk,bkn->bn", x, jnp.stack(layers)),
    ],
)
def test_layers_that_the_program_stacks_are_refused(program):
    """Every time: which axes are whose is no matter of how much was traced before."""

    def fn(params, x):
        return program([*params.values()], x)

    for _ in range(3):
        with pytest.raises(ValueError, match=r"'l0' of shape .*several arrays .*one stack in the"):
            traced(fn, LAYERS, X)

    def at_once(params, x):
        return jnp.einsum("bk,lkn->lbn", x, jnp.stack([*params.values()]))

    _, states = observe(at_once, LAYERS, X, reducer=gram())
    assert {path: int(state["rows"]) for path, state in by_path(states).items()} == dict.fromkeys(
        LAYERS, 3
    )


UNALTERED = {
    "cast": lambda w, v, g: w.astype(jnp.bfloat16).T.reshape(2, 2, 4).reshape(4, 4).T,
    "scaled": lambda w, v, g: -2 * w / g[0] * (w.shape[0] ** -0.5),
    "scaled by a scalar that is repeated": lambda w, v, g: w * jnp.full((4, 4), g[0]),
    "masked": lambda w, v, g: jnp.where(jnp.abs(w) > 1, w, 0) * (g[:, None] > 0),
    "masked by itself": lambda w, v, g: w * (jnp.abs(w) > 1),
    "masked by another": lambda w, v, g: jnp.where(v > 0, w, 0),
    "kernels side by side": lambda w, v, g: jnp.concatenate([w, w[:, ::-1]], 1),
}
ALTERED = {
    "gain": lambda w, v, g: g[:, None] * w,
    "gain of outputs": lambda w, v, g: w / (1 + g**2),
    "tanh": lambda w, v, g: jnp.tanh(w),
    "centred": lambda w, v, g: w - w.mean(0),
    "normed": lambda w, v, g: w / jnp.linalg.norm(w, axis=0),
    "normed as a whole": lambda w, v, g: w / jnp.sqrt(jnp.sum(w**2)),
    "a sum": lambda w, v, g: w + v,
    "of two by a mask": lambda w, v, g: jnp.where(g > 0, w, v),
    "signs by a mask": lambda w, v, g: jnp.where(w > 1, w, -w),
    "quantized": lambda w, v, g: w.astype(jnp.int8).astype(w.dtype),
    "product": lambda w, v, g: w * v,
    "square": lambda w, v, g: w * w,
    "in one of two": lambda w, v, g: jnp.concatenate([w, jnp.tanh(w)], 1),
}


@pytest.mark.parametrize("name", [*UNALTERED, *ALTERED])
@pytest.mark.parametrize("scan", [False, True])
def test_sites_say_whether_more_than_the_weight_is_multiplied(name, scan):
    operand = (UNALTERED | ALTERED)[name]

    def fn(params, x):
        def body(x, params):
            return x, jax.jit(lambda p, x: x @ operand(p["w"], p["v"], p["g"]))(params, x)

        if scan:
            return lax.scan(jax.checkpoint(body), x, params)[1]
        return body(x, jax.tree.map(lambda a: a[0], params))[1]

    params = {"w": W(2, 4, 4), "v": W(2, 4, 4), "g": W(2, 4)}
    [site] = [site for site in sites(fn, params, X, paths="w")]
    assert site.altered == (name in ALTERED)
    assert [s.altered for s in traced(fn, params, X, "w")] == [site.altered]


def test_a_site_is_altered_where_one_of_its_products_is():
    def fn(params, x):
        apply = jax.jit(lambda w, x: x @ w)
        return apply(params["w"], x), apply(jnp.tanh(params["w"]), x), apply(params["w"].T, x)

    first, second = sites(fn, {"w": W(4, 4)}, X)
    assert (first.in_axis, first.altered) == ((0,), True)
    assert (second.in_axis, second.altered) == ((1,), False)
    _, states = observe(fn, {"w": W(4, 4)}, X, reducer=gram())
    assert [int(state["rows"]) for state in states.values()] == [6, 3]


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        h = linen.relu(linen.remat(linen.Dense)(6, name="up")(linen.LayerNorm()(x)))
        return x + linen.Dense(4, name="down")(h), h


class Net(linen.Module):
    @linen.compact
    def __call__(self, ids):
        embed = linen.Embed(7, 4, name="embed")
        x = embed(ids)
        x = x + linen.MultiHeadDotProductAttention(2, name="attention")(x)
        scanned = linen.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, hidden = scanned(name="blocks")(x, None)
        return embed.attend(x), (x, hidden)


IDS = np.array([[1, 2, 3], [4, 5, 6]])


def test_a_transformer_of_linen():
    variables = Net().init(jax.random.key(0), IDS)
    (logits, (last, hidden)), states = observe(Net().apply, variables, IDS, reducer=square_norms())
    np.testing.assert_allclose(logits, Net().apply(variables, IDS)[0], rtol=1e-5)
    assert not any(site.altered for site in states)
    states = by_path(states)
    assert all(s["squares"].shape[:-1] == s["rows"].shape for s in states.values())
    # Tied: looked up, which is no product, and met by the last layer's output.
    head = states["params/embed/embedding"]
    np.testing.assert_allclose(head["squares"], (last**2).sum((0, 1)), rtol=1e-4)
    down = states["params/blocks/down/kernel"]
    np.testing.assert_allclose(down["squares"], (hidden**2).sum((1, 2)), rtol=1e-4)
    assert down["rows"].tolist() == [6, 6, 6]
    attention = {name: s["squares"].shape for name, s in states.items() if "attention" in name}
    assert attention == {
        f"params/attention/{name}/kernel": (4,) for name in ("query", "key", "value", "out")
    }


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.linear = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.linear(nnx.relu(self.conv(x)).mean((1, 2)))


@pytest.mark.parametrize("framework", ["nnx", "haiku", "equinox"])
def test_frameworks(framework):
    x = numbers(2, 3, 6, 6)
    if framework == "nnx":
        params, fn, x = Convolutional(nnx.Rngs(0)), lambda m, x: m(x), x.transpose(0, 2, 3, 1)
    elif framework == "haiku":
        haiku = pytest.importorskip("haiku")
        model = haiku.without_apply_rng(
            haiku.transform(lambda x: haiku.Linear(2)(haiku.Conv2D(4, 3, 2)(x).mean((1, 2))))
        )
        x = x.transpose(0, 2, 3, 1)
        params, fn = model.init(jax.random.key(0), x), model.apply
    else:
        equinox = pytest.importorskip("equinox")
        keys = jax.random.split(jax.random.key(0))
        params = {
            "conv": equinox.nn.Conv2d(3, 4, 3, 2, 1, key=keys[0]),
            "linear": equinox.nn.Linear(4, 2, key=keys[1]),
        }

        def fn(p, x):
            return jax.vmap(lambda x: p["linear"](p["conv"](x).mean((1, 2))))(x)

    y, states = observe(fn, params, x, reducer=gram())
    np.testing.assert_allclose(y, fn(params, x), rtol=1e-5, atol=1e-6)
    assert not any(site.altered for site in states)
    shapes = {site.path.split("/")[-2]: s["products"].shape for site, s in states.items()}
    assert sorted(shapes.values()) == [(4, 4), (27, 27)]
    rows = sorted(int(state["rows"]) for state in states.values())
    assert rows == [2, 18]


def mlp(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


MLP = {"up": W(4, 6), "down": W(6, 2)}


def first_rows(state, met, site):
    rows = met.rows()
    return state.at[: len(rows)].set(rows)


def test_the_matrix_is_what_the_product_multiplies():
    """X, of a kernel in four axes and a convolution, times the flattened kernel is the result."""
    cases = [
        (lambda w, x: jnp.einsum("nhbt,dnh->btd", x, w), (5, 2, 3), numbers(2, 3, 2, 4), (1, 2)),
        (
            lambda w, x: lax.conv_general_dilated(x, w, (1, 2), "SAME").transpose(0, 2, 3, 1),
            (5, 3, 2, 2), numbers(2, 3, 4, 4), (2, 3, 1),
        ),
        (
            lambda w, x: lax.conv_transpose(
                x, w, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), transpose_kernel=True
            ),
            (3, 5, 2), numbers(2, 4, 2), (0, 2),
        ),
        (lambda w, x: x @ w[::-1], (4, 5), X, (0,)),
    ]  # fmt: skip
    for program, shape, x, in_axis in cases:
        rows = Reducer(lambda site: jnp.zeros((100, site.inputs)), first_rows)
        y, states = observe(lambda p, x, f=program: f(p["w"], x), {"w": W(*shape)}, x, reducer=rows)
        [(site, kept)] = states.items()
        assert site.in_axis == in_axis
        [out] = set(range(len(shape))) - set(in_axis)
        matrix = W(*shape).transpose(*in_axis, out).reshape(site.inputs, -1)
        y = y.reshape(-1, 5)
        np.testing.assert_allclose((kept @ matrix)[: len(y)], y, rtol=1e-4, atol=1e-4)


def test_batch_by_batch_is_all_at_once():
    x = numbers(8, 4)
    _, whole = observe(mlp, MLP, x, reducer=gram())
    states = None
    for batch in np.split(x, 4):
        _, states = observe(mlp, MLP, batch, reducer=gram(), states=states)
    for site in whole:
        np.testing.assert_allclose(states[site]["products"], whole[site]["products"], rtol=1e-5)
        assert states[site]["rows"] == 8
    with pytest.raises(ValueError, match=r"other sites.*down"):
        observe(mlp, MLP, x, reducer=gram(), paths="up", states=whole)


def test_later_layers_see_what_pruned_ones_make():
    x, pruned = numbers(8, 4), dict(MLP)
    for site in sites(mlp, MLP, x):
        _, states = observe(mlp, pruned, x, reducer=square_norms(), paths=site.path)
        assert [*states] == [site]
        scores = np.abs(pruned[site.path]) * np.sqrt(states[site]["squares"])[:, None]
        pruned[site.path] = np.where(scores >= np.median(scores, 0), pruned[site.path], 0)
    hidden = np.maximum(x @ pruned["up"], 0)
    np.testing.assert_allclose(states[site]["squares"], (hidden**2).sum(0), rtol=1e-5)


def test_statistics():
    x = numbers(8, 4)
    hidden = np.maximum(x @ MLP["up"], 0)
    _, found = observe(mlp, MLP, x, reducer=zeros())
    found = by_path(found)
    assert float(found["down"]["zeros"]) == (hidden == 0).sum() > 0
    assert float(found["down"]["size"]) == hidden.size and float(found["up"]["zeros"]) == 0
    _, found = observe(mlp, MLP, x, reducer=largest())
    assert np.isclose(by_path(found)["down"], np.abs(hidden).max())


def test_bfloat16_is_summed_in_float32():
    x = jnp.ones((4096, 4), jnp.bfloat16)
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), MLP)
    _, states = observe(mlp, params, x, reducer=gram())
    assert by_path(states)["up"]["products"].tolist() == np.full((4, 4), 4096.0).tolist()


def test_nothing_after_what_is_observed_runs_under_jit():
    def fn(params, x):
        return jnp.linalg.svd(mlp(params, x))

    statistics = jax.jit(lambda p, x: observe(fn, p, x, reducer=gram(), paths="up")[1])
    assert "svd" not in statistics.lower(MLP, X).compile().as_text()


def test_a_site_that_products_sum_over_in_two_ways_has_two_states():
    _, states = observe(lambda p, x: (x @ p["w"]) @ p["w"].T, {"w": W(4, 6)}, X, reducer=sums())
    assert [(s.in_axis, s.inputs) for s in states] == [((0,), 4), ((1,), 6)]
    assert [int(times) for _, times in states.values()] == [1, 1]
