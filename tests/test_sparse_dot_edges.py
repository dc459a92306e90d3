"""Products of nothing, of dtypes that few have, and exported for a batch of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as js
from jaxsparse import kernels
from jaxsparse.packed import indices
from jaxsparse.products.sparse_dot import sparse_dot
from tests.packed_cases import BY_NAME, IMPLEMENTATIONS, STORAGES, assert_close, draw, draw_x

every_storage = pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.name)
HERE = sorted({"xla", "cpu"} & set(IMPLEMENTATIONS))


@every_storage
@pytest.mark.parametrize("shape", [(0, 20), (20, 0)], ids=str)
def test_weights_without_inputs_or_outputs(storage, shape):
    packed, dense = draw(storage, *shape, 0.5)
    assert dense.shape == shape
    assert js.unpack(packed).dtype == jnp.float32

    def y(x, values):
        return sparse_dot(x, packed.with_values(values))

    for rows in (0, 3):
        x = draw_x(rows, shape[0])
        out, pullback = jax.vjp(y, x, packed.values)
        np.testing.assert_array_equal(out, np.zeros((rows, shape[1])))
        dx, dvalues = pullback(jnp.ones_like(out))
        np.testing.assert_array_equal(dx, np.zeros_like(x))
        np.testing.assert_array_equal(dvalues, np.zeros_like(packed.values))


@pytest.mark.parametrize("pattern", [js.Block(2, 2), js.NM(2, 4), js.Unstructured()], ids=str)
@pytest.mark.parametrize("shape", [(0, 8, 16), (2, 0, 16), (2, 8, 0)], ids=str)
def test_stacks_of_nothing(pattern, shape):
    weight = jnp.zeros(shape)
    packed = js.pack(weight, pattern, batch_axis=0, dtype=jnp.int8)
    assert packed.shape == js.unpack(packed).shape == shape
    y = jax.vmap(sparse_dot)(jnp.ones((shape[0], 3, shape[1])), packed)
    np.testing.assert_array_equal(y, np.zeros((shape[0], 3, shape[2])))


@pytest.mark.parametrize("rows", [0, 8])
@pytest.mark.parametrize("name", ["mosaic_gpu", "triton", "pallas_tpu"])
def test_no_kernel_is_called_where_there_is_nothing_to_multiply(name, rows):
    if reason := kernels.load(name)[1]:
        pytest.skip(reason)
    nnz = 0 if rows else 1
    values, index = jnp.zeros((nnz, 128, 128), jnp.bfloat16), jnp.zeros(nnz, jnp.int32)
    indptr = jnp.array([0, nnz, nnz], jnp.int32)
    packed = js.BlockSparse(values, indptr, index, (128, 128), (128, 256))
    x = jnp.ones((rows, 128), jnp.bfloat16)

    @jax.jit
    def step(x, values):
        y, back = jax.vjp(
            lambda x, v: sparse_dot(x, packed.with_values(v), implementation=name), x, values
        )
        return y, back(y)

    platform = "tpu" if name == "pallas_tpu" else "cuda"
    assert (
        "custom_call" not in step.trace(x, values).lower(lowering_platforms=(platform,)).as_text()
    )


@pytest.mark.parametrize("pattern", [js.Block(2, 2), js.Unstructured()], ids=str)
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_more_entries_than_pointers_count_are_refused_by_name(pattern, density, monkeypatch):
    monkeypatch.setattr(indices, "MOST", 7)
    weight = jnp.ones((16, 16))
    mask = np.random.default_rng(0).random((16, 16)) < density
    rules = [js.Rule("head/kernel", pattern, sparsity=0.5)]
    with pytest.raises(ValueError, match=r"'head/kernel'.* entries .*count to 7: split"):
        js.pack_params({"head": {"kernel": weight}}, {"head/kernel": mask}, rules)


@pytest.mark.parametrize("name", ["block4x16", "bitmap", "csc", "2of4"])
def test_result_dtypes_that_are_refused(name):
    packed, _ = draw(BY_NAME[name], 40, 33, 0.5)
    x = draw_x(2, 40)
    for dtype in (jnp.int32, jnp.bool_, jnp.complex64):
        with pytest.raises(TypeError, match=f"{jnp.dtype(dtype).name} is not floating"):
            sparse_dot(x, packed, preferred_element_type=dtype)
    for dtype in (jnp.int32, jnp.complex64, jnp.bool_):
        with pytest.raises(TypeError, match=f"floating-point x, got {jnp.dtype(dtype).name}"):
            sparse_dot(x.astype(dtype), packed)
    unreal = packed.with_values(packed.values.astype(jnp.complex64))
    with pytest.raises(TypeError, match=r"real weights, .*\(40, 33\) is complex64"):
        sparse_dot(x, unreal)
    eight = packed.with_values(packed.values.astype(jnp.float8_e4m3fn))
    with pytest.raises(TypeError, match=r"float32 and .*float8_e4m3fn.*preferred_element_type"):
        sparse_dot(x, eight)


@pytest.mark.parametrize("implementation", HERE)
@pytest.mark.parametrize("name", ["block4x16", "bitmap", "csc", "2of4"])
def test_float64_without_x64_is_float32(name, implementation):
    packed, dense = draw(BY_NAME[name], 40, 33, 0.5)
    x = draw_x(2, 40)
    y = sparse_dot(x, packed, implementation=implementation, preferred_element_type=np.float64)
    assert y.dtype == jnp.float32
    assert_close(y, np.asarray(x) @ dense)


@pytest.mark.parametrize("name", ["block4x16", "bitmap", "csc", "2of4"])
def test_float64(name):
    with jax.enable_x64(True):
        packed, _ = draw(BY_NAME[name], 40, 33, 0.5)
        values = packed.values.astype(jnp.float64) * np.pi
        x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 40)))

        def y(x, values):
            return sparse_dot(x, packed.with_values(values))

        out, (dx, dvalues) = y(x, values), jax.grad(lambda *a: y(*a).sum(), (0, 1))(x, values)
        assert {a.dtype for a in (out, dx, dvalues)} == {np.dtype("float64")}
        w = np.asarray(js.unpack(packed.with_values(values)))
        np.testing.assert_allclose(out, x @ w, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(dx, np.ones_like(out) @ w.T, rtol=1e-12, atol=1e-12)
        # Linear in the values: their gradient, weighed by them, is the sum itself.
        np.testing.assert_allclose(np.vdot(dvalues, values), out.sum(), rtol=1e-10)


@pytest.mark.parametrize("name", ["block4x16", "bitmap", "csc", "2of4"])
@pytest.mark.parametrize("kinds", [("float8_e4m3fn", "float32"), ("float32", "float8_e5m2")])
def test_floats_of_eight_bits(name, kinds):
    packed, _ = draw(BY_NAME[name], 40, 33, 0.5)
    packed = packed.with_values(packed.values.astype(kinds[1]))
    dense = np.asarray(js.unpack(packed.with_values(packed.values.astype(jnp.float32))))
    x = draw_x(3, 40, dtype=kinds[0])

    def y(x, values):
        return sparse_dot(x, packed.with_values(values), preferred_element_type=jnp.float32)

    out, pullback = jax.vjp(y, x, packed.values)
    assert_close(out, np.asarray(x, np.float32) @ dense, "bfloat16")
    dx, dvalues = pullback(jnp.ones_like(out))
    assert (dx.dtype, dvalues.dtype) == (x.dtype, packed.values.dtype)


@every_storage
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_bfloat16_inputs(storage, dtype, implementation):
    packed, dense = draw(storage, 64, 48, 0.5, dtype=dtype)
    x = draw_x(5, 64).astype(jnp.bfloat16)
    y = jax.jit(lambda x, packed: sparse_dot(x, packed, implementation=implementation))(x, packed)
    assert_close(y, np.asarray(x, np.float32) @ dense, "bfloat16")


@pytest.mark.parametrize("name", ["block4x16", "bitmap", "2of4"])
@pytest.mark.parametrize("spec", [P(None, None, "d"), P(None, "d"), P("d")], ids=str)
def test_any_axis_of_x_and_the_values_may_be_cut(name, spec):
    mesh = jax.make_mesh((2,), ("d",), (AxisType.Explicit,), devices=jax.devices()[:2])
    packed, dense = draw(BY_NAME[name], 40, 32, 1)  # as many values for either device
    with jax.set_mesh(mesh):
        x = jax.device_put(draw_x(24, 40).reshape(4, 6, 40), NamedSharding(mesh, spec))
        values = jax.device_put(packed.values, NamedSharding(mesh, P("d")))

        def loss(x, values):
            y = sparse_dot(x, packed.with_values(values))
            return jnp.sum(y**2), y

        (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, values)
    assert_close(y, np.asarray(x) @ dense)
    for gradient, array in zip(gradients, (x, values), strict=True):
        assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)
    assert_close(gradients[0], 2 * (np.asarray(x) @ dense) @ dense.T)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("name", ["block32x32", "bitmap", "csc", "2of4"])
def test_exports_for_a_batch_of_any_size(name, implementation):
    # Large blocks are so few that they would be gathered, were the batch known to be small.
    k, n, density = (512, 256, 0.05) if name == "block32x32" else (64, 48, 0.5)
    packed, _ = draw(BY_NAME[name], k, n, density)

    def direct(x, packed):
        return sparse_dot(x, packed, implementation=implementation)

    def written_dense(x, w):
        return jnp.einsum("...k,kn->...n", x, w)

    def gradients(x, packed):
        def loss(x, values):
            return jnp.sum(direct(x, packed.with_values(values)) ** 2)

        return jax.grad(loss, (0, 1))(x, packed.values)

    through = js.sparsify(written_dense, implementation=implementation)
    for function, axes in ((direct, "a, b"), (through, "a, b"), (gradients, "b")):
        shape = export.symbolic_shape(axes)
        x = jax.ShapeDtypeStruct((*shape, k), jnp.float32)
        data = export.export(jax.jit(function))(x, packed).serialize()
        call = export.deserialize(data).call
        for sizes in ((1, 1), (7, 3)):
            x = draw_x(int(np.prod(sizes[: len(shape)])), k).reshape(*sizes[: len(shape)], k)
            expected = jax.tree.leaves(function(x, packed))
            for got, want in zip(jax.tree.leaves(call(x, packed)), expected, strict=True):
                assert_close(got, want)
