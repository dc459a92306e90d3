"""Pooling and expanding against numpy, whatever the shape of the kernel."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as js
from jaxsparse.patterns.base import GroupMask, widen
from jaxsparse.patterns.views import view_of

NUMPY = {
    "mean": np.mean,
    "sum": np.sum,
    "max": np.max,
    "l2": lambda x: np.sqrt(np.sum(np.square(x))),
}
KERNELS = [  # path, shape, batch axis, matrix view with batch first
    ("dense/kernel", (8, 12), None, (1, 8, 12)),
    ("conv/kernel", (2, 3, 4, 8), None, (1, 24, 8)),
    ("query/kernel", (8, 3, 4), None, (1, 8, 12)),
    ("out/kernel", (4, 2, 8), None, (1, 8, 8)),
    ("layers/kernel", (3, 8, 4), 0, (3, 8, 4)),
    ("layers/out/kernel", (2, 4, 2, 4), None, (2, 8, 4)),
]


@functools.partial(jax.jit, static_argnums=(0, 1))
def pool(pattern, view, leaf):
    return pattern.pool(leaf, view)


@functools.partial(jax.jit, static_argnums=(0, 1))
def expand(pattern, view, groups):
    return pattern.expand(groups, view)


def pooled(matrix, rows, columns, reduce):
    """Blocks one by one; those at the edge hold what is there."""
    batch, k, n = matrix.shape
    blocks = [
        [
            [NUMPY[reduce](matrix[b, i : i + rows, j : j + columns]) for j in range(0, n, columns)]
            for i in range(0, k, rows)
        ]
        for b in range(batch)
    ]
    return np.array(blocks)


@pytest.mark.parametrize("reduce", NUMPY)
@pytest.mark.parametrize("path,shape,batch_axis,matrix_shape", KERNELS)
@pytest.mark.parametrize("rows,columns,pad", [(4, 2, False), (3, 5, True), (1, 1, False)])
def test_block_pool_and_expand(path, shape, batch_axis, matrix_shape, rows, columns, pad, reduce):
    leaf = -np.random.default_rng(0).random(shape).astype(np.float32)  # a zero would win "max"
    pattern = js.Block(rows, columns, reduce, pad)
    view = view_of(path, shape, batch_axis=batch_axis)
    pattern.check(path, view)
    expected = pooled(leaf.reshape(matrix_shape), rows, columns, reduce)
    groups = pool(pattern, view, leaf)
    assert groups.shape == pattern.group_shape(view)
    assert pattern.units(view) == expected[0].size
    np.testing.assert_allclose(groups, expected.reshape(groups.shape), rtol=1e-5)
    ids = jnp.arange(groups.size, dtype=jnp.float32).reshape(groups.shape)
    full = expand(pattern, view, ids)
    assert full.shape == shape
    seen = np.asarray(full).reshape(matrix_shape)
    for at in np.ndindex(expected.shape):
        b, i, j = at
        block = seen[b, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        assert (block == np.ravel_multi_index(at, expected.shape)).all()
    np.testing.assert_allclose(pool(dataclasses.replace(pattern, reduce="max"), view, full), ids)


@pytest.mark.parametrize("reduce", NUMPY)
@pytest.mark.parametrize("axis,batch_axis", [(-1, None), (0, None), (-1, 0), (1, 2), (0, (1, 3))])
def test_channel_pool_and_expand(axis, batch_axis, reduce):
    shape = (2, 3, 4, 5)
    leaf = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    batch = () if batch_axis is None else np.atleast_1d(batch_axis).tolist()
    free = [a for a in range(4) if a not in batch]
    view = view_of("w", shape, free[0], free[-1], batch_axis)
    pattern = js.Channel(axis, reduce)
    pattern.check("w", view)
    first = np.moveaxis(leaf, [*batch, axis % 4], range(len(batch) + 1))
    flat = first.reshape(-1, np.prod(shape) // np.prod(first.shape[: len(batch) + 1]))
    expected = np.array([NUMPY[reduce](row) for row in flat]).reshape(pattern.group_shape(view))
    groups = pool(pattern, view, leaf)
    np.testing.assert_allclose(groups, expected, rtol=1e-4, atol=1e-5)
    assert pattern.group_size(view) == flat.shape[1]
    full = np.asarray(expand(pattern, view, groups))
    moved = np.moveaxis(full, [*batch, axis % 4], range(len(batch) + 1))
    for at in np.ndindex(groups.shape):
        assert (moved[at] == np.asarray(groups)[at]).all()


def test_unstructured_puts_batch_axes_first_and_back():
    view = view_of("w", (2, 3, 4), 0, 1, 2)
    leaf = jnp.arange(24.0).reshape(2, 3, 4)
    groups = js.Unstructured().pool(leaf, view, "sum")
    assert groups.shape == js.Unstructured().group_shape(view) == (4, 2, 3)
    np.testing.assert_array_equal(groups, np.moveaxis(np.asarray(leaf), 2, 0))
    np.testing.assert_array_equal(js.Unstructured().expand(groups, view), leaf)
    assert js.Unstructured().units(view) == 6


def test_pooling_accumulates_in_float32_or_float64():
    view = view_of("w", (512, 1))
    ones = jnp.full((512, 1), 1.0, jnp.bfloat16)
    total = js.Block(512, 1, "sum").pool(ones, view)
    assert (total.dtype, float(total[0, 0])) == (jnp.float32, 512.0)
    assert widen(jnp.ones(1, jnp.float16)).dtype == widen(jnp.ones(1, bool)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert widen(jnp.ones(1, jnp.float64)).dtype == jnp.float64


def test_what_does_not_divide_is_an_error_with_sizes():
    view = view_of("mlp/kernel", (10, 18))
    with pytest.raises(ValueError) as error:
        js.Block(4, 16).check("mlp/kernel", view)
    words = ("'mlp/kernel'", "(10, 18)", "input size 10", "8 or 12", "pad=True")
    assert all(word in str(error.value) for word in words)
    with pytest.raises(ValueError, match=r"output size 18.*16 or 32 would work"):
        js.Block(5, 16).check("mlp/kernel", view)
    js.Block(4, 16, pad=True).check("mlp/kernel", view)
    with pytest.raises(ValueError, match=r"input size 10 .* 8 or 12"):
        js.NM(2, 4).check("mlp/kernel", view)


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: js.Block(0, 4), "at least 1"),
        (lambda: js.Block(4, 4, "median"), "median.*none of mean, sum, max, l2"),
        (lambda: js.Channel(0, "median"), "median"),
        (lambda: js.Channel(2).check("w", view_of("w", (3, 4))), "axes -2 to 1 would work"),
        (
            lambda: js.Channel(0).check("w", view_of("w", (2, 3, 4), batch_axis=0)),
            "axis 0 is a batch axis",
        ),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_group_mask_is_a_pytree_of_one_bit_a_group():
    view = view_of("dense/kernel", (8, 8))
    mask = GroupMask(jnp.asarray([[True, False], [False, True]]), js.Block(4, 4), view)
    assert [x.shape for x in jax.tree.leaves(mask)] == [(2, 2)]
    flipped = jax.jit(lambda m: jax.tree.map(lambda g: ~g, m))(mask)
    assert isinstance(flipped, GroupMask)
    full = jax.jit(GroupMask.expand)(flipped)
    np.testing.assert_array_equal(full, np.kron([[0, 1], [1, 0]], np.ones((4, 4))).astype(bool))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "pattern,path,shape,spec",
    [
        (js.Block(4, 16), "dense/kernel", (64, 128), P("a", "b")),
        (js.Block(4, 16), "dense/kernel", (64, 128), P(None, ("a", "b"))),
        (js.Block(4, 4, "l2"), "layers/kernel", (4, 16, 32), P("a", None, "b")),
        (js.Block(3, 4, "max"), "conv/kernel", (3, 3, 8, 32), P(None, None, None, ("a", "b"))),
        (js.NM(2, 4), "dense/kernel", (64, 64), P("a", "b")),
        (js.NM(2, 4, "best"), "dense/kernel", (32, 32), P("a", "b")),
        (js.Channel(-1), "dense/kernel", (16, 64), P(None, ("a", "b"))),
        (js.Unstructured(), "dense/kernel", (64, 64), P("a", "b")),
    ],
)
def test_whole_groups_on_eight_devices_gather_nothing(kind, pattern, path, shape, spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    view = view_of(path, shape, batch_axis=0 if path == "layers/kernel" else None)
    leaf = np.random.default_rng(2).random(shape).astype(np.float32)

    def mask(weight):
        scores = pattern.pool(weight, view)
        units, _ = pattern.unit_scores(scores, None, view)
        return pattern.expand(pattern.finish(units > 0.5, scores, None, view), view)

    with jax.set_mesh(mesh):
        put = jax.device_put(leaf, NamedSharding(mesh, spec))
        compiled = jax.jit(mask).lower(put).compile()
        out = compiled(put)
    moved = re.findall(r"\b(?:all-gather|all-to-all|collective-permute)\b", compiled.as_text())
    assert not moved
    assert out.sharding.is_equivalent_to(put.sharding, out.ndim)
    np.testing.assert_array_equal(np.asarray(out), mask(jnp.asarray(leaf)))
