"""The two kernels in Triton's language. Sizes that are constants of a layout are constexpr,
so that Triton sees which addresses are contiguous and aligned; the batch is not. Only
builtins of the language are called: its own library is compiled or interpreted from the
import on, and the tests do both in one process."""

# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportMissingImports=false
# What @triton.jit compiles is Triton's language, not Python; Triton is an extra.

import triton
import triton.language as tl


@triton.jit
def product(
    starts,
    sources,
    slots,
    x,
    values,
    rows,
    y,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TRANSPOSE: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of `TILE` rows of one strip of y, which is (rows, TARGET).

    x is (rows, SOURCE). A block takes `INPUTS` columns of x, `DEPTH` at a time, to the
    `OUTPUTS` columns of a strip.
    """
    strips: tl.constexpr = TARGET // OUTPUTS
    parts: tl.constexpr = INPUTS // DEPTH
    number = tl.program_id(0)
    # Tiles in groups of rows, so that neighbours in time share blocks in the L2 cache.
    first = number // (GROUP * strips) * GROUP
    height = tl.minimum((rows + TILE - 1) // TILE - first, GROUP)
    tile = first + number % (GROUP * strips) % height
    strip = number % (GROUP * strips) // height
    row = tile * TILE + tl.arange(0, TILE)
    inside = row[:, None] < rows
    row = row[:, None].to(tl.int64)
    depth = tl.arange(0, DEPTH)
    column = tl.arange(0, OUTPUTS)
    total = tl.full((TILE, OUTPUTS), 0.0, tl.float32)
    for step in range(tl.load(starts + strip) * parts, tl.load(starts + strip + 1) * parts):
        entry = step // parts
        inner = step % parts * DEPTH + depth
        source = tl.load(sources + entry) * INPUTS
        block = values + tl.load(slots + entry).to(tl.int64) * (INPUTS * OUTPUTS)
        left = tl.load(x + row * SOURCE + (source + inner)[None, :], mask=inside, other=0.0)
        if TRANSPOSE:
            right = tl.load(block + column[None, :] * INPUTS + inner[:, None])
        else:
            right = tl.load(block + inner[:, None] * OUTPUTS + column[None, :])
        total = tl.dot(left, right, total, input_precision=PRECISION)
    at = y + row * TARGET + (strip * OUTPUTS + column)[None, :]
    tl.store(at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sampled(
    stored,
    down,
    across,
    x,
    g,
    rows,
    values,
    SOURCE: tl.constexpr,
    TARGET: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of xᵀ @ g, for x (rows, SOURCE) and g (rows, TARGET); zero in spare room."""
    entry = tl.program_id(0)
    i = tl.arange(0, INPUTS)
    j = tl.arange(0, OUTPUTS)
    left = x + tl.load(down + entry) * INPUTS + i[:, None]
    right = g + tl.load(across + entry) * OUTPUTS + j[None, :]
    total = tl.full((INPUTS, OUTPUTS), 0.0, tl.float32)
    for first in range(0, tl.where(entry < tl.load(stored), rows, 0), DEPTH):
        batch = first + tl.arange(0, DEPTH)
        inside = batch < rows
        batch = batch.to(tl.int64)
        a = tl.load(left + batch[None, :] * SOURCE, mask=inside[None, :], other=0.0)
        b = tl.load(right + batch[:, None] * TARGET, mask=inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    at = values + entry.to(tl.int64) * (INPUTS * OUTPUTS) + i[:, None] * OUTPUTS + j[None, :]
    tl.store(at, total.to(values.dtype.element_ty))
