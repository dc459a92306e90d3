"""Which entries of a weight live and die together.

A pattern cuts the matrix view of a kernel (`views.View`) into groups. It pools
elementwise scores into one number a group, expands one bit a group back to the
shape of the weight, and says how many groups a sparsity keeps. Choosing the
groups to keep is `top_k`'s work. `nm.NM` is the one pattern whose groups are
not free to choose; it overrides the second half of the interface.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxsparse.patterns.views import View

Reduce = Literal["mean", "sum", "max", "l2"]


@dataclasses.dataclass(frozen=True, eq=False)  # without fields all instances would be equal
class Pattern:
    """Base of the patterns; `str` is the call that makes it, `Block(4, 16)`.

    Your own is best a frozen dataclass: instances of other classes are equal to
    themselves alone, and each compiles programs of its own.

    Attributes:
      tiled: whether pooling reshapes the matrix view, which whole groups in every
        shard make possible under explicit axes of a mesh.
      directed: whether groups would be others if inputs and outputs changed places.
      fixed: whether the pattern says itself how many entries it keeps, as n:m does.
    """

    tiled: ClassVar[bool] = False
    directed: ClassVar[bool] = True
    fixed: ClassVar[bool] = False

    def __str__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING:
                shown.append(repr(value))
            elif value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def check(self, path: str, view: View) -> None:
        """Raises ValueError, naming path, shape and what would work, if the view does not fit."""

    def group_shape(self, view: View) -> tuple[int, ...]:
        """Shape of the group array; the batch axes of the view come first."""
        raise NotImplementedError

    def pool(
        self, entries: Shaped[Array, "*shape"], view: View, reduce: Reduce | None = None
    ) -> Float[Array, "*groups"]:
        """Reduces entries of the weight's shape to one number a group.

        Accumulates in float32 (float64 for float64 entries); a complex entry counts
        by its modulus. `reduce` None takes the pattern's own.
        """
        raise NotImplementedError

    def expand(self, groups: Shaped[Array, "*groups"], view: View) -> Shaped[Array, "*shape"]:
        """Gives every entry of the weight the value of its group."""
        raise NotImplementedError

    def group_size(self, view: View) -> int:
        """Entries in one whole group."""
        raise NotImplementedError

    def cut_by(self, view: View, shard: tuple[int, ...]) -> bool:
        """Whether shards of this shape cut groups, so that pooling must gather."""
        del view, shard
        return False

    def storage(self, view: View) -> "Pattern":
        """The pattern by which `pack` stores a weight: single weights hold any mask."""
        del view
        return Unstructured()

    # What selection counts. For a free pattern the units are the groups.

    @property
    def max_sparsity(self) -> float:
        """The largest fraction that this pattern can prune."""
        return 1.0

    def units(self, view: View) -> int:
        """How many units selection chooses from in one batch slice."""
        return math.prod(self.group_shape(view)[len(view.batch) :])

    def unit_scores(
        self,
        scores: Float[Array, "*groups"],
        allowed: Bool[Array, "*groups"] | None,
        view: View,
    ) -> tuple[Float[Array, "*units"], Bool[Array, "*units"] | None]:
        """Returns the scores that selection ranks and which units it may keep."""
        return scores, allowed

    def finish(
        self,
        kept: Bool[Array, "*units"],
        scores: Float[Array, "*groups"],
        allowed: Bool[Array, "*groups"] | None,
        view: View,
    ) -> Bool[Array, "*groups"]:
        """Turns the units kept into a mask over groups."""
        return kept


@dataclasses.dataclass(frozen=True)
class Unstructured(Pattern):
    """Every entry is a group of its own.

    >>> from jaxsparse.patterns.views import view_of
    >>> Unstructured().group_shape(view_of("dense/kernel", (8, 4)))
    (8, 4)
    """

    directed: ClassVar[bool] = False

    def group_shape(self, view: View) -> tuple[int, ...]:
        rest = tuple(s for axis, s in enumerate(view.shape) if axis not in view.batch)
        return view.batch_shape + rest

    def pool(self, entries, view, reduce=None):
        # A group of one entry is its own mean, sum and maximum.
        entries = jnp.abs(real(entries)) if reduce == "l2" else real(entries)
        return jnp.moveaxis(entries, view.batch, range(len(view.batch)))

    def expand(self, groups, view):
        return jnp.moveaxis(groups, range(len(view.batch)), view.batch)

    def group_size(self, view: View) -> int:
        return 1


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["groups"], meta_fields=["pattern", "view"]
)
@dataclasses.dataclass(frozen=True)
class GroupMask:
    """A mask as the optimizer's state keeps it: one bit a group (a 4x16 block is one).

    Attributes:
      groups: bool, of shape `pattern.group_shape(view)`; True is kept.
      pattern: how the groups lie on the weight.
      view: the matrix view of the weight.
    """

    groups: Any  # an array, but trees are also made of Variables, shapes and shardings
    pattern: Pattern
    view: View

    def expand(self) -> Bool[Array, "*shape"]:
        """Returns the mask in the shape of the weight."""
        return self.pattern.expand(self.groups, self.view)


def widen(entries: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Casts to at least float32 (complex64), in which scores and penalties are computed."""
    double = entries.dtype in (jnp.float64, jnp.complex128)
    if jnp.issubdtype(entries.dtype, jnp.complexfloating):
        return entries.astype(jnp.complex128 if double else jnp.complex64)
    return entries.astype(jnp.float64 if double else jnp.float32)


def real(entries: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """`widen`, and the modulus of what is complex: numbers that have an order."""
    entries = widen(entries)
    return jnp.abs(entries) if jnp.iscomplexobj(entries) else entries


def check_sparsity(what: str, sparsity: float, pattern: Pattern | None = None) -> None:
    """Raises ValueError unless the sparsity lies in [0, 1) and within the pattern's reach."""
    if not 0 <= sparsity < 1:
        hint = f"; did you mean {sparsity / 100}?" if 1 < sparsity < 100 else ""
        raise ValueError(f"{what}: sparsity {sparsity} is not in [0, 1){hint}")
    if pattern is None or sparsity <= pattern.max_sparsity:
        return
    if not math.isclose(sparsity, pattern.max_sparsity):  # 1 - 2/3 is more than 1/3
        raise ValueError(
            f"{what}: sparsity {sparsity} is above {pattern.max_sparsity}, "
            f"which is all that {pattern} prunes"
        )
