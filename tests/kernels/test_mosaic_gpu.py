"""The Hopper kernels on a machine without a GPU: interpreted, lowered, exported."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxsparse import kernels
from jaxsparse.kernels import devices, mosaic_gpu
from jaxsparse.kernels.layouts import BlockLayout, CSCLayout
from jaxsparse.kernels.mosaic_gpu import configs
from jaxsparse.packed.block_sparse import BlockSparse
from jaxsparse.products.sparse_dot import sparse_dot
from tests.kernels.block_cases import DIRECTIONS, Case
from tests.kernels.hopper import interpreted, like, needs_mosaic

BLOCKS = [(bk, bn) for bk in (32, 64, 128) for bn in (32, 64, 128)]


slow = pytest.mark.slow


@needs_mosaic
@pytest.mark.parametrize("op", DIRECTIONS)
@pytest.mark.parametrize(
    ("case", "out_dtype"),
    [
        pytest.param(Case((64, 64), (2, 3), 70, spare=1), "bfloat16", id="ragged-spare"),
        pytest.param(Case((32, 32), (7, 2), 70, spare=1, density=0.9), "bfloat16", id="32x32"),
        pytest.param(Case((32, 128), (3, 2), 130), "float32", id="32x128", marks=slow),
        pytest.param(Case((128, 32), (2, 3), 70, "float16"), "float16", id="128x32", marks=slow),
        pytest.param(Case((64, 32), (3, 3), 70), "bfloat16", id="64x32", marks=slow),
        pytest.param(Case((32, 64), (3, 3), 70), "bfloat16", id="32x64", marks=slow),
        # The ring wraps around; one warpgroup multiplies.
        pytest.param(Case((64, 64), (9, 2), 40, density=1), "float32", id="deep", marks=slow),
        pytest.param(Case((128, 128), (2, 3), 300), "bfloat16", id="128x128", marks=slow),
        pytest.param(Case((64, 128), (3, 2), 256, "float16"), "float16", id="64x128", marks=slow),
        pytest.param(Case((128, 64), (2, 3), 128, "float16"), "float32", id="128x64", marks=slow),
    ],
)
def test_interpreted_agrees_with_float64_and_has_no_race(case, out_dtype, op):
    with interpreted():
        case.check(mosaic_gpu, op, out_dtype)


class Everywhere(Case):
    """Every block is stored, those of the last column too."""

    @property
    def kept(self):
        return np.ones(self.grid, bool)


@needs_mosaic
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float32"])
def test_narrow_blocks_at_the_edge_are_computed_with_their_neighbours(out_dtype):
    with interpreted():
        Everywhere((32, 32), (2, 3), 40).check(mosaic_gpu, "sampled", out_dtype)


@needs_mosaic
@pytest.mark.parametrize("op", ["product", "transposed"])
@pytest.mark.parametrize(
    ("block", "dtype"),
    [((64, 64), "int8"), ((32, 64), "float8_e4m3fn"), ((128, 32), "float8_e4m3fn")],
)
def test_factors_of_eight_bits_agree_with_float64_and_have_no_race(block, dtype, op):
    case = Case(block, (2, 3), 40, dtype, spare=1)
    with interpreted():
        case.check(mosaic_gpu, op, "float32")


@needs_mosaic
@pytest.mark.parametrize("transpose", [False, True])
def test_quantized_values_are_the_same_numbers_in_sixteen_bits(transpose):
    case = Case((64, 64), (2, 2), 8, "int8")
    x = (case.g if transpose else case.x).astype("bfloat16")
    options = {"layout": case.layout, "transpose": transpose, "out_dtype": jnp.dtype("float32")}

    @jax.jit
    def product(x, values, *index):
        return mosaic_gpu.product(x, values, *index, **options)

    with interpreted():
        found = product(x, case.values, *case.index)
    dense = case.dense.T if transpose else case.dense
    np.testing.assert_allclose(found, np.asarray(x, np.float64) @ dense, rtol=1e-5)


def weight(case):
    return BlockSparse(case.values, *case.index, case.block, case.layout.shape)


@needs_mosaic
@pytest.mark.parametrize("block", [BLOCKS[0], BLOCKS[-1]], ids=str)
def test_a_training_step_exports_for_a_gpu(block):
    case = Case(block, (3, 4), 300, spare=1)

    def loss(x, values, implementation):
        y = sparse_dot(x, weight(case).with_values(values), implementation=implementation)
        return jnp.sum(y.astype(jnp.float32))

    step = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    exported = export.export(step, platforms=("cuda",))(case.x, case.values, "mosaic_gpu")
    assert exported.mlir_module().count("custom_call @mosaic_gpu") == 3 - 1  # y itself is unused
    assert [a.shape for a in exported.out_avals] == [case.x.shape, case.values.shape]
    forward = jax.jit(loss, static_argnums=2)
    exported = export.export(forward, platforms=("cuda",))(case.x, case.values, "mosaic_gpu")
    assert exported.mlir_module().count("custom_call @mosaic_gpu") == 1
    unasked = export.export(forward, platforms=("cuda",))(case.x, case.values, None)
    assert "custom_call @mosaic_gpu" not in unasked.mlir_module()


def test_it_is_listed_as_available_by_name_only():
    state = kernels.implementations()["mosaic_gpu"]
    assert state == mosaic_gpu.missing() or state.startswith("available by name only: not yet run")


@needs_mosaic
def test_on_another_platform_the_name_is_refused():
    case = Case((64, 64), (2, 2), 8)
    with pytest.raises(ValueError, match="it runs on cuda, this program is for cpu"):
        sparse_dot(case.x, weight(case), implementation="mosaic_gpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"layout": CSCLayout((256, 256), 8)}, "it takes blocks and 2:4, not CSCLayout"),
        ({"layout": BlockLayout((256, 256), (16, 64), 8)}, r"64 or 128, these .* \(16, 64\)"),
        ({"layout": BlockLayout((200, 256), (64, 64), 8)}, r"do not divide .* \(200, 256\)"),
        ({"x": like((8, 256), "float32")}, "not float32 and bfloat16"),
        ({"values": like((8, 64, 64), "int8")}, None),
        ({"x": like((8, 256), "int8")}, "not int8 and bfloat16"),
        ({"values": like((8, 64, 64), "float8_e5m2")}, "not bfloat16 and float8_e5m2"),
        ({"out_dtype": jnp.dtype("float64")}, "not float64"),
        (
            {n: like((8, 256), "int8") for n in ("x", "values")} | {"out_dtype": np.dtype("int8")},
            "results are int32, float32, not int8",
        ),
    ],
)
def test_calls_that_are_not_taken_are_told_why(change, reason):
    call = {
        "layout": BlockLayout((256, 256), (64, 64), 8),
        "x": like((8, 256), "bfloat16"),
        "values": like((8, 64, 64), "bfloat16"),
        "out_dtype": jnp.dtype("bfloat16"),
    } | change
    found = mosaic_gpu.unsupported("product", **call)
    if reason is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=reason):
            raise ValueError(found)


def test_eight_bits_cannot_be_summed_over_the_batch():
    layout, x = BlockLayout((256, 256), (64, 64), 8), like((8, 256), "float8_e4m3fn")
    reason = mosaic_gpu.unsupported("sampled", layout, x, x, jnp.dtype("float32"))
    assert reason.startswith("x and g are both bfloat16 or both float16, not float8_e4m3fn")


def test_other_devices_are_not_taken(monkeypatch):
    @dataclasses.dataclass
    class Device:
        device_kind: str = "NVIDIA A100"
        compute_capability: str = "8.0"

    monkeypatch.setattr(devices, "gpu", Device)
    layout = BlockLayout((256, 256), (64, 64), 8)
    x, values = like((8, 256), "bfloat16"), like((8, 64, 64), "bfloat16")
    reason = mosaic_gpu.unsupported("product", layout, x, values, x.dtype)
    assert reason == "it needs compute capability 9.0 (Hopper), NVIDIA A100 has 8.0"


def test_a_weight_too_narrow_for_wgmma_is_refused():
    layout = BlockLayout((64, 32), (32, 32), 1)
    x, g = like((8, 64), "bfloat16"), like((8, 32), "bfloat16")
    reason = mosaic_gpu.unsupported("sampled", layout, x, g, x.dtype)
    assert reason == "wgmma computes 64 outputs at a time, this weight has 32"


@pytest.mark.parametrize(("in_bytes", "out_bytes"), [(2, 2), (2, 4), (1, 4)])
@pytest.mark.parametrize("rows", [1, 64, 65, 128, 129, 8192])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("op", ["product", "sampled"])
def test_every_heuristic_tile_fits_shared_memory(op, block, rows, in_bytes, out_bytes):
    config = configs.heuristic(op, block, rows, out_bytes, in_bytes)
    assert config.stages >= 2
    used = configs.shared_memory(op, block, config, out_bytes, in_bytes)
    assert used <= devices.SHARED_MEMORY
    more = dataclasses.replace(config, stages=config.stages + 1)
    if config.stages < configs.MOST_STAGES:
        used = configs.shared_memory(op, block, more, out_bytes, in_bytes)
        assert used > devices.SHARED_MEMORY
    if op == "sampled":
        assert config.wg_rows in (64, 128)


def test_a_measured_configuration_goes_first(monkeypatch, tmp_path):
    config = configs.Config(64, 1, 2)
    entry = {"op": "product", "block": [64, 64], "bytes": 2, "rows": 512}
    entry["config"] = dataclasses.asdict(config)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "NVIDIA_H900.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(configs, "__file__", str(tmp_path / "configs.py"))
    assert configs.configure("product", (64, 64), 600, 2, "NVIDIA H900") == config
    assert configs.configure("product", (64, 64), 600, 2, "NVIDIA H900", 1) != config
    for other in (
        ("product", (64, 64), 511),
        ("product", (64, 128), 600),
        ("sampled", (64, 64), 600),
    ):
        assert configs.configure(*other, 2, "NVIDIA H900") == configs.heuristic(*other, 2)
