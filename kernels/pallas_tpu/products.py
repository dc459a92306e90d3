"""The two TPU kernels. Each sums in a float32 scratch block and writes it when it is whole.

The indices of the blocks are scalars known before a grid step begins, so the next
step's blocks are fetched while this one multiplies. The product's grid has one step
for every stored block and for every strip of the output without any, which is where
its zeros are written: its length is known only at run time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxsparse.kernels.tables import Walk, pad_rows
from jaxtyping import Array, Int

TILE_ROWS = 512  # of x at a time
SUBLANES = 16  # rows of a bfloat16 tile; float32 takes any multiple of 8


class Schedule(NamedTuple):
    """What every step does, by strip: `slots` beyond the last block stand for none."""

    strips: Int[Array, "steps"]
    sources: Int[Array, "steps"]
    slots: Int[Array, "steps"]
    length: Int[Array, ""]


def schedule(walk: Walk) -> Schedule:
    """The walk with a step for every empty strip put in its place."""
    nnz, across = walk.slots.shape[0], walk.starts.shape[0] - 1
    counts = jnp.diff(walk.starts)
    # Steps come by strip. Of step s, `own` tells which of its strip's it is.
    ends = jnp.cumsum(jnp.maximum(counts, 1), dtype=jnp.int32)
    steps = jnp.arange(nnz + across, dtype=jnp.int32)
    strips = jnp.searchsorted(ends, steps, side="right").astype(jnp.int32)
    strips = jnp.minimum(strips, across - 1)
    own = steps - (ends - jnp.maximum(counts, 1))[strips]
    entries = jnp.minimum(walk.starts[strips] + own, nnz - 1)
    slots = jnp.where(own < counts[strips], walk.slots[entries], nnz)
    return Schedule(strips, walk.sources[entries], slots, ends[-1])


def product(x: jax.Array, values: jax.Array, walk: Walk, *, transpose, out_dtype) -> jax.Array:
    """y[:, strip j] = Σ x[:, source] @ values[slot] over the blocks of strip j."""
    rows = x.shape[0]
    tile = _tile_rows(rows)
    x = pad_rows(x, tile)
    nnz = values.shape[0]
    inputs, outputs = values.shape[:0:-1] if transpose else values.shape[1:]
    *scalars, length = schedule(walk)

    def kernel(strips, sources, slots, x, block, y, total):
        del sources
        step, last = pl.program_id(1), pl.num_programs(1) - 1
        strip = strips[step]

        @pl.when((step == 0) | (strip != strips[jnp.maximum(step - 1, 0)]))
        def _():
            total[...] = jnp.zeros_like(total)

        @pl.when(slots[step] < nnz)
        def _():
            total[...] += _dot(x[...], block[...], (1, 1 if transpose else 0))

        @pl.when((step == last) | (strip != strips[jnp.minimum(step + 1, last)]))
        def _():
            y[...] = total[...].astype(y.dtype)

    y = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((x.shape[0], (walk.starts.shape[0] - 1) * outputs), out_dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(x.shape[0] // tile, length),
            in_specs=[
                pl.BlockSpec((tile, inputs), lambda m, s, strips, sources, slots: (m, sources[s])),
                pl.BlockSpec(
                    (None, *values.shape[1:]),
                    lambda m, s, strips, sources, slots: (jnp.minimum(slots[s], nnz - 1), 0, 0),
                ),
            ],
            out_specs=pl.BlockSpec(
                (tile, outputs), lambda m, s, strips, sources, slots: (m, strips[s])
            ),
            scratch_shapes=[pltpu.VMEM((tile, outputs), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="block_sparse_product",
    )(*scalars, x, values)
    return y[:rows]


def sampled(
    x: jax.Array,
    g: jax.Array,
    stored: jax.Array,
    rows: jax.Array,
    cols: jax.Array,
    *,
    block: tuple[int, int],
    out_dtype,
) -> jax.Array:
    """values[e] = x[:, rows[e]]ᵀ @ g[:, cols[e]] for e < stored[0], zero after."""
    nnz, tile = rows.shape[0], _tile_rows(x.shape[0])
    x, g = pad_rows(x, tile), pad_rows(g, tile)

    def kernel(stored, rows, cols, x, g, values, total):
        del rows, cols
        step, last = pl.program_id(1), pl.num_programs(1) - 1

        @pl.when(step == 0)
        def _():
            total[...] = jnp.zeros_like(total)

        @pl.when(pl.program_id(0) < stored[0])
        def _():
            total[...] += _dot(x[...], g[...], (0, 0))

        @pl.when(step == last)
        def _():
            values[...] = total[...].astype(values.dtype)

    return pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((nnz, *block), out_dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(nnz, x.shape[0] // tile),
            in_specs=[
                pl.BlockSpec((tile, block[0]), lambda e, m, stored, rows, cols: (m, rows[e])),
                pl.BlockSpec((tile, block[1]), lambda e, m, stored, rows, cols: (m, cols[e])),
            ],
            out_specs=pl.BlockSpec((None, *block), lambda e, m, stored, rows, cols: (e, 0, 0)),
            scratch_shapes=[pltpu.VMEM(block, jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="block_sparse_sampled",
    )(stored, rows, cols, x, g)


def _tile_rows(rows: int) -> int:
    return min(TILE_ROWS, -(-rows // SUBLANES) * SUBLANES)


def _dot(a, b, axes):
    # Left to itself the matrix unit would round float32 factors to bfloat16.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    contract = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, contract, precision, preferred_element_type=jnp.float32)
