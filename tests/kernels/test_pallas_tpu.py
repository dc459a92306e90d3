"""The TPU kernels on a machine without one: interpreted, lowered, exported."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, PartitionSpec

from jaxsparse import kernels
from jaxsparse.kernels import pallas_tpu, walks
from jaxsparse.kernels.layouts import BlockLayout, NMLayout
from jaxsparse.kernels.pallas_tpu import products
from jaxsparse.packed.block_sparse import BlockSparse
from jaxsparse.products.sparse_dot import sparse_dot
from tests.kernels.block_cases import DIRECTIONS, Case


@contextlib.contextmanager
def interpreted():
    """Runs kernels as on a TPU: memory starts as NaN, a race fails."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call
    from jax.experimental.pallas import tpu

    params = tpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    with tpu.force_tpu_interpret_mode(params):
        try:
            yield
            assert not interpret_pallas_call.races.races_found
        finally:
            tpu.reset_tpu_interpret_mode_state()


slow = pytest.mark.slow


@pytest.mark.parametrize("op", DIRECTIONS)
@pytest.mark.parametrize(
    ("case", "out_dtype"),
    [
        pytest.param(Case((128, 128), (2, 3), 70, spare=1), "bfloat16", id="ragged-spare"),
        pytest.param(Case((16, 32), (9, 3), 70, spare=1), "bfloat16", id="by-features"),
        # Steps that are full, and steps that are not.
        pytest.param(Case((128, 256), (6, 2), 600, "float32"), "float32", id="float32", marks=slow),
        pytest.param(Case((8, 24), (5, 4), 300, "float32"), "float32", id="8x24", marks=slow),
    ],
)
def test_interpreted_agrees_with_float64_and_has_no_race(case, out_dtype, op):
    with interpreted():
        case.check(pallas_tpu, op, out_dtype)


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("transpose", [False, True])
def test_a_schedule_visits_every_strip_in_order_and_every_block_once(transpose, blocks):
    case = Case((2, 3), (7, 4), rows=1, spare=2)
    walk = walks.walk(case.index, case.layout, transpose)
    strips, held, sources, slots, length = products.schedule(walk, blocks)
    counts = np.diff(walk.starts)
    wanted = np.maximum(-(-counts // blocks), 1)
    assert length == wanted.sum() <= len(strips)
    strips, held = strips[:length], held[:length]
    np.testing.assert_array_equal(strips, np.repeat(np.arange(len(counts)), wanted))
    np.testing.assert_array_equal(np.unique(strips[held == 0]), np.flatnonzero(counts == 0))
    real = np.arange(blocks) < np.asarray(held)[:, None]
    for found, expected in ((slots, walk.slots), (sources, walk.sources)):
        found = np.asarray(found).reshape(-1, blocks)
        np.testing.assert_array_equal(found[:length][real], expected[: walk.starts[-1]])
        idle = ~real[1:]  # names what its place named before: nothing is fetched for it
        np.testing.assert_array_equal(found[1:length][idle], found[: length - 1][idle])


def test_a_training_step_exports_for_a_tpu():
    case = Case((128, 128), (3, 4), 300, spare=1)

    def loss(x, values, implementation):
        weight = BlockSparse(values, *case.index, case.block, case.layout.shape)
        y = sparse_dot(x, weight, implementation=implementation)
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    step = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    exported = export.export(step, platforms=("tpu",))(case.x, case.values, "pallas_tpu")
    assert exported.mlir_module().count("custom_call @tpu_custom_call") == 3
    assert [a.shape for a in exported.out_avals] == [case.x.shape, case.values.shape]
    unasked = export.export(step, platforms=("tpu",))(case.x, case.values, None)
    assert "tpu_custom_call" not in unasked.mlir_module()


def test_it_lowers_inside_shard_map():
    case = Case((128, 128), (2, 3), 32)
    mesh = jax.make_mesh((2,), ("d",), (AxisType.Auto,), devices=jax.devices()[:2])

    def layer(x, values, *index):
        weight = BlockSparse(values, *index, case.block, case.layout.shape)
        return sparse_dot(x, weight, implementation="pallas_tpu")

    rows = PartitionSpec("d")
    specs = (rows, *[PartitionSpec()] * 3)
    divided = jax.shard_map(layer, mesh=mesh, in_specs=specs, out_specs=rows)
    step = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(divided(*a))).astype(jnp.float32), (0, 1)))
    exported = export.export(step, platforms=("tpu",))(case.x, case.values, *case.index)
    assert exported.mlir_module().count("custom_call @tpu_custom_call") == 3


def test_it_is_listed_as_available_by_name_only():
    assert kernels.implementations()["pallas_tpu"].startswith("available by name only: not yet run")


def like(shape, dtype):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"layout": NMLayout((256, 256), 2, 4)}, "it takes blocks, not NMLayout"),
        ({"layout": BlockLayout((256, 256), (16, 48), 8)}, None),
        ({"layout": BlockLayout((300, 256), (128, 128), 8)}, None),
        ({"values": like((8, 128, 128), "int8")}, None),
        ({"layout": BlockLayout((256, 256), (8, 128), 8)}, r"multiples of 16 .* \(8, 128\)"),
        ({"layout": BlockLayout((2048, 256), (1024, 128), 8)}, r"up to 512"),
        (
            {"layout": BlockLayout((256, 256), (16, 32), 8), "values": like((8, 16, 32), "int8")},
            r"multiples of 32 .* int8 values",
        ),
        (
            {"layout": BlockLayout((32768, 32768), (16, 16), 2**21)},
            "bytes of scalar memory, there is room for 917504: larger blocks have fewer",
        ),
        ({"x": like((8, 256), "float32")}, "not float32 and bfloat16"),
        ({"op": "sampled", "values": like((8, 256), "int8")}, "both float32, not bfloat16 and"),
        ({"out_dtype": jnp.dtype("float16")}, "not float16"),
    ],
)
def test_calls_that_are_not_taken_are_told_why(change, reason):
    call = {
        "op": "product",
        "layout": BlockLayout((256, 256), (128, 128), 8),
        "x": like((8, 256), "bfloat16"),
        "values": like((8, 128, 128), "bfloat16"),
        "out_dtype": jnp.dtype("bfloat16"),
    } | change
    found = pallas_tpu.unsupported(**call)
    if reason is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=reason):
            raise ValueError(found)
