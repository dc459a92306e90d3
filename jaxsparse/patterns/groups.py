"""Groups of many entries: blocks of the matrix view, and slices along an axis of the leaf."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from jaxsparse.patterns.base import Pattern, Reduce, Unstructured, real
from jaxsparse.patterns.views import View

REDUCES = ("mean", "sum", "max", "l2")


@dataclasses.dataclass(frozen=True)
class Block(Pattern):
    """Blocks of `rows` x `columns` on the (K, N) view: rows along the input axis.

    The score of a block is reduce(scores of its entries); partial blocks at the
    padded edge average over what is there.

    Attributes:
      rows: entries along K, the input axis.
      columns: entries along N, the output axis.
      reduce: "mean", "sum", "max" or "l2" (the Euclidean norm of the scores).
      pad: allow sizes that the block does not divide; the edge blocks are cut.

    >>> from jaxsparse.patterns.views import view_of
    >>> Block(4, 16).group_shape(view_of("dense/kernel", (64, 32)))
    (16, 2)
    """

    tiled: ClassVar[bool] = True
    rows: int
    columns: int
    reduce: Reduce = "mean"
    pad: bool = False

    def __post_init__(self):
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"{self}: rows and columns must be at least 1")
        check_reduce(self, self.reduce)

    def check(self, path: str, view: View) -> None:
        if self.pad:
            return
        for name, size, block in zip(
            ("input", "output"), view.matrix_shape, (self.rows, self.columns), strict=True
        ):
            check_divides(f"{self}", path, view, name, size, block)

    def group_shape(self, view: View) -> tuple[int, ...]:
        k, n = view.matrix_shape
        return (*view.batch_shape, -(-k // self.rows), -(-n // self.columns))

    def pool(self, entries, view, reduce=None):
        reduce = reduce or self.reduce
        matrix, least = view.matrix(real(entries)), -jnp.inf if reduce == "max" else 0
        matrix = fill_tiles(matrix, self.rows, self.columns, least)
        tiles = tile(matrix, self.rows, self.columns)
        if reduce == "max":
            return jnp.max(tiles, axis=(-3, -1))
        if reduce == "l2":
            return jnp.sqrt(jnp.sum(jnp.square(tiles), axis=(-3, -1)))
        total = jnp.sum(tiles, axis=(-3, -1))
        return total / self._sizes(view).astype(total.dtype) if reduce == "mean" else total

    def expand(self, groups, view):
        k, n = view.matrix_shape
        gk, gn = groups.shape[-2:]
        tiles = jnp.broadcast_to(
            groups[..., :, None, :, None], (*view.batch_shape, gk, self.rows, gn, self.columns)
        )
        return view.leaf(untile(tiles)[..., :k, :n])

    def group_size(self, view: View) -> int:
        return self.rows * self.columns

    def cut_by(self, view, shard):
        return cuts_tiles(view, shard, self.rows, self.columns)

    def storage(self, view):
        return self

    def _sizes(self, view: View) -> Array:
        """Entries in each block: rows * columns but for the cut ones at the edge."""
        (k, n), (gk, gn) = view.matrix_shape, self.group_shape(view)[-2:]
        if k % self.rows == 0 and n % self.columns == 0:
            return jnp.asarray(self.rows * self.columns)
        rows = jnp.clip(k - self.rows * jnp.arange(gk), max=self.rows)
        columns = jnp.clip(n - self.columns * jnp.arange(gn), max=self.columns)
        return rows[:, None] * columns


@dataclasses.dataclass(frozen=True)
class Channel(Pattern):
    """Whole slices along one axis of the leaf: channels, neurons or heads.

    `Channel(-1)` prunes output channels and `Channel(-2)` input channels of Dense
    and conv kernels alike; `Channel(1)` prunes heads of an attention kernel
    (embed, heads, head_dim).

    Attributes:
      axis: axis of the leaf (not of the view) that indexes the groups.
      reduce: "mean", "sum", "max" or "l2" over the slice.

    >>> from jaxsparse.patterns.views import view_of
    >>> Channel(-1).group_shape(view_of("conv/kernel", (3, 3, 8, 4)))
    (4,)
    """

    directed: ClassVar[bool] = False
    axis: int
    reduce: Reduce = "mean"

    def __post_init__(self):
        check_reduce(self, self.reduce)

    def check(self, path: str, view: View) -> None:
        rank = len(view.shape)
        if not -rank <= self.axis < rank:
            raise ValueError(
                f"{self} on {path!r} of shape {view.shape}: no such axis; "
                f"axes {-rank} to {rank - 1} would work"
            )
        if self.axis % rank in view.batch:
            raise ValueError(
                f"{self} on {path!r} of shape {view.shape}: axis {self.axis} is a batch axis "
                f"({view}); another axis, or batch_axis=() in the rule, would work"
            )

    def group_shape(self, view: View) -> tuple[int, ...]:
        return (*view.batch_shape, view.shape[self.axis])

    def pool(self, entries, view, reduce=None):
        entries, axes, reduce = real(entries), self._pooled(view), reduce or self.reduce
        if reduce == "l2":
            pooled = jnp.sqrt(jnp.sum(jnp.square(entries), axis=axes))
        elif reduce == "max":
            pooled = jnp.max(entries, axis=axes, initial=-jnp.inf)
        else:
            pooled = {"mean": jnp.mean, "sum": jnp.sum}[reduce](entries, axis=axes)
        return jnp.moveaxis(pooled, *self._batch_first(view))

    def expand(self, groups, view):
        kept_axes, batch_axes = self._batch_first(view)
        groups = jnp.moveaxis(groups, batch_axes, kept_axes)
        return jnp.broadcast_to(jnp.expand_dims(groups, self._pooled(view)), view.shape)

    def group_size(self, view: View) -> int:
        return math.prod(view.shape[axis] for axis in self._pooled(view))

    def cut_by(self, view, shard):
        split = {axis for axis, size in enumerate(shard) if size != view.shape[axis]}
        return not split <= {self.axis % len(view.shape), *view.batch}

    def storage(self, view):
        # Rows of the matrix are runs of 16 outputs; a column is single weights one under another.
        over_inputs = self.axis % len(view.shape) in view.inputs
        return Block(1, 16) if over_inputs else Unstructured()

    def _pooled(self, view: View) -> tuple[int, ...]:
        kept = (self.axis % len(view.shape), *view.batch)
        return tuple(axis for axis in range(len(view.shape)) if axis not in kept)

    def _batch_first(self, view: View) -> tuple[list[int], list[int]]:
        """Where the batch axes stand once the pooled axes are gone, and where they go."""
        left = sorted((self.axis % len(view.shape), *view.batch))
        return [left.index(axis) for axis in view.batch], list(range(len(view.batch)))


def cuts_tiles(view: View, shard: tuple[int, ...], rows: int, columns: int) -> bool:
    """Whether shards of this shape cut tiles of rows x columns on the view."""

    def whole(axes: tuple[int, ...], block: int) -> bool:
        split = [axis for axis in axes if shard[axis] != view.shape[axis]]
        # Only the major one of the merged axes may be split, in multiples of the block.
        major = split == list(axes[:1])
        return not split or (major and math.prod(shard[axis] for axis in axes) % block == 0)

    return not (whole(view.inputs, rows) and whole(view.outputs, columns))


def tile(matrix: Shaped[Array, "*batch K N"], rows: int, columns: int) -> Array:
    """(*batch, K, N) as (*batch, K / rows, rows, N / columns, columns).

    One axis at a time, because that is what a sharded array can be reshaped by.
    """
    *batch, k, n = matrix.shape
    split = matrix.reshape(*batch, k // rows, rows, n)
    return split.reshape(*batch, k // rows, rows, n // columns, columns)


def untile(tiles: Shaped[Array, "*batch GK rows GN columns"]) -> Array:
    """Undoes `tile`."""
    *batch, gk, rows, gn, columns = tiles.shape
    merged = tiles.reshape(*batch, gk, rows, gn * columns)
    return merged.reshape(*batch, gk * rows, gn * columns)


def fill_tiles(matrix: Shaped[Array, "*batch K N"], rows: int, columns: int, value) -> Array:
    """Whole tiles of rows x columns, their ends filled with a value; full ones cost nothing."""
    down, across = -matrix.shape[-2] % rows, -matrix.shape[-1] % columns
    if not (down or across):
        return matrix
    edges = [*[(0, 0)] * (matrix.ndim - 2), (0, down), (0, across)]
    return jnp.pad(matrix, edges, constant_values=value)


def check_reduce(pattern: Pattern, reduce: str) -> None:
    """Raises ValueError unless `reduce` is one of REDUCES."""
    if reduce not in REDUCES:
        raise ValueError(f"{pattern}: reduce={reduce!r} is none of {', '.join(REDUCES)}")


def check_divides(
    what: str,
    path: str,
    view: View,
    side: str,
    size: int,
    block: int,
    name: str = "a block",
    least: int = 1,
) -> None:
    """Raises ValueError with the nearest sizes unless `block` divides `size`.

    `name` is what the pattern calls a block, and `least` the smallest that it takes.
    """
    if size % block:
        nearest = " or ".join(str(s) for s in (size - size % block, size + -size % block) if s > 0)
        divisors = [d for d in range(least, size + 1) if size % d == 0]
        closest = sorted(sorted(divisors, key=lambda d: abs(d - block))[:2])
        other = f"so would {name} of {' or '.join(map(str, closest))} there, " if closest else ""
        raise ValueError(
            f"{what} on {path!r} of shape {view.shape}, seen as {view}: the {side} size {size} is "
            f"no multiple of {block}; {side} size {nearest} would work, {other}or pad=True"
        )
