"""How a product is cut into steps so that what a step works on fits a TPU's VMEM.

A tile of memory is 8 rows of 128 lanes of 32 bits, 16 rows of 16 bits or 32 of 8. An
array is cut at multiples of that, or not at all. So there are two ways to lay out x:

    by rows      x (M, K) as it is: strips of K are cut along lanes, block sides are
                 multiples of 128
    by features  xᵀ (K, M): strips of K are cut along sublanes, block sides are
                 multiples of 8, 16 or 32, and the batch fills the lanes

The second takes small blocks at the price of turning x and y in memory.
"""

import dataclasses
import math

import jax.numpy as jnp

from jaxsparse.kernels.devices import OLDEST_TPU, TPUS

LANES = 128
MIB = 2**20
_SHARE = 0.6  # of VMEM: the rest is for the sums in flight and what is not foreseen here

_MOST_ROWS = 1024  # of a product
_MOST_WORK = 2**27  # multiplications of a sampled product's step: the compiler unrolls them
_FEW_ROWS = 256  # with fewer, loading a weight takes longer than multiplying by it
_DEPTH = 512  # of the sum that one step adds, four times that with few rows,
_MOST_BLOCKS = 16  # in so many parts at most


@dataclasses.dataclass(frozen=True)
class Tiling:
    """One way to cut a product.

    Attributes:
      rows: of x in a step.
      blocks: stored blocks in a step, all of one strip of the output.
      resident: whether a step holds its rows of x whole and picks strips from them.
      by_features: whether x and y are transposed.
      vmem: bytes that a step may use.
    """

    rows: int
    blocks: int
    resident: bool
    by_features: bool
    vmem: int


def sublanes(*dtypes) -> int:
    """Rows of a tile of memory that serves all of these."""
    return max(32 // jnp.dtype(dtype).itemsize for dtype in dtypes)


def by_features(block: tuple[int, int]) -> bool:
    """Whether blocks are too narrow for x as it is."""
    return any(side % LANES for side in block)


def heuristic(
    op: str,
    block: tuple[int, int],
    widths: tuple[int, int],
    rows: int,
    nnz: int,
    dtypes: tuple,
    kind: str | None = None,
) -> Tiling | None:
    """The tiling of a call, or None if nothing fits.

    As many rows as there is room for, since every weight loaded multiplies that often;
    x whole unless that leaves too few, since it is then read once and not once for
    every block.

    Args:
      op: "product" or "sampled".
      block: (inputs, outputs) of a block; of its transpose for a transposed product.
      widths: of x and y; of x and g if `op` is "sampled".
      rows: of x.
      nnz: blocks stored.
      dtypes: of x, of the second factor, of the result.
      kind: of TPU; None for what any of them has room for.
    """
    memory, cores = TPUS.get(kind or "", OLDEST_TPU)
    turned = by_features(block)
    unit = LANES if turned else sublanes(*dtypes)
    blocks, parts = 1, max(1, -(-rows * math.prod(block) // _MOST_WORK))
    if op == "product":
        parts = max(1, -(-rows // _MOST_ROWS), cores if rows >= cores * _FEW_ROWS else 1)
        per_strip = -(-nnz // (widths[1] // block[1]))
        depth = _DEPTH if rows >= _FEW_ROWS else 4 * _DEPTH
        blocks = max(1, min(depth // block[0], per_strip, _MOST_BLOCKS))
    for resident in (True, False):
        for tile in _row_tiles(rows, parts, unit):
            # A sampled product's rows come again for every block: all of them, or strips.
            if resident and tile < (rows if op == "sampled" else min(rows, _FEW_ROWS)):
                break
            used = _vmem(op, block, widths[0], tile, blocks, resident, turned, dtypes)
            if used <= _SHARE * memory * MIB:
                limit = max(int(used / _SHARE), OLDEST_TPU[0] * MIB)
                return Tiling(tile, blocks, resident, turned, limit)
    return None


def _row_tiles(rows, parts, unit):
    """Ever smaller tiles, `parts` of them first; one alone need not be whole `unit`s."""
    while True:
        tile = rows if parts == 1 else -(-rows // (parts * unit)) * unit
        yield tile
        if tile <= unit:
            return
        parts *= 2


def _vmem(op, block, width, rows, blocks, resident, turned, dtypes):
    """Bytes of a step: everything that comes or goes has two buffers."""
    factor, second, result = dtypes

    def size(features, dtype):
        return _bytes((features, rows) if turned else (rows, features), dtype)

    x = size(width, factor) if resident else blocks * size(block[0], factor)
    picked = blocks * size(block[0], factor)
    if op == "sampled":
        streamed = x + size(block[1], second) + _bytes(block, result)
        return 2 * streamed + picked + _bytes(block, "float32")
    streamed = x + blocks * _bytes(block, second) + size(block[1], result)
    return 2 * streamed + picked + 2 * size(block[1], "float32")


def _bytes(shape, dtype):
    """Of a matrix in whole tiles of memory."""
    down, across = sublanes(dtype), LANES
    whole = -(-shape[0] // down) * down, -(-shape[1] // across) * across
    return math.prod(whole) * jnp.dtype(dtype).itemsize


def scalars(op: str, grid: tuple[int, int], nnz: int, blocks: int) -> int:
    """Bytes of the indices of a call; of a product, in the direction of more steps."""
    if op == "sampled":
        return 4 * (2 * nnz + 1)
    return 4 * (nnz // blocks + max(grid)) * (2 + 2 * blocks)
