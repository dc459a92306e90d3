"""cuSPARSELt without a GPU: compiled, loaded, lowered, and what it says."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax import export

from jaxsparse import kernels
from jaxsparse.kernels import cusparselt, devices
from jaxsparse.kernels.cusparselt import library, products
from jaxsparse.kernels.layouts import BlockLayout, NMLayout
from jaxsparse.products.sparse_dot import sparse_dot
from tests.kernels.cusparselt_cases import draw, forget, weight

# --- loaded and lowered --------------------------------------------------------------------------


@pytest.fixture
def loaded(cusparselt_build, monkeypatch):
    """The real thing in its place."""
    monkeypatch.setattr(cusparselt, "__path__", [*cusparselt.__path__, str(cusparselt_build)])
    forget()
    if reason := library.missing():
        forget()
        pytest.skip(reason)
    yield
    forget()


def targets(text):
    return [text.count(f"@jaxsparse_cusparselt_{name}") for name in ("compress", "multiply")]


def test_a_training_step_lowers_for_a_gpu(loaded):
    packed = weight((64, 48), "bfloat16")

    def loss(x, values, implementation="cusparselt"):
        y = sparse_dot(x, packed.with_values(values), implementation=implementation)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    def lowered(function):
        x = draw((37, 64), "bfloat16")
        traced = jax.jit(function).trace(x, packed.values)
        return targets(traced.lower(lowering_platforms=("cuda",)).as_text())

    assert lowered(loss) == [1, 1]
    assert lowered(jax.grad(loss, (0, 1))) == [1, 1]  # forward; the rest is XLA's
    assert lowered(lambda *a: loss(*a, implementation=None)) == [0, 0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_xla_decodes_everything_but_the_stream(dtype, loaded):
    """The handlers, called on the CPU, have nothing to say against what Python passes."""
    jax.devices("cpu")
    for name in ("compress", "multiply"):
        target = f"jaxsparse_cusparselt_{name}"
        capsule = jax.ffi.pycapsule(getattr(library._load()[0], target))
        jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    packed = weight((64, 64), dtype)
    compressed = jnp.zeros(products.compressed_bytes((64, 64), dtype), jnp.uint8)
    x = draw((16, 64), dtype)
    for call in (
        lambda: products.compress(packed.values, *packed.index, layout=packed.layout),
        lambda: products.multiply(x, compressed, outputs=64),
    ):
        # Operand 0 is the stream; a wrong buffer or attribute would be named beside it.
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"bad operands at: 0\)"):
            jax.block_until_ready(jax.jit(call)())


def test_an_export_must_vouch_for_it(loaded):
    packed = weight((64, 48), "float16")
    function = jax.jit(lambda x: sparse_dot(x, packed, implementation="cusparselt"))
    x = draw((16, 64), "float16")
    with pytest.raises(ValueError, match="jaxsparse_cusparselt"):
        export.export(function, platforms=("cuda",))(x)
    checks = [
        export.DisabledSafetyCheck.custom_call(f"jaxsparse_cusparselt_{name}")
        for name in ("compress", "multiply")
    ]
    exported = export.export(function, platforms=("cuda",), disabled_checks=checks)(x)
    assert targets(exported.mlir_module()) == [1, 1]
    assert exported.out_avals[0].shape == (16, 48)


def test_on_another_platform_the_name_is_refused(loaded):
    assert kernels.implementations()["cusparselt"].startswith("available by name only: not yet run")
    with pytest.raises(ValueError, match="it runs on cuda, this program is for cpu"):
        packed = weight((64, 48), "float16")
        sparse_dot(draw((16, 64), "float16"), packed, implementation="cusparselt")


# --- what it says --------------------------------------------------------------------------------


def test_where_it_is_not_built_it_says_so(monkeypatch):
    monkeypatch.setattr(cusparselt, "__path__", [])
    forget()
    try:
        assert "it was not built: jaxsparse was installed without CUDA's headers" in str(
            kernels.implementations()["cusparselt"]
        )
        packed = weight((32, 16), "float16")
        with pytest.raises(ValueError, match="implementation='cusparselt' cannot be used: it was"):
            sparse_dot(draw((16, 32), "float16"), packed, implementation="cusparselt")
        with pytest.raises(RuntimeError, match="cuSPARSELt cannot be called: it was not built"):
            products.compress(packed.values, *packed.index, layout=packed.layout)
    finally:
        forget()


def test_what_cannot_be_loaded_is_told(tmp_path, monkeypatch):
    (tmp_path / "libjaxsparse_cusparselt.so").write_text("not a library")
    monkeypatch.setattr(cusparselt, "__path__", [str(tmp_path)])
    monkeypatch.setattr(library, "_load_cusparselt", lambda: None)
    forget()
    try:
        assert library.missing().startswith("cuSPARSELt cannot be loaded:")
    finally:
        forget()


def test_another_version_of_cusparselt_is_refused():
    versions = types.SimpleNamespace(
        jaxsparse_cusparselt_built=lambda: 10, jaxsparse_cusparselt_running=lambda: 8
    )
    assert library._version_reason(versions) == (
        "jaxsparse was built with cuSPARSELt 0.10, 0.8 is loaded here: install jaxsparse again "
        "beside that"
    )


def like(shape, dtype):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"layout": NMLayout((64, 48), 1, 4)}, None),
        ({"layout": NMLayout((64, 48), 2, 4, 48)}, None),
        ({"transpose": True, "x": like((8, 48), "float32")}, None),
        ({"op": "sampled", "values": like((8, 48), "float32")}, None),
        ({"layout": BlockLayout((64, 48), (16, 16), 2)}, "it takes 2:4 and 1:4, not BlockLayout"),
        ({"layout": NMLayout((64, 48), 4, 8)}, "it takes 2:4 and 1:4, not NMLayout"),
        ({"layout": NMLayout((64, 48), 3, 4)}, "it takes 2:4 and 1:4, not NMLayout"),
        ({"values": like((32, 48), "float32")}, "not bfloat16 and float32"),
        ({"values": like((32, 48), "int8")}, "not bfloat16 and int8"),
        ({"out_dtype": jnp.dtype("float32")}, "the dtype of x, bfloat16, not float32"),
        ({"layout": NMLayout((72, 48), 2, 4)}, "multiples of 16 in bfloat16, the weight's shape"),
        ({"layout": NMLayout((64, 40), 2, 4)}, "is (64, 40)"),
    ],
)
def test_what_it_does_not_take_is_named(change, reason):
    call = {
        "op": "product",
        "layout": NMLayout((64, 48), 2, 4),
        "x": like((8, 64), "bfloat16"),
        "values": like((32, 48), "bfloat16"),
        "out_dtype": jnp.dtype("bfloat16"),
    }
    found = cusparselt.unsupported(**(call | change))
    assert found is None if reason is None else reason in found


def test_an_old_gpu_is_refused_by_its_name(monkeypatch):
    device = types.SimpleNamespace(compute_capability="7.5", device_kind="Tesla T4")
    monkeypatch.setattr(devices, "gpu", lambda: device)
    half = like((64, 64), "bfloat16")
    found = cusparselt.unsupported("product", NMLayout((64, 64), 2, 4), half, half, half.dtype)
    assert found == "it needs compute capability 8.0 (Ampere) or later, Tesla T4 has 7.5"


def test_operands_that_do_not_fit_are_refused_before_anything_is_called():
    layout = NMLayout((64, 48), 2, 4)
    words = jnp.zeros(layout.index_shapes[0], jnp.uint32)
    with pytest.raises(ValueError, match="weights are bfloat16, float16, int8, not float32"):
        products.compress(jnp.zeros(layout.values_shape), words, layout=layout)
    with pytest.raises(ValueError, match="takes 2:4 and 1:4"):
        products.compress(jnp.zeros((48, 48)), words, layout=NMLayout((64, 48), 3, 4))
    half = jnp.zeros((16, 64), jnp.bfloat16)
    for compressed in (jnp.zeros(7, jnp.uint8), jnp.zeros(3456, jnp.int8)):
        with pytest.raises(ValueError, match=r"in bfloat16 is uint8 \(3456,\), this is"):
            products.multiply(half, compressed, outputs=48)
    with pytest.raises(ValueError, match="multiples of 16 in bfloat16, the weight's shape is"):
        products.multiply(half, jnp.zeros(3456, jnp.uint8), outputs=50)
