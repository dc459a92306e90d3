"""The Hopper kernels compiled to machine code for an H200, where the CUDA wheels are."""

import jax.numpy as jnp
import pytest

from jaxsparse.kernels import mosaic_gpu
from jaxsparse.kernels.layouts import BlockLayout, NMLayout
from jaxsparse.kernels.mosaic_gpu import schedule
from tests.kernels.block_cases import DIRECTIONS
from tests.kernels.hopper import assert_compiles_well, like, needs_compiler

pytestmark = [pytest.mark.slow, needs_compiler]

BLOCKS = [(64, 64), (64, 128), (128, 64), (128, 128), (32, 32), (32, 128), (128, 32)]


@pytest.fixture
def compiles_well(monkeypatch, capfd):
    def check(function, *args, **kwargs):
        assert_compiles_well(function, *args, monkeypatch=monkeypatch, capfd=capfd, **kwargs)

    return check


SIZES = [(op, 40, rows) for op in DIRECTIONS for rows in (64, 4096)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize(("op", "nnz", "rows"), [*SIZES, ("sampled", 200, 4096)])
def test_blocks_spill_nothing(op, nnz, block, rows, compiles_well, monkeypatch):
    # Whatever is large enough to choose is dealt; the batch is split for 40 blocks, not for 200.
    monkeypatch.setattr(schedule, "LONG", 1)
    layout = BlockLayout((1024, 2048), block, nnz)
    index = [like(shape, "int32") for shape in layout.index_shapes]
    x, g = (like((rows, size), "bfloat16") for size in layout.shape)
    values = like(layout.values_shape, "bfloat16")
    options = {"layout": layout, "out_dtype": jnp.dtype("bfloat16")}

    def run(a, b, *index):
        if op == "sampled":
            return mosaic_gpu.sampled(a, b, *index, **options)
        return mosaic_gpu.product(a, b, *index, transpose=op == "transposed", **options)

    compiles_well(run, g if op == "transposed" else x, g if op == "sampled" else values, *index)


@pytest.mark.parametrize(
    ("dtype", "out_dtype", "multiply"),
    [
        ("int8", "int32", "IGMMA"),
        ("int8", "float32", "IGMMA"),
        ("float8_e4m3fn", "bfloat16", "QGMMA"),
    ],
)
@pytest.mark.parametrize("block", [(32, 32), (64, 64), (128, 128)], ids=str)
@pytest.mark.parametrize("transpose", [False, True])
def test_eight_bits_spill_nothing(transpose, block, dtype, out_dtype, multiply, compiles_well):
    layout = BlockLayout((1024, 2048), block, 40)
    index = [like(shape, "int32") for shape in layout.index_shapes]
    x, values = like((4096, layout.shape[transpose]), dtype), like(layout.values_shape, dtype)
    options = {"layout": layout, "transpose": transpose, "out_dtype": jnp.dtype(out_dtype)}
    compiles_well(
        lambda *a: mosaic_gpu.product(*a, **options), x, values, *index, multiply=multiply
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("rows", [1, 16, 32, 40, 64])
@pytest.mark.parametrize("shape", [(4096, 4096), (4096, 28672), (5120, 13824)])
def test_decoding_spills_nothing(shape, rows, dtype, compiles_well):
    layout = NMLayout(shape, 2, 4)
    words = [like(s, "uint32") for s in layout.index_shapes]
    x, values = like((rows, shape[0]), "bfloat16"), like(layout.values_shape, dtype)
    options = {"layout": layout, "transpose": False, "out_dtype": jnp.dtype("bfloat16")}
    compiles_well(lambda *a: mosaic_gpu.product(*a, **options), x, values, *words)
