"""How the TPU kernels cut a call, and what real compilers for TPUs say to that."""

import functools
import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
    use_abstract_mesh,
)

from jaxsparse.kernels import pallas_tpu
from jaxsparse.kernels.layouts import BlockLayout
from jaxsparse.kernels.pallas_tpu import tiles
from jaxsparse.packed.block_sparse import BlockSparse
from jaxsparse.products.sparse_dot import sparse_dot
from tests.kernels.block_cases import DIRECTIONS

MEMORY = {"TPU v4": 16, "TPU v5": 64, "TPU v5 lite": 128, "TPU v6 lite": 128, "TPU7x": 64}
BLOCKS = [(128, 128), (512, 512), (64, 64), (32, 128)]


def on(kind):
    """As if programs were made for this kind of TPU."""
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice(kind, 1, "tpu")))


@pytest.mark.parametrize("kind", [*MEMORY, None])
def test_every_tiling_has_whole_tiles_of_memory_and_fits(kind):
    memory = MEMORY[kind or "TPU v4"] * tiles.MIB
    calls = itertools.product(
        ("product", "sampled"), BLOCKS, [(4096, 4096), (512, 65536)], [1, 100, 4096, 100_000]
    )
    for op, block, widths, rows in calls:
        for dtype in ("bfloat16", "float32"):
            found = tiles.heuristic(op, block, widths, rows, 1000, (dtype,) * 3, kind)
            assert found, (op, block, widths, rows, dtype)
            assert found.vmem <= memory
            unit = 128 if found.by_features else tiles.sublanes(dtype)
            assert found.rows == rows or (found.rows < rows and found.rows % unit == 0)
            assert found.by_features == (min(block) < 128)
            if op == "sampled":
                assert found.blocks == 1
                assert not found.resident or found.rows == rows
            used = 2 * found.rows * (widths[0] if found.resident else found.blocks * block[0])
            assert used * jnp.dtype(dtype).itemsize < memory


def test_two_cores_of_a_chip_share_the_rows():
    def call(kind, rows):
        dtypes = ("bfloat16",) * 3
        return tiles.heuristic("product", (128, 128), (1024, 1024), rows, 32, dtypes, kind).rows

    assert [call(kind, 1024) for kind in ("TPU v5", "TPU v5 lite")] == [512, 1024]
    assert call("TPU v5", 300) == 300  # too few to share


def test_what_a_tpu_has_no_room_for_is_told():
    layout, half = BlockLayout((512, 512), (512, 512), 1), jnp.dtype("bfloat16")
    x, values = (jax.ShapeDtypeStruct(s, half) for s in ((64, 512), layout.values_shape))
    call = ("product", layout, x, values, half)
    with on("TPU v3"):
        assert pallas_tpu.unsupported(*call) == "it needs a TPU v4 or later, this is a TPU v3"
    with on("TPU v5e"):
        assert pallas_tpu.unsupported(*call) is None


# --- compiled for TPUs ---------------------------------------------------------------------------

CUSTOM_CALL = 'custom_call_target="tpu_custom_call"'
TOPOLOGIES = {
    "TPU v4": "v4:2x2x1",
    "TPU v5": "v5p:2x2x1",
    "TPU v5 lite": "v5e:2x2",
    "TPU v6 lite": "v6e:2x2",
    "TPU7x": "tpu7x:2x2x1",
}
CALLS = {  # block, rows, dtypes of x, values and results
    "ragged": ((128, 128), 300, ("bfloat16",) * 3),
    "few-rows": ((128, 256), 7, ("bfloat16",) * 3),
    "large": ((512, 512), 4096, ("float32",) * 3),
    "by-features": ((32, 64), 300, ("bfloat16", "bfloat16", "float32")),
    "8x16": ((8, 16), 300, ("float32",) * 3),
    "int8": ((128, 128), 300, ("bfloat16", "int8", "float32")),
    "int8-by-features": ((64, 32), 7, ("bfloat16", "int8", "float32")),
}


@pytest.fixture(scope="module")
def libtpu():
    """The compiler, told not to look for a TPU."""
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("not installed: libtpu, which compiles for TPUs on any machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
        patch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        # Workers of pytest compile beside each other; none of them holds a device.
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        yield


@functools.cache  # every call makes devices of its own
def mesh_of(kind, devices):
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[kind])
    assert topology.devices[0].device_kind == kind
    return Mesh(np.array(topology.devices[:devices]), ("d",))


def compile_for(kind, function, *args, sharded=()):
    """Compiles for one TPU; for four where the arguments at some places are sharded by rows."""
    mesh = mesh_of(kind, 4 if sharded else 1)
    args = [
        jax.ShapeDtypeStruct(
            a.shape,
            a.dtype,
            sharding=NamedSharding(mesh, PartitionSpec("d" if n in sharded else None)),
        )
        for n, a in enumerate(args)
    ]
    with on(kind):
        return jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",)).compile()


@pytest.mark.slow
@pytest.mark.parametrize("op", DIRECTIONS)
@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_it_compiles(kind, op, libtpu):
    for block, rows, (factor, second, result) in CALLS.values():
        layout = BlockLayout((1024, 2048), block, 40)
        x, g = (jax.ShapeDtypeStruct((rows, size), factor) for size in layout.shape)
        index = [jax.ShapeDtypeStruct(shape, "int32") for shape in layout.index_shapes]
        options = {"layout": layout, "out_dtype": jnp.dtype(result)}
        if op == "sampled":
            run, operands = functools.partial(pallas_tpu.sampled, **options), (x, g)
        else:
            values = jax.ShapeDtypeStruct(layout.values_shape, second)
            options["transpose"] = op == "transposed"
            run = functools.partial(pallas_tpu.product, **options)
            operands = g if options["transpose"] else x, values
        memory = compile_for(kind, run, *operands, *index).memory_analysis()
        width = {"product": layout.shape[1], "transposed": layout.shape[0]}
        wanted = rows * width[op] if op in width else layout.stored
        assert memory.output_size_in_bytes >= wanted * options["out_dtype"].itemsize


def training_step(implementation, mesh=None):
    """Gradients of a sparse layer with respect to values and x, as a user writes them."""
    layout, half = BlockLayout((1024, 2048), (128, 128), 40), jnp.bfloat16
    arrays = [jax.ShapeDtypeStruct(s, "int32") for s in layout.index_shapes]
    arrays += [jax.ShapeDtypeStruct(s, half) for s in (layout.values_shape, (512, 1024))]

    def layer(indptr, rows, values, x):
        packed = BlockSparse(values, indptr, rows, layout.block, layout.shape)
        return sparse_dot(jnp.sin(x), packed, implementation=implementation)

    if mesh:
        rows = PartitionSpec("d")
        layer = jax.shard_map(
            layer, mesh=mesh, in_specs=(*[PartitionSpec()] * 3, rows), out_specs=rows
        )
    gradients = jax.grad(lambda *a: jnp.sum(jnp.sin(layer(*a).astype(jnp.float32))), (2, 3))
    return gradients, *arrays


@pytest.mark.slow
def test_a_training_step_compiles_for_one_device(libtpu):
    step = compile_for("TPU v5 lite", *training_step("pallas_tpu"))
    assert step.as_text().count(CUSTOM_CALL) == 3


@pytest.mark.slow
def test_in_shard_map_every_device_runs_the_kernels_on_its_rows(libtpu):
    mesh = mesh_of("TPU v5 lite", 4)
    step = compile_for("TPU v5 lite", *training_step("pallas_tpu", mesh), sharded=[3])
    text = step.as_text()
    assert text.count(CUSTOM_CALL) == 3
    assert "all-reduce" in text
    assert "all-gather" not in text


@pytest.mark.slow
def test_what_the_compiler_shards_is_the_references(libtpu):
    """It cannot divide a kernel, and on a TPU it cannot be told how."""
    text = compile_for("TPU v5 lite", *training_step(None), sharded=[3]).as_text()
    assert CUSTOM_CALL not in text
    assert "all-gather" not in text
    with pytest.raises(ValueError, match=r"tpu compilers cannot divide it .* jax\.shard_map"):
        compile_for("TPU v5 lite", *training_step("pallas_tpu"), sharded=[3])
