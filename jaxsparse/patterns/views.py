"""The matrix that a kernel stands for.

A layer computes y = x @ W with W of shape (K, N), K the input axis. Kernels come
in other shapes: convolutions (h, w, in, out), attention (embed, heads, head_dim),
stacks of layers under `scan` with leading axes. A View says which axes of the
leaf are batch, which make up K and which make up N.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Shaped

Axes = int | Sequence[int] | None


@dataclasses.dataclass(frozen=True)
class View:
    """A leaf of shape `shape` seen as a batch of (K, N) matrices.

    Attributes:
      shape: shape of the leaf.
      batch: axes along which every slice is a weight of its own.
      inputs: axes that make up K, major to minor (a receptive field comes first).
      outputs: axes that make up N, major to minor; empty inputs mean K = 1.
    """

    shape: tuple[int, ...]
    batch: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Sizes of the batch axes."""
        return tuple(self.shape[axis] for axis in self.batch)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(K, N) of one slice."""
        k = math.prod(self.shape[axis] for axis in self.inputs)
        return k, math.prod(self.shape[axis] for axis in self.outputs)

    @property
    def slice(self) -> "View":
        """The view of one kernel of a stack along leading axes."""
        return self._moved(self.shape[len(self.batch) :], (), -len(self.batch))

    def stacked(self, sizes: tuple[int, ...]) -> "View":
        """The view of kernels like this one, stacked along leading axes of these sizes."""
        return self._moved(sizes + self.shape, tuple(range(len(sizes))), len(sizes))

    def _moved(self, shape, batch, by) -> "View":
        ends = (tuple(axis + by for axis in part) for part in (self.inputs, self.outputs))
        return View(shape, batch, *ends)

    def matrix(self, leaf: Any) -> Any:
        """Returns the leaf, NumPy's or JAX's, as (*batch, K, N)."""
        return leaf.transpose(self._order).reshape(self.batch_shape + self.matrix_shape)

    def leaf(self, matrix: Shaped[Array, "*batch K N"]) -> Shaped[Array, "*shape"]:
        """Undoes `matrix`."""
        ordered = jnp.reshape(matrix, tuple(self.shape[axis] for axis in self._order))
        return jnp.transpose(ordered, self._inverse)

    @property
    def _order(self) -> tuple[int, ...]:
        return self.batch + self.inputs + self.outputs

    @property
    def _inverse(self) -> tuple[int, ...]:
        return tuple(self._order.index(axis) for axis in range(len(self.shape)))

    def __str__(self) -> str:
        k, n = self.matrix_shape
        stacked = "".join(f"{size} x " for size in self.batch_shape)
        return f"{stacked}({k}, {n})"


def view_of(
    path: str,
    shape: tuple[int, ...],
    in_axis: Axes = None,
    out_axis: Axes = None,
    batch_axis: Axes = None,
    *,
    directed: bool = True,
) -> View:
    """Returns the View of a leaf, from its name and rank where no axis is given.

    With an axis given, the words mean what they mean in `jax.nn.initializers`:
    `in_axis` defaults to -2, `out_axis` to -1, `batch_axis` to none, and what is
    left is a receptive field, folded into K. With none given:

    - rank 1: (1, N), rank 2: (in, out);
    - `.../query|key|value/kernel` of rank 3: (embed, heads, head_dim) and
      `.../out/kernel` of rank 3: (heads, head_dim, embed), as in
      `flax`'s MultiHeadAttention; axes before these are batch;
    - a parent named `*conv*`: all but the last two axes are the receptive field;
    - rank 4, where the sides do not matter: a convolution, no batch.

    What else there is could be several things, and is refused: other leaves of rank 3
    and more; and, where the sides matter, `weight` (in, out) or (out, in), `embedding`,
    which is looked up or a head, and kernels of transposed convolutions.

    Args:
      path: of the leaf.
      shape: of the leaf.
      in_axis, out_axis, batch_axis: as in `Rule`.
      directed: whether it matters which side is in and which is out.

    Raises:
      ValueError: on rank 0, on axes that are out of range or named twice, and where no
        axis is given and the name does not tell them.
    """
    rank = len(shape)
    if rank == 0:
        raise ValueError(f"{path!r} is a scalar: it has no axes to prune along")
    if in_axis is None and out_axis is None and batch_axis is None:
        batch, inputs, outputs = _by_name(path, tuple(shape), directed)
        return View(tuple(shape), *map(tuple, (batch, inputs, outputs)))
    inputs = _axes(path, shape, -2 if in_axis is None else in_axis)
    outputs = _axes(path, shape, -1 if out_axis is None else out_axis)
    batch = _axes(path, shape, () if batch_axis is None else batch_axis)
    named = batch + inputs + outputs
    if len(set(named)) != len(named):
        raise ValueError(
            f"{path!r} of shape {shape}: an axis is named twice in in_axis={in_axis}, "
            f"out_axis={out_axis}, batch_axis={batch_axis}"
        )
    receptive = tuple(axis for axis in range(rank) if axis not in named)
    return View(tuple(shape), batch, receptive + inputs, outputs)


def spelled(in_axis: Sequence[int], out_axis: Sequence[int], batch_axis: Sequence[int]) -> str:
    """Axes as the arguments of a rule.

    >>> spelled((0, 1), (2,), ())
    'in_axis=(0, 1), out_axis=2'
    """
    named = {"in_axis": in_axis, "out_axis": out_axis, "batch_axis": batch_axis}
    given = {name: tuple(axes) for name, axes in named.items() if axes or name != "batch_axis"}
    return ", ".join(f"{k}={a[0] if len(a) == 1 else a}" for k, a in given.items())


# Leaves of two axes which are (in, out) in one place and (out, in) in another.
_EITHER_WAY = re.compile(r"(.*/)?((.*_)?weight(_.*)?|embeddings?)")
_TURNED = re.compile(r".*(transpose|deconv|upconv).*")


def _by_name(
    path: str, shape: tuple[int, ...], directed: bool
) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    parent = path.split("/")[-2].lower() if "/" in path else ""
    rank, axes = len(shape), range(len(shape))
    either_way = directed and _EITHER_WAY.fullmatch(path) is not None
    if rank <= 2:
        if either_way and rank == 2:
            raise _ambiguous(path, shape)
        return (), axes[:-1], axes[-1:]
    if re.fullmatch(r"(.*/)?(query|key|value)/kernel", path):
        return axes[:-3], axes[-3:-2], axes[-2:]
    if re.fullmatch(r"(.*/)?out/kernel", path):
        return axes[:-3], axes[-3:-1], axes[-1:]
    if "conv" in parent and not either_way and not (directed and _TURNED.fullmatch(parent)):
        return (), axes[:-1], axes[-1:]
    if rank == 4 and not directed:  # a convolution, in whatever order
        return (), axes[:-1], axes[-1:]
    raise _ambiguous(path, shape)


def _ambiguous(path: str, shape: tuple[int, ...]) -> ValueError:
    rank = len(shape)
    if rank == 2:
        known = ["in_axis=0, out_axis=1", "in_axis=1, out_axis=0 (rows that are looked up, too)"]
    else:
        known = ["in_axis=-2 (window, in, out)", "in_axis=-1, out_axis=-2 (window, out, in)"]
        stack = tuple(range(rank - 2))
        known.append(f"batch_axis={stack[0] if rank == 3 else stack} (a stack of (in, out))")
    if rank == 3:
        known += ["in_axis=(0, 1), out_axis=2 (heads in)", "in_axis=0, out_axis=(1, 2) (heads out)"]
    if rank > 3:
        channels = "in_axis=1, out_axis=0 (out, in, window)"
        known.append(channels)
    return ValueError(
        f"{path!r} of shape {shape}: its name does not tell which axes a product sums over; "
        f"the right one of {'; '.join(known)} would work, and "
        "js.read_axes(rules, fn, params, *inputs) reads it from your model"
    )


def _axes(path: str, shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    rank = len(shape)
    listed = (axes,) if isinstance(axes, int) else tuple(axes or ())
    for axis in listed:
        if not -rank <= axis < rank:
            raise ValueError(f"{path!r} of shape {shape} has no axis {axis}")
    return tuple(axis % rank for axis in listed)
