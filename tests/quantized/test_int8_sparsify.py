"""Whole programs in integers: against the same layers called one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import jaxsparse as js
from jaxsparse import jaxprs, quantized
from jaxsparse.quantized import linear, of_range


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def packed_of(k, n, seed=1):
    return js.pack(jnp.asarray(numbers(k, n, seed=seed)), js.Block(2, 4), dtype=jnp.int8)


X = jnp.asarray(numbers(3, 8))
PARAMS = {
    "up": {"kernel": packed_of(8, 12), "bias": jnp.asarray(numbers(12, seed=2))},
    "down": {"kernel": packed_of(12, 4, seed=3), "bias": jnp.asarray(numbers(4, seed=4))},
}
CODES = {"up/kernel": of_range(-2, 2), "down/kernel": of_range(0, 6)}


def mlp(params, x):
    up, down = params["up"], params["down"]
    x = jax.nn.relu(x @ up["kernel"] + up["bias"])
    return x @ down["kernel"] + down["bias"]


def by_layers(x=X, hand_on=True):
    up, down = PARAMS["up"], PARAMS["down"]
    between = CODES["down/kernel"]
    out = between if hand_on else None
    x = linear(x, up["kernel"], CODES["up/kernel"], bias=up["bias"], activation="relu", out=out)
    return linear(x, down["kernel"], between, bias=down["bias"])


def products(function, *args):
    """The result dtypes of the INT8 products of a function, and whether they have a ReLU."""
    found = jaxprs.equations(jax.make_jaxpr(function)(*args))
    return [
        (jnp.dtype(e.params["out_dtype"]).name, e.params["activation"])
        for e in found
        if e.primitive.name == "sparse_int8_dot"
    ]


def test_layers_are_fused_and_hand_each_other_codes():
    run = quantized.sparsify(mlp, CODES)
    np.testing.assert_array_equal(run(PARAMS, X), by_layers())
    assert products(run, PARAMS, X) == [("uint8", "relu"), ("float32", None)]


def test_floats_between_layers():
    run = quantized.sparsify(mlp, CODES, hand_on=False)
    np.testing.assert_array_equal(run(PARAMS, X), by_layers(hand_on=False))
    assert products(run, PARAMS, X) == [("float32", "relu"), ("float32", None)]
    np.testing.assert_allclose(run(PARAMS, X), by_layers(), atol=1e-5)


def test_gradients_pass_floats_and_stop_at_codes_with_an_error():
    def loss(x, **options):
        return jnp.sum(quantized.sparsify(mlp, CODES, **options)(PARAMS, x) ** 2)

    expected = jax.grad(lambda x: jnp.sum(by_layers(x, hand_on=False) ** 2))(X)
    np.testing.assert_allclose(jax.grad(loss)(X, hand_on=False), expected, rtol=1e-5)
    with pytest.raises(TypeError, match="with hand_on=False, it would be"):
        jax.grad(loss)(X)


def test_dynamic_codes():
    run = quantized.sparsify(mlp)
    up, down = PARAMS["up"], PARAMS["down"]
    hidden = linear(X, up["kernel"], bias=up["bias"], activation="relu")
    expected = linear(hidden, down["kernel"], bias=down["bias"])
    np.testing.assert_allclose(run(PARAMS, X), expected, rtol=1e-5)
    assert products(run, PARAMS, X) == [("float32", "relu"), ("float32", None)]


def twice(params, x):
    y = x @ params["up"]["kernel"] + params["up"]["bias"]
    return jax.nn.relu(y) * y


def in_a_loop(params, x):
    y = x @ params["up"]["kernel"]
    return lax.scan(lambda sum, _: (sum + y, None), jnp.zeros_like(y), None, length=3)[0]


def gelu(params, x):
    return jax.nn.gelu(x @ params["up"]["kernel"])


def least_of_two(params, x):
    return jnp.maximum(x @ params["up"]["kernel"] + 1.0, 0.5)


@pytest.mark.parametrize("function", [twice, in_a_loop, gelu, least_of_two])
def test_what_is_read_several_times_is_multiplied_once(function):
    params, codes = {"up": PARAMS["up"]}, {"up/kernel": CODES["up/kernel"]}
    run = quantized.sparsify(function, codes)
    assert len(products(run, params, X)) == 1
    kernel = params["up"]["kernel"]
    y = linear(X, kernel, codes["up/kernel"]) + (params["up"]["bias"] if function is twice else 0)
    after = {
        twice: lambda y: jax.nn.relu(y) * y,
        in_a_loop: lambda y: 3 * y,
        gelu: jax.nn.gelu,
        least_of_two: lambda y: jnp.maximum(y + 1.0, 0.5),
    }
    np.testing.assert_allclose(run(params, X), after[function](y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])  # a product alone, and any other
def test_a_wider_result_is_not_rounded_to_the_inputs(transposed):
    kernel, x = PARAMS["up"]["kernel"], X.astype(jnp.bfloat16)

    def wide(params, x):
        numbers = ((0,), (1,)) if transposed else ((1,), (0,))
        a, b = (params["w"], x) if transposed else (x, params["w"])
        y = lax.dot_general(a, b, (numbers, ((), ())), preferred_element_type=jnp.float32)
        return y.T if transposed else y

    found = quantized.sparsify(wide, {"w": of_range(-2, 2)})({"w": kernel}, x)
    assert found.dtype == jnp.float32
    expected = linear(x.astype(jnp.float32), kernel, of_range(-2, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_stack_under_scan():
    stack = js.pack(numbers(3, 8, 8), js.Block(2, 4), batch_axis=0, dtype=jnp.int8)
    codes = of_range(-4, 4)

    def loop(params, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]

    found = quantized.sparsify(loop, {"stack": codes})({"stack": stack}, X)
    x = X
    for i in range(3):
        x = jnp.tanh(linear(x, jax.tree.map(lambda a, i=i: a[i], stack), codes))
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6)


def test_a_plain_program_of_codes_has_the_same_bits():
    weight = numbers(8, 12)
    scales = np.abs(weight).max(0) / 127
    codes = jnp.asarray(np.round(weight / scales), jnp.int8)
    codes = jnp.where(jnp.abs(codes) > 90, codes, 0)

    def layer(params, x):
        scale = jnp.max(jnp.abs(x)) / 127
        steps = jnp.clip(jnp.round(x / scale), -127, 127).astype(jnp.int8)
        sums = lax.dot_general(
            steps, params["codes"], (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
        )
        return sums.astype(jnp.float32) * (scale * params["scales"])

    dense = {"codes": codes, "scales": jnp.asarray(scales)}
    packed = dense | {"codes": js.pack(codes, js.Block(2, 4))}
    run = quantized.sparsify(layer, on_dense="error")
    np.testing.assert_array_equal(jax.jit(run)(packed, X), jax.jit(layer)(dense, X))
    assert products(run, packed, X) == [("int32", None)]


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(4)(linen.relu(linen.Dense(12)(x)))


def test_a_model_of_linen_and_of_nnx():
    rules = [js.Rule(".*/kernel", js.Block(2, 4))]
    model = Linen()
    params = model.init(jax.random.key(0), X)["params"]

    def apply(params, x):
        return model.apply({"params": params}, x)

    graph, state = nnx.split(
        nnx.Sequential(
            nnx.Linear(8, 12, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(12, 4, rngs=nnx.Rngs(1))
        )
    )
    for fn, tree in ((apply, params), (lambda s, x: nnx.merge(graph, s)(x), state)):
        codes = quantized.calibrate(fn, tree, [(X,)], rules)
        packed = js.pack_params(tree, {}, rules, dtype=jnp.int8)
        run = quantized.sparsify(fn, codes)
        assert products(run, packed, X) == [("uint8", "relu"), ("float32", None)]
        np.testing.assert_allclose(run(packed, X), fn(tree, X), atol=0.1)


def transposed(params, x):
    return x @ params["w"].T


def convolved(params, x):
    return lax.conv(x.reshape(3, 8, 1, 1), params["w"].reshape(8, 8, 1, 1), (1, 1), "VALID")


@pytest.mark.parametrize(
    ("function", "codes", "words"),
    [
        (transposed, {"w": of_range(-2, 2)}, "w .* in floating point: a product sums over its out"),
        (convolved, {"w": of_range(-2, 2)}, "it is the kernel of a convolution"),
        (lambda params, x: x @ params["w"], {}, "inputs has no codes for it"),
    ],
)
def test_what_stays_in_floating_point_is_named(function, codes, words):
    params = {"w": packed_of(8, 8)}
    axes = {"in_axis": 1, "out_axis": 0} if function is convolved else {}
    if function is convolved:
        params = {"w": js.pack(numbers(8, 8), js.Block(2, 4), dtype=jnp.int8, **axes)}
    expected = js.sparsify(function)(params, X)
    with pytest.warns(UserWarning, match=words):
        found = quantized.sparsify(function, codes)(params, X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=words):
        quantized.sparsify(function, codes, on_float="error")(params, X)


def test_complex_numbers_have_no_codes():
    params, x = {"w": packed_of(8, 8)}, X.astype(np.complex64) * 1j
    with pytest.warns(UserWarning, match="w .* is made dense for dot_general"):
        found = quantized.sparsify(lambda params, x: x @ params["w"])(params, x)
    np.testing.assert_allclose(found, x @ js.unpack(params["w"]), rtol=1e-5, atol=1e-5)


def test_codes_that_nothing_uses_are_refused():
    codes = CODES | {"up/kernal": of_range(0, 1)}
    with pytest.raises(ValueError, match=r"codes for 'up/kernal', .*; did you mean 'up/kernel'"):
        quantized.sparsify(mlp, codes)(PARAMS, X)
    with pytest.raises(ValueError, match="on_float='no' is none of"):
        quantized.sparsify(mlp, on_float="no")


def test_wrong_codes_and_scales_are_named():
    with pytest.raises(TypeError, match=r"inputs\['up/kernel'\] is a tuple, no Affine"):
        quantized.sparsify(mlp, {"up/kernel": (1.0, 0)})
    with pytest.raises(TypeError, match="inputs is of type Affine, no dict"):
        quantized.sparsify(mlp, of_range(0, 1))
    kernel = PARAMS["down"]["kernel"]
    broken = kernel.replace(scales=kernel.scales.at[2].set(jnp.nan))
    params = PARAMS | {"down": PARAMS["down"] | {"kernel": broken}}
    with pytest.raises(ValueError, match=r"'down/kernel': scales\[2\] is nan"):
        quantized.sparsify(mlp, CODES)(params, X)
    stack = js.pack(numbers(3, 8, 8), js.Block(2, 4), batch_axis=0, dtype=jnp.int8)
    nan = stack.replace(scales=stack.scales.at[1].set(jnp.nan))
    with pytest.raises(ValueError, match="'w': scales"):
        quantized.sparsify(lambda p, x: x @ p["w"][1], {"w": of_range(-2, 2)})({"w": nan}, X)
