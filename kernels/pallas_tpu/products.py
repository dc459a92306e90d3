"""The two TPU kernels. Each sums in float32 and writes a block of the result when it is whole.

The indices of the blocks are scalars known before a grid step begins, so the next
step's blocks are fetched while this one multiplies. The product's grid goes through
the strips of the output in order, some stored blocks of one strip in a step, and one
step for a strip without any, which is where its zeros are written. Its length is known
only at run time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

from jaxsparse.kernels.pallas_tpu.strips import Strips
from jaxsparse.kernels.pallas_tpu.tiles import Tiling
from jaxsparse.kernels.walks import Walk, pad_rows


class Schedule(NamedTuple):
    """What every step does: `held` blocks of a strip, the rest of its places idle."""

    strips: Int[Array, "steps"]
    held: Int[Array, "steps"]
    sources: Int[Array, "steps*blocks"]
    slots: Int[Array, "steps*blocks"]
    length: Int[Array, ""]


def schedule(walk: Walk, blocks: int) -> Schedule:
    """The walk in steps of up to `blocks` blocks, with a step for every empty strip."""
    nnz, across = walk.slots.shape[0], walk.starts.shape[0] - 1
    counts = jnp.diff(walk.starts)
    wanted = jnp.maximum(-(-counts // blocks), 1)
    # Steps come by strip. Of step s, `first` tells its first block's place in its strip.
    ends = jnp.cumsum(wanted, dtype=jnp.int32)
    steps = jnp.arange(nnz // blocks + across, dtype=jnp.int32)
    strips = jnp.searchsorted(ends, steps, side="right").astype(jnp.int32)
    strips = jnp.minimum(strips, across - 1)
    first = (steps - (ends - wanted)[strips]) * blocks
    held = jnp.clip(counts[strips] - first, 0, blocks)
    places = jnp.arange(blocks, dtype=jnp.int32)
    entries = (walk.starts[strips] + first)[:, None] + places
    # An idle place names what it held last, which is not fetched again.
    entries = lax.cummax(jnp.where(places < held[:, None], entries, 0), axis=0).ravel()
    return Schedule(strips, held, walk.sources[entries], walk.slots[entries], ends[-1])


def product(
    x: jax.Array, values: jax.Array, walk: Walk, *, transpose: bool, out_dtype, tiling: Tiling
) -> jax.Array:
    """y[:, strip j] = Σ x[:, source] @ values[slot] over the blocks of strip j."""
    rows, width = x.shape
    blocks, across = tiling.blocks, walk.starts.shape[0] - 1
    strips = Strips(tiling)
    if tiling.by_features and transpose:
        values, transpose = values.swapaxes(1, 2), False
    inputs, outputs = values.shape[:0:-1] if transpose else values.shape[1:]
    *scalars, length = schedule(walk, blocks)
    # Whole rows are one operand; strips are one for every place in a step.
    views = 1 if tiling.resident else blocks

    def kernel(targets, held, sources, slots, *refs):
        del slots
        x, block, (y, total) = refs[:views], refs[views:-2], refs[-2:]
        step, last = pl.program_id(1), pl.num_programs(1) - 1
        target = targets[step]

        def add(*places):
            found = [strips.read(x, c, sources[step * blocks + c], inputs) for c in places]
            weight = [block[c][...].astype(found[0].dtype) for c in places]
            # One long sum: the matrix unit is filled though blocks may be small.
            found = jnp.concatenate(found, strips.axis)
            weight = jnp.concatenate(weight, 1 if transpose else 0)
            if tiling.by_features:
                total[...] += _dot(weight, found, (0, 0))
            else:
                total[...] += _dot(found, weight, (1, 1 if transpose else 0))

        @pl.when((step == 0) | (target != targets[jnp.maximum(step - 1, 0)]))
        def _():
            total[...] = jnp.zeros_like(total)

        pl.when(held[step] == blocks)(functools.partial(add, *range(blocks)))
        for c in range(blocks - 1):
            pl.when((c < held[step]) & (held[step] < blocks))(functools.partial(add, c))

        @pl.when((step == last) | (target != targets[jnp.minimum(step + 1, last)]))
        def _():
            y[...] = total[...].astype(y.dtype)

    def strip(c):
        if tiling.resident:
            return strips.cut(width, lambda m, *_: (m, 0))
        return strips.cut(
            inputs, lambda m, step, targets, held, sources, slots: (m, sources[step * blocks + c])
        )

    def slot(c):
        return pl.BlockSpec(
            (None, *values.shape[1:]),
            lambda m, step, targets, held, sources, slots: (slots[step * blocks + c], 0, 0),
        )

    out = _result(strips.shape(rows, across * outputs), out_dtype, x)
    y = pl.pallas_call(
        kernel,
        out,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(pl.cdiv(rows, tiling.rows), length),
            in_specs=[*map(strip, range(views)), *map(slot, range(blocks))],
            out_specs=strips.cut(outputs, lambda m, step, targets, *_: (m, targets[step])),
            scratch_shapes=[pltpu.VMEM(strips.shape(tiling.rows, outputs), jnp.float32)],
        ),
        compiler_params=_params(tiling),
        cost_estimate=_cost(rows * values.size, x, values, out),
        name="block_sparse_product",
    )(*scalars, *[strips.turn(x)] * views, *[values] * blocks)
    return strips.turn(y)


def sampled(
    x: jax.Array,
    g: jax.Array,
    stored: jax.Array,
    rows: jax.Array,
    cols: jax.Array,
    *,
    block: tuple[int, int],
    out_dtype,
    tiling: Tiling,
) -> jax.Array:
    """values[e] = x[:, rows[e]]ᵀ @ g[:, cols[e]] for e < stored[0], zero after."""
    nnz, (batch, width) = rows.shape[0], x.shape
    strips = Strips(tiling)
    x, g = (strips.turn(pad_rows(a, tiling.rows)) for a in (x, g))
    summed = 1 - strips.axis

    def kernel(stored, rows, cols, x, g, values, total):
        del cols
        entry, step, last = pl.program_id(0), pl.program_id(1), pl.num_programs(1) - 1

        @pl.when(step == 0)
        def _():
            total[...] = jnp.zeros_like(total)

        @pl.when(entry < stored[0])
        def _():
            found = strips.read([x], 0, rows[entry], block[0])
            total[...] += _dot(found, g[...], (summed, summed))

        @pl.when(step == last)
        def _():
            values[...] = total[...].astype(values.dtype)

    def left(e, m, stored, rows, cols):
        return m, 0 if tiling.resident else rows[e]

    out = _result((nnz, *block), out_dtype, x)
    return pl.pallas_call(
        kernel,
        out,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(nnz, pl.cdiv(batch, tiling.rows)),
            in_specs=[
                strips.cut(width if tiling.resident else block[0], left),
                strips.cut(block[1], lambda e, m, stored, rows, cols: (m, cols[e])),
            ],
            out_specs=pl.BlockSpec((None, *block), lambda e, m, stored, rows, cols: (e, 0, 0)),
            scratch_shapes=[pltpu.VMEM(block, jnp.float32)],
        ),
        compiler_params=_params(tiling),
        cost_estimate=_cost(batch * out.size, x, g, out),
        name="block_sparse_sampled",
    )(stored, rows, cols, x, g)


def _result(shape, dtype, x):
    """Varies, inside `shard_map`, over the axes of the mesh that x varies over."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def _params(tiling):
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=tiling.vmem
    )


def _cost(multiplications, *arrays):
    """What XLA should expect of a call when it plans others beside it."""
    return pl.CostEstimate(
        flops=2 * multiplications,
        bytes_accessed=sum(a.size * a.dtype.itemsize for a in arrays),
        transcendentals=0,
    )


def _dot(a, b, axes):
    # Left to itself the matrix unit would round float32 factors to bfloat16.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    contract = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, contract, precision, preferred_element_type=jnp.float32)
