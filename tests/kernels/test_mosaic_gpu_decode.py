"""2:4 weights by few rows on a Hopper GPU: interpreted, lowered, refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxsparse.kernels import mosaic_gpu
from jaxsparse.kernels.layouts import NMLayout
from jaxsparse.kernels.mosaic_gpu import decode_config
from jaxsparse.packed.packing import pack
from jaxsparse.patterns.nm import NM
from jaxsparse.products.sparse_dot import sparse_dot
from tests.kernels.hopper import interpreted, like, needs_mosaic
from tests.packed_cases import assert_close

slow = pytest.mark.slow


def weight(k, n, dtype="bfloat16"):
    """Two of every four random weights, at random places."""
    rng = np.random.default_rng(0)
    kept = rng.random((k // 4, 4, n)).argsort(1).argsort(1) < 2
    dense = jnp.asarray(rng.standard_normal((k, n)), "float32")
    return pack(dense, NM(2, 4), kept.reshape(k, n), dtype=dtype)


@needs_mosaic
@pytest.mark.parametrize(
    ("k", "n", "rows", "dtype", "values_dtype"),
    [
        pytest.param(1536, 64, 3, "bfloat16", "bfloat16", id="four-groups-a-step"),
        pytest.param(512, 128, 8, "bfloat16", "int8", id="int8"),
        pytest.param(3072, 128, 9, "float16", "float16", id="two-groups-a-step", marks=slow),
        pytest.param(6144, 64, 1, "bfloat16", "bfloat16", id="one-group-a-step", marks=slow),
        pytest.param(1024, 256, 64, "float16", "int8", id="most-rows", marks=slow),
    ],
)
def test_interpreted_agrees_with_float64_and_has_no_race(k, n, rows, dtype, values_dtype):
    packed = weight(k, n, values_dtype)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((rows, k)), dtype)
    layout, out_dtype = packed.layout, jnp.dtype("float32")
    assert mosaic_gpu.unsupported("product", layout, x, packed.values, out_dtype) is None

    @jax.jit
    def product(x, values, words):
        return mosaic_gpu.product(
            x, values, words, layout=layout, transpose=False, out_dtype=out_dtype
        )

    with interpreted():
        found = product(x, packed.values, *packed.index)
    stored = packed.replace(scales=None, values=packed.values.astype("float32"))
    assert found.dtype == out_dtype
    assert_close(found, np.asarray(x, np.float64) @ np.asarray(stored.todense(), np.float64))


@needs_mosaic
def test_a_product_exports_for_a_gpu():
    packed = weight(1024, 128, "int8")

    def product(x, packed):
        return sparse_dot(x, packed, implementation="mosaic_gpu")

    exported = export.export(jax.jit(product), platforms=("cuda",))(
        like((2, 4, 1024), "bfloat16"), packed
    )
    assert exported.mlir_module().count("custom_call @mosaic_gpu") == 1
    assert exported.out_avals[0].shape == (2, 4, 128)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"op": "sampled"}, "neither x @ Wᵀ nor the sampled product"),
        ({"transpose": True}, "neither x @ Wᵀ nor the sampled product"),
        ({"layout": NMLayout((1024, 128), 1, 4)}, "this is 1:4 with positions for 1 columns"),
        ({"layout": NMLayout((1024, 128), 2, 4, 128)}, "2:4 with positions for 128 columns"),
        ({"layout": NMLayout((1024, 96), 2, 4)}, r"multiples of 512 and .* \(1024, 96\)"),
        ({"layout": NMLayout((768, 128), 2, 4)}, r"multiples of 512 and .* \(768, 128\)"),
        ({"x": like((65, 1024), "bfloat16")}, "at most 64 rows, these are 65"),
        ({"x": like((8, 1024), "float16")}, "not float16 and bfloat16"),
        ({"out_dtype": jnp.dtype("int32")}, "not int32"),
    ],
)
def test_calls_that_are_not_taken_are_told_why(change, reason):
    call = {
        "op": "product",
        "layout": NMLayout((1024, 128), 2, 4),
        "x": like((8, 1024), "bfloat16"),
        "values": like((512, 128), "bfloat16"),
        "out_dtype": jnp.dtype("bfloat16"),
    } | change
    found = mosaic_gpu.unsupported(**call)
    if reason is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=reason):
            raise ValueError(found)


@pytest.mark.parametrize("in_bytes", [1, 2])
@pytest.mark.parametrize("rows", [8, 32, 64])
@pytest.mark.parametrize("shape", [(4096, 4096), (4096, 14336), (5120, 5120), (512, 64)])
def test_every_cut_divides_the_weight_and_pipelines(shape, rows, in_bytes):
    by = decode_config.cut(NMLayout(shape, 2, 4), rows, in_bytes, 132)
    assert by.stages >= 2
    depth = shape[0] // (32 * by.words)
    assert depth * 32 * by.words == shape[0]
    assert (by.splits - 1) * -(-depth // by.splits) < depth  # no part is empty
    assert shape[1] % (decode_config.SIDE * by.warpgroups) == 0
