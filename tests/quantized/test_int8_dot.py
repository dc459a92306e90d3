"""`int8_dot` against integers and float64 in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse as js
from jaxsparse.quantized import Affine, int8_dot

PATTERNS = [js.Block(4, 16), js.Block(1, 16), js.Block(3, 5), js.NM(2, 4), js.Unstructured()]
IMPLEMENTATIONS = ["xla", None]


def packed_case(rng, pattern, k, n, density=0.3):
    """A packed weight of which whole blocks are kept by chance."""
    rows, columns = (pattern.rows, pattern.columns) if isinstance(pattern, js.Block) else (1, 1)
    kept = rng.random((-(-k // rows), -(-n // columns))) < density
    if isinstance(pattern, js.NM):
        kept = np.arange(k)[:, None] % pattern.m < pattern.n + np.zeros((k, n))
    mask = np.kron(kept, np.ones((rows, columns), bool))[:k, :n]
    return js.pack(rng.standard_normal((k, n)).astype(np.float32), pattern, mask, dtype=jnp.int8)


def codes_of(packed):
    """The stored int8 weight as a dense matrix of int64."""
    return np.asarray(packed.layout.todense(packed.values, *packed.index)).astype(np.int64)


def random_codes(rng, shape, dtype):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(max_examples=4, deadline=None)
@given(
    k=st.integers(1, 70),
    n=st.integers(1, 50),
    batch=st.sampled_from([1, 2, 7, 17, 40]),
    dtype=st.sampled_from(["uint8", "int8"]),
    extreme=st.sampled_from([None, -128, 127]),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_are_those_of_integers(pattern, implementation, k, n, batch, dtype, extreme, seed):
    rng = np.random.default_rng(seed)
    packed = packed_case(rng, pattern, k, n)
    if extreme is not None:
        packed = packed.replace(values=jnp.full_like(packed.values, extreme))
    x = random_codes(rng, (batch, k), dtype) if seed % 3 else np.full((batch, k), -1).astype(dtype)
    limits = np.iinfo(dtype)
    for zero in (limits.min, limits.min + 128, limits.max):
        found = int8_dot(
            jnp.asarray(x),
            packed,
            scale=1.0,
            zero_point=zero,
            preferred_element_type=jnp.int32,
            implementation=implementation,
        )
        np.testing.assert_array_equal(found, (x.astype(np.int64) - zero) @ codes_of(packed))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("biased", [False, True])
def test_what_is_made_of_the_sums(implementation, activation, biased):
    rng = np.random.default_rng(0)
    packed = packed_case(rng, js.Block(4, 16), 50, 37)
    x, scale, zero = random_codes(rng, (9, 50), "uint8"), np.float32(0.013), 119
    bias = rng.standard_normal(37).astype(np.float32) if biased else None
    sums = (x.astype(np.int64) - zero) @ codes_of(packed)
    y = sums * (np.float64(scale) * np.asarray(packed.scales)) + (0 if bias is None else bias)
    y = np.maximum(y, 0) if activation else y

    def run(**asked):
        return np.asarray(
            int8_dot(
                jnp.asarray(x),
                packed,
                scale=scale,
                zero_point=zero,
                bias=None if bias is None else jnp.asarray(bias),
                activation=activation,
                implementation=implementation,
                **asked,
            )
        )

    floats = run()
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, y, rtol=1e-6, atol=1e-6)
    halves = run(preferred_element_type=jnp.bfloat16)
    np.testing.assert_array_equal(halves, floats.astype(jnp.bfloat16))
    np.testing.assert_array_equal(run(preferred_element_type=jnp.float16), floats.astype("f2"))
    # Some y lie beyond the codes, on either side.
    for out in (Affine(0.02, 100), Affine(0.03, -7, "int8")):
        low, high = out.limits
        steps = y / np.float64(out.scale) + out.zero_point
        found = run(out=out)
        assert found.dtype == out.dtype and (steps > high).any()
        ties = np.abs(steps - np.floor(steps) - 0.5) < 1e-3
        np.testing.assert_array_equal(found[~ties], np.clip(np.round(steps), low, high)[~ties])
        assert np.abs(found - np.clip(steps, low, high)).max() <= 0.501


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 20), (4, 20), (4, 0)])
def test_nothing_to_sum_leaves_the_bias(implementation, shape):
    weight = np.zeros((shape[1], 16), np.float32)
    packed = js.pack(weight, js.Block(4, 16), dtype=jnp.int8)
    bias = jnp.arange(-8.0, 8.0)
    x = jnp.ones(shape, jnp.uint8)
    y = int8_dot(x, packed, scale=1.0, zero_point=3, bias=bias, implementation=implementation)
    np.testing.assert_array_equal(y, np.broadcast_to(bias, (shape[0], 16)))
    codes = int8_dot(
        x,
        packed,
        scale=1.0,
        bias=bias,
        activation="relu",
        out=Affine(1.0, 5),
        implementation=implementation,
    )
    np.testing.assert_array_equal(codes, np.broadcast_to(np.maximum(bias, 0) + 5, y.shape))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_several_axes_vmap_and_jit(implementation):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((3, 8, 2, 16)).astype(np.float32)
    packed = js.pack(weight, js.Block(4, 16), in_axis=(0, 1), out_axis=(2, 3), dtype=jnp.int8)
    x = jnp.asarray(random_codes(rng, (5, 2, 3, 8), "int8"))

    def run(x, packed, scale, zero_point):
        return int8_dot(
            x, packed, scale=scale, zero_point=zero_point, implementation=implementation
        )

    y = jax.jit(run)(x, packed, 0.5, 3)
    flat = np.asarray(x).reshape(10, 24).astype(np.int64) - 3
    expected = flat @ codes_of(packed) * (0.5 * np.asarray(packed.scales, np.float64))
    np.testing.assert_allclose(y, expected.reshape(5, 2, 2, 16), rtol=1e-6)
    mapped = jax.vmap(run, (0, None, None, None))(x, packed, 0.5, 3)
    np.testing.assert_array_equal(mapped, y)
    # Weights that differ along the batch.
    two = js.pack(
        np.stack([weight, -weight]).reshape(2, 24, 32),
        js.Block(4, 16),
        batch_axis=0,
        dtype=jnp.int8,
    )
    each = jax.vmap(run, (None, 0, None, 0))(x.reshape(10, 24), two, 0.5, jnp.array([3, 3]))
    np.testing.assert_allclose(each[0], expected, rtol=1e-6)
    np.testing.assert_allclose(each[1], -expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_stay_on_their_devices(kind):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(kind,))
    rng = np.random.default_rng(2)
    packed = packed_case(rng, js.Block(4, 16), 24, 32)
    x = random_codes(rng, (8, 24), "uint8")
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("rows"))
        run = jax.jit(lambda x: int8_dot(x, packed, scale=0.5, zero_point=9))
        there = jax.device_put(x, sharding)
        y = run(there)
        text = run.lower(there).compile().as_text()
    assert y.sharding.spec == PartitionSpec("rows") or y.sharding.spec == PartitionSpec(
        "rows", None
    )
    assert "all-gather" not in text
    np.testing.assert_array_equal(y, int8_dot(jnp.asarray(x), packed, scale=0.5, zero_point=9))


def test_an_export_multiplies_anywhere():
    rng = np.random.default_rng(3)
    packed = packed_case(rng, js.Block(4, 16), 20, 32)
    run = jax.jit(lambda x: int8_dot(x, packed, scale=0.5, zero_point=9))
    x = jnp.asarray(random_codes(rng, (3, 20), "uint8"))
    exported = jax.export.export(run, platforms=("cpu", "tpu", "cuda"))(x)
    np.testing.assert_allclose(exported.call(x), run(x), rtol=1e-6)


def test_one_program_serves_all_scales():
    rng = np.random.default_rng(4)
    packed = packed_case(rng, js.Block(4, 16), 16, 16)
    traced = []

    @jax.jit
    def run(x, packed, codes):
        traced.append(1)
        return int8_dot(x, packed, scale=codes.scale, zero_point=codes.zero_point)

    for scale, zero in ((0.5, 1), (2.0, 200)):
        run(jnp.ones((2, 16), jnp.uint8), packed, Affine(scale, zero))
    assert len(traced) == 1


PACKED = js.pack(np.eye(16, dtype=np.float32), js.Block(4, 16), dtype=jnp.int8)
CODES = jnp.ones((2, 16), jnp.uint8)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"x": CODES.astype(jnp.float32)}, TypeError, "float32"),
        ({"x": CODES.astype(jnp.int16)}, TypeError, "int16"),
        ({"x": CODES[:, :8]}, ValueError, r"\(2, 8\)"),
        ({"packed": js.pack(np.eye(16, dtype=np.float32), js.Block(4, 16))}, TypeError, "float32"),
        ({"packed": np.eye(16)}, TypeError, "ndarray"),
        ({"packed": PACKED.replace(scales=None)}, TypeError, "scales"),
        (
            {"packed": PACKED.replace(scales=PACKED.scales.at[5].set(jnp.nan))},
            ValueError,
            r"scales\[5\] is nan",
        ),
        (
            {
                "packed": js.pack(
                    np.ones((2, 16, 16), "f4"), js.Block(4, 16), batch_axis=0, dtype=jnp.int8
                )
            },
            ValueError,
            "stacks",
        ),
        ({"scale": float("nan")}, ValueError, "scale=nan"),
        ({"scale": -1.0}, ValueError, "scale=-1"),
        ({"scale": jnp.ones(16)}, TypeError, r"scale of shape \(16,\)"),
        ({"zero_point": 256}, ValueError, "zero_point=256"),
        ({"zero_point": -1}, ValueError, "zero_point=-1"),
        ({"bias": jnp.ones(8)}, ValueError, r"\(8,\)"),
        ({"bias": jnp.ones(16, jnp.int32)}, TypeError, "int32"),
        ({"activation": "gelu"}, ValueError, "gelu"),
        ({"preferred_element_type": jnp.int8}, TypeError, "out="),
        ({"preferred_element_type": jnp.float32, "out": Affine(1.0)}, ValueError, "out="),
        ({"preferred_element_type": jnp.int32, "activation": "relu"}, ValueError, "sums alone"),
        ({"implementation": "triton"}, ValueError, "triton"),
        ({"implementation": "none"}, ValueError, "none"),
    ],
)
def test_what_is_refused(changed, error, words):
    arguments = {"x": CODES, "packed": PACKED, "scale": 1.0} | changed
    with pytest.raises(error, match=words):
        int8_dot(arguments.pop("x"), arguments.pop("packed"), **arguments)


def test_more_inputs_than_int32_can_sum():
    wide = js.pack(
        np.ones((66_000, 16), np.float32),
        js.Block(4, 16),
        np.arange(66_000)[:, None] < [4] * 16,
        dtype=jnp.int8,
    )
    with pytest.raises(ValueError, match="66000 inputs"):
        int8_dot(jnp.ones((1, 66_000), jnp.uint8), wide, scale=1.0)
