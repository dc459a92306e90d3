"""One battery over storage, implementation, dtype, shape and direction."""

import functools
import importlib.util
import itertools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsparse import kernels
from jaxsparse.kernels import pallas_tpu
from jaxsparse.packed.block_sparse import BlockSparse
from jaxsparse.products.sparse_dot import matrix_product, sampled_product, sparse_dot
from tests.packed_cases import (
    BY_NAME,
    IMPLEMENTATIONS,
    STORAGES,
    assert_close,
    blocks,
    draw,
    draw_x,
)

DTYPES = ["float32", "bfloat16", "float16", "int8"]
CALLS = [
    pytest.param(storage, implementation, id=f"{storage.name}-{implementation}")
    for implementation in IMPLEMENTATIONS
    for storage in STORAGES
]
# On this machine as a plain XLA program; `tests/kernels` interprets it as the device runs it.
CALLS.append(pytest.param(BY_NAME["block32x32"], "pallas_tpu", id="block32x32-pallas_tpu"))
every_storage = pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.name)
every_call = pytest.mark.parametrize(("storage", "implementation"), CALLS)


@pytest.fixture(autouse=True)
def on_this_platform(request, monkeypatch):
    """Lets kernels for a TPU run here."""
    if getattr(request.node, "callspec", None) and "pallas_tpu" in request.node.callspec.id:
        from jax.experimental import pallas

        interpreted = functools.partial(pallas.pallas_call, interpret=True)
        monkeypatch.setattr(pallas, "pallas_call", interpreted)
        monkeypatch.setattr(pallas_tpu, "platforms", ("tpu", "cpu"))


@pytest.fixture
def devices():
    return jax.devices()[:2]


def named_or_skip(implementation, *args, **kwargs):
    """The call with a named implementation, or a skip where it says it does not take it."""
    try:
        return functools.partial(*args, **kwargs, implementation=implementation)()
    except ValueError as error:
        if "cannot compute" not in str(error):
            raise
        pytest.skip(str(error))


shapes = st.tuples(st.integers(0, 40), st.integers(1, 300), st.integers(1, 300))


@every_call
@given(shape=shapes, density=st.sampled_from([0, 0.05, 0.5, 1]), dtype=st.sampled_from(DTYPES))
@example(shape=(1, 1, 1), density=1, dtype="float32")
@example(shape=(7, 300, 299), density=0.02, dtype="float32")
@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_direction_agrees_with_float64(storage, implementation, shape, density, dtype):
    rows, k, n = shape
    packed, dense = draw(storage, k, n, density, dtype=dtype)
    x, g = draw_x(rows, k, dtype=dtype), draw_x(rows, n, seed=2, dtype=dtype)
    x64, g64 = np.asarray(x, np.float64), np.asarray(g, np.float64)
    try:
        y = matrix_product(x, packed, implementation=implementation)
    except ValueError as error:
        assert "cannot compute this product" in str(error)
        return
    assert y.dtype == x.dtype
    assert_close(y, x64 @ dense, dtype, scale=(np.abs(x64) @ np.abs(dense)).max(initial=0))
    dx = matrix_product(g, packed, transpose=True, implementation=implementation)
    assert_close(dx, g64 @ dense.T, dtype, scale=(np.abs(g64) @ np.abs(dense).T).max(initial=0))
    values = sampled_product(x, g, packed, implementation=implementation)
    kept = np.asarray(packed.replace(values=jnp.ones_like(values), scales=None).todense()) != 0
    found = packed.replace(values=values, scales=None).todense()
    scale = (np.abs(x64).T @ np.abs(g64)).max(initial=0)
    assert_close(found, np.where(kept, x64.T @ g64, 0), dtype, scale)


def loss(x, values, packed, implementation):
    y = sparse_dot(x, packed.with_values(values), implementation=implementation)
    return jnp.sum(jnp.sin(y))


def dense_loss(x, w):
    return jnp.sum(jnp.sin(jnp.dot(x, w, precision="highest")))


def gather(packed, dense):
    """The values of a dense matrix at the places of `packed`."""
    values = packed.values
    numbers = jnp.arange(1, values.size + 1, dtype=jnp.int32).reshape(values.shape)
    place = np.asarray(packed.with_values(numbers).todense())
    flat = np.zeros(values.size)
    flat[place[place > 0] - 1] = np.asarray(dense)[place > 0]
    return flat.reshape(values.shape)


@every_call
def test_gradients_forward_mode_and_second_order(storage, implementation):
    packed, dense = draw(storage, 70, 45, 0.4)
    x, w = draw_x(6, 70), jnp.asarray(dense, jnp.float32)
    f = functools.partial(loss, packed=packed, implementation=implementation)
    named_or_skip(implementation, sparse_dot, x, packed)

    dx, dvalues = jax.jit(jax.grad(f, (0, 1)))(x, packed.values)
    expected_dx, expected_dw = jax.grad(dense_loss, (0, 1))(x, w)
    assert_close(dx, expected_dx)
    assert_close(dvalues, gather(packed, expected_dw))

    tx, tv = draw_x(6, 70, seed=5), jax.random.normal(jax.random.key(0), packed.values.shape)
    tv = jnp.asarray(gather(packed, packed.with_values(tv).todense()), jnp.float32)
    tw = packed.with_values(tv).todense()
    primal, tangent = jax.jvp(f, (x, packed.values), (tx, tv))
    expected, expected_tangent = jax.jvp(dense_loss, (x, w), (tx, tw))
    np.testing.assert_allclose(primal, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tangent, expected_tangent, rtol=1e-4, atol=1e-3)

    _, (hx, hv) = jax.jvp(jax.grad(f, (0, 1)), (x, packed.values), (tx, tv))
    _, (expected_hx, expected_hw) = jax.jvp(jax.grad(dense_loss, (0, 1)), (x, w), (tx, tw))
    assert_close(hx / 10, expected_hx / 10)
    assert_close(hv / 10, gather(packed, expected_hw) / 10)
    # Reverse over reverse: the sampled product's own transpose.
    twice = jax.grad(lambda v: jnp.sum(jax.grad(f, 1)(x, v) * tv))(packed.values)
    expected_twice = jax.grad(lambda w: jnp.sum(jax.grad(dense_loss, 1)(x, w) * tw))(w)
    assert_close(twice, gather(packed, expected_twice))


@every_call
def test_vmap_scan_remat(storage, implementation):
    packed, _ = draw(storage, 33, 20, 0.4)
    named_or_skip(implementation, sparse_dot, draw_x(2, 33), packed)

    def dot(x, v):
        return sparse_dot(x, packed.with_values(v), implementation=implementation)

    xs = jnp.stack([draw_x(4, 33, seed=i) for i in range(3)])
    vs = jnp.stack([packed.values * scale for scale in (1, 2, 3)])
    both = jnp.stack([dot(x, v) for x, v in zip(xs, vs, strict=True)])
    assert_close(jax.vmap(dot)(xs, vs), both)
    assert_close(jax.vmap(dot, (0, None))(xs, vs[0]), jnp.stack([dot(x, vs[0]) for x in xs]))
    assert_close(jax.vmap(dot, (None, 0))(xs[0], vs), jnp.stack([dot(xs[0], v) for v in vs]))
    assert_close(jax.vmap(dot, (1, None), 1)(xs, vs[0]), dot(xs, vs[0]))
    assert_close(jax.lax.scan(lambda c, xv: (c, dot(*xv)), 0, (xs, vs))[1], both)
    plain = jax.grad(lambda v: jnp.sum(dot(xs, v) ** 2))(vs[0])
    assert_close(jax.grad(jax.remat(lambda v: jnp.sum(dot(xs, v) ** 2)))(vs[0]), plain)
    per_example = jax.vmap(jax.grad(lambda v, x: jnp.sum(dot(x, v) ** 2)), (None, 0))(vs[0], xs)
    assert_close(jnp.sum(per_example, 0), plain)


@every_call
def test_a_new_mask_with_as_many_entries_recompiles_nothing(storage, implementation, caplog):
    if storage.name.startswith("block"):
        first, second = (draw(storage, 96, 80, 0.5, seed=s)[0] for s in (0, 0))
        moved = np.array(second.rows)  # the same number of blocks, elsewhere
        moved[: int(second.indptr[1])] = np.arange(int(second.indptr[1]))
        second = second.replace(rows=jnp.asarray(moved))
    else:
        first, dense = draw(storage, 96, 80, 1)
        dense = np.roll(dense, 20, axis=1)
        second = storage.pack(jnp.asarray(dense, jnp.float32), dense != 0)
    x = draw_x(5, 96)
    named_or_skip(implementation, sparse_dot, x, first)
    step = jax.jit(jax.grad(lambda x, p: jnp.sum(sparse_dot(x, p) ** 2)), static_argnums=())
    step(x, first), sparse_dot(x, first, implementation=implementation)
    with caplog.at_level(logging.WARNING, "jax"), jax.log_compiles():
        step(x, second), sparse_dot(x, second, implementation=implementation)
    assert "ompil" not in caplog.text


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["block4x16", "bitmap", "csc", "2of4"])
def test_a_batch_of_nothing(name, implementation):
    packed, _ = draw(BY_NAME[name], 40, 33, 0.5)
    named_or_skip(implementation, sparse_dot, draw_x(1, 40), packed)
    nothing = jnp.zeros((0, 40))
    dx, dvalues = jax.grad(loss, (0, 1))(nothing, packed.values, packed, implementation)
    assert dx.shape == nothing.shape
    np.testing.assert_array_equal(dvalues, jnp.zeros_like(packed.values))


def cosines(tree):
    return jax.tree.map(jnp.cos, tree)


def total(f):
    return lambda *args: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(f(*args)))


ALL = (0, 1, 2)
TRANSFORMATIONS = {
    "none": lambda f: f,
    "reverse": lambda f: jax.grad(total(f), ALL),
    "reverse, in x alone": lambda f: jax.grad(total(f)),
    "forward": lambda f: lambda *args: jax.jvp(f, args, cosines(args)),
    "forward over reverse": lambda f: (
        lambda *args: jax.jvp(jax.grad(total(f), ALL), args, cosines(args))
    ),
    "reverse over reverse": lambda f: jax.grad(total(jax.grad(total(f), ALL)), ALL),
    "remat": lambda f: jax.grad(jax.remat(total(f)), ALL),
    "transpose": lambda f: (
        lambda x, v, s: jax.linear_transpose(lambda s: f(x, v, s), s)(x[:, : s.size])
    ),
}


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_scales_are_one_more_factor(transformation):
    packed, _ = draw(BY_NAME["2of4"], 33, 20, 0.4)
    transform = TRANSFORMATIONS[transformation]

    def scaled(x, values, scales):
        return sparse_dot(x, packed.replace(values=values, scales=scales))

    def multiplied(x, values, scales):
        return sparse_dot(x, packed.with_values(values)) * scales

    operands = draw_x(6, 33), packed.values, draw_x(1, 20, seed=3)[0]
    found, expected = (jax.jit(transform(f))(*operands) for f in (scaled, multiplied))
    jax.tree.map(assert_close, found, expected)
    if transformation not in ("none", "reverse"):
        return
    stacks = [jnp.stack([operand * factor for factor in (1, 2, 3)]) for operand in operands]
    for axes in itertools.product((None, 0), repeat=3):
        if axes == (None, None, None):
            continue
        call = [o if axis is None else s for o, s, axis in zip(operands, stacks, axes, strict=True)]
        found, expected = (jax.vmap(transform(f), axes)(*call) for f in (scaled, multiplied))
        jax.tree.map(assert_close, found, expected)
    loops = [jax.lax.scan(lambda c, o, f=f: (c, f(*o)), 0, stacks)[1] for f in (scaled, multiplied)]
    assert_close(*loops)


@pytest.mark.parametrize("implementation", ["xla", None])
@pytest.mark.parametrize("scales_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scales_of_any_type(implementation, scales_dtype, dtype):
    packed, _ = draw(BY_NAME["2of4"], 67, 45, 0.5, dtype="int8")
    packed = packed.replace(scales=packed.scales.astype(scales_dtype))
    dense = np.asarray(packed.replace(scales=None).todense(), np.float64)
    dense = dense * np.asarray(packed.scales, np.float64)
    x = draw_x(9, 67, dtype=dtype)
    y = sparse_dot(x, packed, implementation=implementation)
    assert y.dtype == x.dtype
    assert_close(y, np.asarray(x, np.float64) @ dense, dtype)
    wide = sparse_dot(x, packed, preferred_element_type="float32", implementation=implementation)
    assert wide.dtype == jnp.float32
    assert_close(wide, np.asarray(x, np.float64) @ dense)

    def f(x, scales):
        return jnp.sum(sparse_dot(x, packed.replace(scales=scales), implementation=implementation))

    dx, dscales = jax.grad(f, (0, 1))(x, packed.scales)
    assert (dx.dtype, dscales.dtype) == (x.dtype, packed.scales.dtype)
    assert_close(dx, np.broadcast_to(dense.sum(1), x.shape), "bfloat16", np.abs(dense).sum(1).max())
    expected = np.asarray(x, np.float64).sum(0) @ (dense / np.asarray(packed.scales, np.float64))
    assert_close(dscales, expected, "bfloat16")


@pytest.mark.parametrize("name", ["block4x16", "bitmap", "csc", "2of4"])
def test_on_a_cpu_nothing_runs_beside_the_scaled_product(name):
    """More than the call, and XLA starts the program on another thread: few rows wait for that."""
    if kernels.implementations()["cpu"] != "available":
        pytest.skip(kernels.implementations()["cpu"])
    packed, _ = draw(BY_NAME[name], 64, 48, 0.5, dtype="int8")
    text = jax.jit(sparse_dot).lower(draw_x(1, 64), packed).compile().as_text()
    assert set(re.findall(r" = \S+ ([\w-]+)\(", text)) == {"parameter", "custom-call"}


@every_storage
def test_a_gradient_is_never_dense(storage):
    packed, _ = draw(storage, 1024, 1024, 0.1)
    x = draw_x(8, 1024)
    dense_bytes = packed.size * 4

    def backward(x, g, packed):
        return sampled_product(x, g, packed, implementation="xla")

    memory = jax.jit(backward).lower(x, x, packed).compile().memory_analysis()
    assert memory.temp_size_in_bytes < dense_bytes


@every_storage
def test_shard_map_over_the_batch_and_over_outputs(storage, devices):
    mesh = jax.make_mesh((len(devices),), ("d",), (AxisType.Auto,), devices=devices)
    packed, dense = draw(storage, 64, 48, 0.5)
    x = draw_x(8, 64)
    f = jax.shard_map(
        lambda x, p: sparse_dot(x, p), mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d")
    )
    assert_close(jax.jit(f)(x, packed), np.asarray(x) @ dense)
    grad = jax.jit(jax.grad(lambda v: jnp.sum(f(x, packed.with_values(v)) ** 2)))(packed.values)
    expected = 2 * np.asarray(x).T @ (np.asarray(x) @ dense)
    assert_close(grad, gather(packed, expected))
    # One shard of the outputs on every device: kernels stacked along the sharded axis.
    shards = [draw(storage, 64, 48, 1, seed=0) for s in range(len(devices))]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *[s[0] for s in shards])
    g = jax.shard_map(
        lambda x, p: sparse_dot(x, jax.tree.map(lambda a: a[0], p)),
        mesh=mesh,
        in_specs=(P(), P("d")),
        out_specs=P(None, "d"),
    )
    together = np.concatenate([s[1] for s in shards], 1)
    assert_close(jax.jit(g)(x, stacked), np.asarray(x) @ together)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_scaled_products_shard_by_rows(devices, kind):
    mesh = jax.make_mesh((len(devices),), ("d",), (kind,), devices=devices)
    packed, dense = draw(BY_NAME["2of4"], 64, 48, 0.5, dtype="int8")
    x = draw_x(8, 64)
    rows = jax.device_put(x, jax.NamedSharding(mesh, P("d")))

    def gradients(f):
        def summed(x, scales):
            return jnp.sum(f(x, packed.replace(scales=scales)) ** 2)

        return jax.jit(jax.grad(summed, (0, 1)))

    step = jax.jit(sparse_dot)
    assert not re.search("all-|permute|scatter", step.lower(rows, packed).compile().as_text())
    assert step(rows, packed).sharding.spec[0] == "d"
    mapped = jax.shard_map(sparse_dot, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))
    expected = gradients(functools.partial(sparse_dot, implementation="xla"))(x, packed.scales)
    for f in (sparse_dot, mapped):
        assert_close(jax.jit(f)(rows, packed), np.asarray(x) @ dense)
        jax.tree.map(assert_close, gradients(f)(rows, packed.scales), expected)


@every_storage
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_the_compiler_shards_by_rows(storage, devices, kind):
    """Forward moves nothing between devices; the gradient adds up once."""
    mesh = jax.make_mesh((len(devices),), ("d",), (kind,), devices=devices)
    packed, dense = draw(storage, 64, 48, 0.5)
    x = jax.device_put(draw_x(8, 64), jax.NamedSharding(mesh, P("d")))

    def gradients(x, p):
        return jax.grad(lambda x, v: jnp.sum(sparse_dot(x, p.with_values(v)) ** 2), (0, 1))(
            x, p.values
        )

    for function, moves in ((sparse_dot, []), (gradients, ["all-reduce"])):
        text = jax.jit(function).lower(x, packed).compile().as_text()
        assert re.findall(r"(all-\w+|collective-permute|reduce-scatter)\(", text) == moves
    y = jax.jit(sparse_dot)(x, packed)
    assert y.sharding.spec[0] == "d"
    assert_close(y, np.asarray(x) @ dense)
    dx, dvalues = jax.jit(gradients)(x, packed)
    slope = 2 * np.asarray(x) @ dense
    assert_close(dx, slope @ dense.T)
    assert_close(dvalues, gather(packed, np.asarray(x).T @ slope))


@pytest.mark.parametrize(
    ("storage", "dtype"),
    [*((storage, "float32") for storage in STORAGES), (BY_NAME["2of4"], "int8")],
    ids=lambda v: getattr(v, "name", v),
)
def test_export_to_every_platform_from_this_one(storage, dtype):
    packed, dense = draw(storage, 64, 48, 0.5, dtype=dtype)
    x = draw_x(8, 64)
    step = jax.jit(jax.value_and_grad(lambda x, p: jnp.sum(sparse_dot(x, p) ** 2)))
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(x, packed)
    if importlib.util.find_spec("flatbuffers"):  # jax needs it to write what it exported
        exported = jax.export.deserialize(exported.serialize())
    value, dx = exported.call(x, packed)
    np.testing.assert_allclose(value, np.sum((np.asarray(x) @ dense) ** 2), rtol=1e-5)
    assert_close(dx, 2 * np.asarray(x) @ dense @ dense.T)


def test_one_export_holds_the_kernel_of_every_platform(monkeypatch):
    """What an export will hold once the kernels by name only are measured and preferred."""
    preferred = (*kernels._BY_NAME_ONLY, *kernels._PREFERENCE)
    monkeypatch.setattr(kernels, "_PREFERENCE", preferred)
    packed, dense = draw(blocks(128, 128), 256, 384, 0.5, dtype="bfloat16")
    x = draw_x(8, 256, dtype="bfloat16")
    step = jax.jit(jax.grad(lambda x, p: jnp.sum(jnp.sin(sparse_dot(x, p).astype(jnp.float32)))))
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(x, packed)
    text = exported.mlir_module()
    assert text.count("custom_call @tpu_custom_call") == 2
    assert text.count("custom_call @mosaic_gpu") == (0 if kernels.load("mosaic_gpu")[1] else 2)
    slope = np.cos(np.asarray(x, np.float64) @ dense) @ dense.T
    # y is rounded to bfloat16 before its cosine is taken.
    assert_close(exported.call(x, packed), slope, "bfloat16", 5 * np.abs(slope).max())


@every_call
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_in_a_kept_entry_reaches_its_outputs(storage, implementation, poison):
    packed, dense = draw(storage, 64, 48, 1)
    row, column = np.argwhere(dense)[len(np.argwhere(dense)) // 2]
    values = jnp.where(packed.values == np.float32(dense[row, column]), poison, packed.values)
    x = jnp.abs(draw_x(4, 64)) + 1
    y = named_or_skip(implementation, sparse_dot, x, packed.with_values(values))
    assert not np.isfinite(y[:, column]).any()
    assert np.isfinite(np.delete(np.asarray(y), column, 1)).all()


def test_a_named_implementation_that_cannot_run_says_why():
    packed, _ = draw(BY_NAME["block4x16"], 64, 48, 0.5)
    with pytest.raises(ValueError, match=r"'mkl' is not one of .*xla"):
        sparse_dot(draw_x(2, 64), packed, implementation="mkl")
    assert set(kernels.implementations()) >= {"cpu", "xla", "mosaic_gpu", "pallas_tpu"}
    for name, state in kernels.implementations().items():
        if state != "available":
            with pytest.raises(ValueError, match=r"cannot be used|cannot compute.* it "):
                sparse_dot(draw_x(2, 64), packed, implementation=name)


def test_calls_that_make_no_sense():
    packed, _ = draw(BY_NAME["block4x16"], 64, 48, 0.5)
    with pytest.raises(TypeError, match="not by"):
        sparse_dot(draw_x(2, 64), packed.values)
    with pytest.raises(ValueError, match=r"\(2, 63\) does not end in \(64,\)"):
        sparse_dot(draw_x(2, 63), packed)
    with pytest.raises(TypeError, match="floating"):
        sparse_dot(jnp.ones((2, 64), jnp.int32), packed)
    with pytest.raises(ValueError, match=r"\(47,\) do not fit y of shape \(2, 48\)"):
        sparse_dot(draw_x(2, 64), packed.replace(scales=jnp.ones(47)))
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), packed)
    with pytest.raises(ValueError, match="vmap"):
        sparse_dot(draw_x(2, 64), stacked)


def test_result_types():
    packed, _ = draw(BY_NAME["block4x16"], 64, 48, 0.5)
    half = packed.with_values(packed.values.astype(jnp.bfloat16))
    assert sparse_dot(draw_x(2, 64), half).dtype == jnp.float32
    assert sparse_dot(draw_x(2, 64, dtype="bfloat16"), half).dtype == jnp.bfloat16
    assert (
        sparse_dot(draw_x(2, 64), packed, preferred_element_type=jnp.bfloat16).dtype == jnp.bfloat16
    )
    grads = jax.grad(lambda x, v: jnp.sum(sparse_dot(x, half.with_values(v))), (0, 1))(
        draw_x(2, 64), half.values
    )
    assert [g.dtype for g in grads] == [jnp.float32, jnp.bfloat16]


def test_x_without_batch_and_with_many_axes():
    packed, dense = draw(BY_NAME["2of4"], 64, 48, 0.5)
    x = draw_x(6, 64)
    assert_close(sparse_dot(x[0], packed), np.asarray(x)[0] @ dense)
    assert_close(sparse_dot(x.reshape(2, 3, 64), packed), (np.asarray(x) @ dense).reshape(2, 3, 48))


def test_indices_out_of_range_never_reach_a_kernel():
    with pytest.raises(ValueError, match=r"rows\[1\] = 9 is outside the 2 rows"):
        BlockSparse(jnp.ones((2, 4, 16)), jnp.array([0, 2]), jnp.array([0, 9]), (4, 16), (8, 16))
