"""Weights and activations for GPUs and TPUs, and the three products of them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from experiments.bench.sparse_dot import draw
from jaxsparse.packed.nm_sparse import NMSparse
from jaxsparse.products.sparse_dot import matrix_product, sampled_product

DIRECTIONS = ("forward", "dx", "dvalues")
HALVES = ("bfloat16", "float16")
EIGHT = "float8_e4m3fn"
PAIRS = [i | j << 2 for i in range(4) for j in range(i + 1, 4)]  # two places of a group, as bits


def x_dtype(dtype):
    """Of the activations that go with weights of this dtype: int8 is for weights alone."""
    return "bfloat16" if dtype == "int8" else dtype


@functools.lru_cache(maxsize=1)  # the directions of one cell share it
def weight(pattern, shape, density, dtype):
    """A packed weight of standard normal values at random places."""
    if pattern == js.NM(2, 4) and shape[0] % 32 == 0:
        return _two_of_four(shape, dtype)
    eight = dtype == EIGHT
    packed, _ = draw(pattern, shape, density, "bfloat16" if eight else dtype)
    return packed.with_values(packed.values.astype(dtype)) if eight else packed


@functools.partial(jax.jit, static_argnums=(0, 1))
def _two_of_four(shape, dtype):
    """2:4 made on the device: larger than its caches, it would take minutes elsewhere."""
    k, n = shape
    places, values, scales = jax.random.split(jax.random.key(0), 3)
    chosen = jax.random.randint(places, (k // 32, 8, n), 0, len(PAIRS))
    bits = jnp.asarray(PAIRS, jnp.uint32)[chosen] << 4 * jnp.arange(8, dtype=jnp.uint32)[:, None]
    words = jnp.sum(bits, axis=1, dtype=jnp.uint32)
    if dtype == "int8":
        values = jax.random.randint(values, (k // 2, n), -127, 128, jnp.int8)
        scales = jax.random.uniform(scales, (n,), minval=0.01, maxval=0.02)
    else:
        values, scales = jax.random.normal(values, (k // 2, n), dtype), None
    return NMSparse(values, words, 2, 4, shape, scales=scales)


def dense(packed):
    """The dense weight: in float32 for values that stand for themselves, else their own."""
    if packed.scales is None:
        packed = packed.with_values(packed.values.astype(jnp.float32))
    return packed.todense()


def stored(packed):
    """True where a packed weight stores one, in the shape of the dense weight."""
    ones = jnp.ones(packed.values.shape, jnp.float32)
    return packed.replace(values=ones, scales=None).todense() != 0


def inputs(rows, shape, dtype):
    """x and g, standard normal."""
    rng = np.random.default_rng(1)
    dtype = x_dtype(dtype)
    return [jnp.asarray(rng.standard_normal((rows, size), np.float32), dtype) for size in shape]


def directions(packed, x, g, implementation):
    """The products of a weight as functions of arrays, with their operands."""
    (values, *index), structure = jax.tree.flatten(packed)
    out_dtype = "bfloat16" if x.dtype == EIGHT else None

    def product(x, values, *index, transpose):
        packed = jax.tree.unflatten(structure, [values, *index])
        return matrix_product(
            x, packed, transpose=transpose, implementation=implementation, out_dtype=out_dtype
        )

    def sampled(x, g, *index):
        packed = jax.tree.unflatten(structure, [values, *index])
        return sampled_product(x, g, packed, implementation=implementation)

    return {
        "forward": (functools.partial(product, transpose=False), (x, values, *index)),
        "dx": (functools.partial(product, transpose=True), (g, values, *index)),
        "dvalues": (sampled, (x, g, *index)),
    }


def operations(packed, rows):
    """Multiplications and additions that the stored weights ask for."""
    return 2 * rows * packed.layout.stored


def dense_operations(shape, rows):
    """Those of the dense product."""
    return 2 * rows * math.prod(shape)
