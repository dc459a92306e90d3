"""The Triton kernels on a machine without a GPU: interpreted, lowered, compiled."""

import itertools
import os
import pathlib
import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import kernels
from jaxsparse.kernels import devices, triton
from jaxsparse.kernels.layouts import BlockLayout, CSCLayout
from jaxsparse.packed.block_sparse import BlockSparse
from jaxsparse.products.sparse_dot import sparse_dot
from tests.kernels.block_cases import DIRECTIONS, Case

MISSING = triton.missing()
needs_triton = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))


# --- interpreted on the host ---------------------------------------------------------------------


class HostArray:
    """As much of a torch tensor as Triton's interpreter asks of an operand."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def data_ptr(self):
        return self.array.ctypes.data

    def untyped_storage(self):
        return self

    cpu = untyped_storage

    def copy_(self, other):
        assert other.array is self.array  # written in place

    def new_empty(self, size, device):
        assert (size, device) == (0, "cpu")
        return HostArray(self.array[:0])

    def set_(self, storage, offset, size, stride):
        assert (offset, size, stride) == (0, storage.array.shape, storage.array.strides)
        self.array = storage.array

    def storage_offset(self):
        return 0

    def size(self):
        return self.array.shape

    def stride(self):
        return self.array.strides


def widened(handle):
    """Bits that stand for bfloat16 as float32; the interpreter would multiply the bits."""
    from triton import language
    from triton.runtime.interpreter import TensorHandle

    if handle.dtype != language.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), language.float32)


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run in Triton's own interpreter, called back from the program."""
    from triton.runtime import interpreter

    from jaxsparse.kernels.triton import products

    patch = interpreter._patch_lang_tensor

    def patch_for_numpy(tensor, scope):
        patch(tensor, scope)
        # NumPy 2.5 makes no int of an array of one, which Triton 3.6 asks of it.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_for_numpy)
    dot = interpreter.InterpreterBuilder.create_dot

    def dot_of_floats(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot_of_floats)

    def triton_call(*operands, kernel, out_shape, grid, name, compute_capability, **options):
        constants = {key: value for key, value in options.items() if key.isupper()}
        places = [i for i, o in enumerate(operands) if not isinstance(o, int)]

        def run(*arrays):
            # Outputs begin as NaN: every entry must be written.
            out = HostArray(np.full(out_shape.shape, np.nan, out_shape.dtype))
            filled = list(operands)
            for place, array in zip(places, arrays, strict=True):
                filled[place] = HostArray(np.array(array))
            interpreter.InterpretedFunction(kernel.fn)[(grid,)](*filled, out, **constants)
            return out.array

        return jax.pure_callback(run, out_shape, *(operands[i] for i in places))

    stand_in = types.SimpleNamespace(triton_call=triton_call)
    monkeypatch.setattr(products, "jax_triton", stand_in)


@needs_triton
@pytest.mark.parametrize("op", DIRECTIONS)
@pytest.mark.parametrize(
    ("case", "out_dtype"),
    [
        pytest.param(Case((16, 32), (3, 4), 70, spare=1), "bfloat16", id="ragged-spare"),
        pytest.param(Case((32, 16), (4, 3), 5, "float16"), "float32", id="few-rows"),
        pytest.param(Case((32, 64), (2, 3), 530, "float32"), "float32", id="nine-tiles"),
        pytest.param(Case((128, 16), (2, 3), 200), "float32", id="blocks-in-two-steps"),
        pytest.param(Case((16, 16), (20, 30), 1), "bfloat16", id="one-row"),
        pytest.param(
            Case((128, 128), (2, 3), 300, "float16"),
            "float16",
            id="128x128",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_interpreted_agrees_with_float64(case, out_dtype, op, interpreted):
    case.check(triton, op, out_dtype)


# --- lowered from JAX ----------------------------------------------------------------------------


def weight(case):
    return BlockSparse(case.values, *case.index, case.block, case.layout.shape)


def calls(function, *args):
    """Names of the Triton kernels in the program for a GPU."""
    text = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    return text.count("@triton_kernel_call")


@needs_triton
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_training_step_lowers_for_a_gpu(dtype):
    case = Case((32, 64), (3, 4), 50, dtype, spare=1)

    def loss(x, values, implementation="triton"):
        y = sparse_dot(x, weight(case).with_values(values), implementation=implementation)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    assert calls(loss, case.x, case.values) == 1
    assert calls(jax.grad(loss, (0, 1)), case.x, case.values) == 3
    assert calls(lambda *a: loss(*a, implementation=None), case.x, case.values) == 0


@needs_triton
def test_on_another_platform_the_name_is_refused():
    case = Case((16, 16), (2, 2), 8)
    with pytest.raises(ValueError, match="it runs on cuda, this program is for cpu"):
        sparse_dot(case.x, weight(case), implementation="triton")


def test_it_is_listed_as_available_by_name_only():
    state = kernels.implementations()["triton"]
    assert state == MISSING or state.startswith("available by name only: not yet run")


@needs_triton
def test_what_others_keep_for_triton_stays(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "here")
    triton.missing.cache_clear()
    assert triton.missing() is None
    assert os.environ["TRITON_CACHE_DIR"] == "here"


@pytest.mark.parametrize(
    ("absent", "reason"),
    [
        (["triton"], r"triton is not installed \(pip install 'jaxsparse\[triton\]'\)"),
        (["jax_triton"], "jax_triton is not installed"),
        (["jax_cuda12_plugin", "jax_cuda13_plugin"], "JAX's CUDA plugin.* is not installed"),
    ],
)
def test_what_is_missing_is_named(absent, reason, monkeypatch):
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in absent else object()
    )
    with pytest.raises(ValueError, match=f"implementation='triton' cannot be used: {reason}"):
        triton.missing.cache_clear()
        kernels.load.cache_clear()
        try:
            kernels.check("triton")
        finally:
            triton.missing.cache_clear()
            kernels.load.cache_clear()


def like(shape, dtype):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"op": "sampled"}, None),
        ({"layout": CSCLayout((256, 256), 8)}, "it takes blocks, not CSCLayout"),
        ({"layout": BlockLayout((256, 256), (8, 16), 2)}, "these blocks are (8, 16)"),
        ({"layout": BlockLayout((250, 256), (32, 32), 2)}, "do not divide the weight of shape"),
        ({"values": like((2, 32, 32), "float32")}, "not bfloat16 and float32"),
        ({"x": like((8, 256), "int8"), "values": like((2, 32, 32), "int8")}, "not int8 and int8"),
        ({"out_dtype": jnp.dtype("float64")}, "results are bfloat16, float16, float32"),
    ],
)
def test_what_it_does_not_take_is_named(change, reason):
    call = {
        "op": "product",
        "layout": BlockLayout((256, 256), (32, 32), 2),
        "x": like((8, 256), "bfloat16"),
        "values": like((2, 32, 32), "bfloat16"),
        "out_dtype": jnp.dtype("bfloat16"),
    }
    found = triton.unsupported(**(call | change))
    assert found is None if reason is None else reason in found


def test_an_old_gpu_is_refused_by_its_name(monkeypatch):
    device = types.SimpleNamespace(compute_capability="7.5", device_kind="Tesla T4")
    monkeypatch.setattr(devices, "gpu", lambda: device)
    half = like((256, 256), "bfloat16")
    layout = BlockLayout((256, 256), (32, 32), 2)
    found = triton.unsupported("product", layout, half, half, half.dtype)
    assert found == "it needs compute capability 8.0 (Ampere) or later, Tesla T4 has 7.5"


# --- compiled for the device ---------------------------------------------------------------------

TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32"}
BLOCKS = [(16, 16), (64, 64), (128, 128), (128, 32)]


def compile_kernel(kernel, launch, factor, capability):
    """A kernel compiled as jax-triton would: every array is aligned to 16 bytes."""
    import triton as language
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    arrays = {"x", "g", "values", "y"} & set(names)
    index = {"starts", "sources", "slots", "stored", "down", "across"} & set(names)
    signature = dict.fromkeys(names, "constexpr") | {"rows": "i32"}
    signature |= dict.fromkeys(arrays, "*" + TYPES[factor]) | dict.fromkeys(index, "*i32")
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in arrays | index}
    source = ASTSource(kernel, signature=signature, constexprs=launch.constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    return language.compile(source, target=target, options=launch.options)


def stack_bytes(compiled, path):
    """What a thread spills to memory, by the disassembler's account."""
    import triton as language

    path.write_bytes(compiled.asm["cubin"])
    tool = pathlib.Path(language.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    return int(said.stdout.split("STACK:")[1].split()[0])


@needs_triton
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize(
    ("capability", "factor"), [(80, "bfloat16"), (80, "float32"), (90, "bfloat16"), (90, "float32")]
)
def test_compiled_for_a_gpu_it_spills_two_registers_at_most(
    capability, factor, block, tmp_path, monkeypatch
):
    from jaxsparse.kernels.triton import kernels as language
    from jaxsparse.kernels.triton import products

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    dtype = jnp.dtype(factor)
    launches = [(language.sampled, products.sampled_launch(9, 1024, 1024, block, dtype))]
    for rows, turned in itertools.product((7, 4096), (False, True)):
        launch = products.product_launch(rows, 1024, 1024, block, turned, dtype)
        launches.append((language.product, launch))
    for kernel, launch in launches:
        compiled = compile_kernel(kernel, launch, factor, capability)
        assert stack_bytes(compiled, tmp_path / "kernel.cubin") <= 8, launch
        # 99 KiB is what the smallest device from Ampere on gives one program.
        assert compiled.metadata.shared <= 99 * 1024, launch
        assert "cp.async" in compiled.asm["ptx"]
        # Hopper's own instruction takes tiles of 64 rows at least.
        wide = capability == 90 and launch.constants.get("TILE", 0) >= 64
        assert ("wgmma" if wide else "mma") in compiled.asm["ptx"], launch
