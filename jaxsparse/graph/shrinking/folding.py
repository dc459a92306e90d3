"""Where a constant that a product adds can go instead: into the bias that is added next.

A channel that is one number c, whatever the input, adds c times its row of the weight to
every result of a product. If that result is next added to a leaf that nothing else reads,
the leaf can take it over. So products and leaves are followed through what only moves
numbers, until both meet in a sum.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxsparse.graph.analysis.constants import Constants
from jaxsparse.graph.analysis.registry import common_groups, moved, sizes
from jaxsparse.graph.analysis.rules.products import contribution, ends
from jaxsparse.graph.analysis.values import Record

# What hands numbers on as they are.
MOVES = (
    *("broadcast_in_dim", "convert_element_type", "copy", "copy_p", "optimization_barrier"),
    *("reshape", "reshard", "sharding_constraint", "squeeze", "transpose"),
)
SUMS = ("add", "add_any", "sub")


@dataclasses.dataclass(frozen=True)
class View:
    """An array with the numbers of another one, moved.

    Attributes:
      source: path of a leaf, or number of a product.
      axes: for every axis which one of the source it indexes; None where all slices
        are equal.
    """

    source: str | int
    axes: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Tracked:
    """What the walk knows of an array.

    Attributes:
      constants: numbers that it holds whatever the inputs are.
      view: of what it is a view.
      array: computes it, if it depends on no input and on no step of a loop.
    """

    constants: Constants
    view: View | None = None
    array: Callable[[], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Meeting:
    """A product and the leaf that is added to it.

    Attributes:
      path: of the leaf.
      axes: for every axis of the leaf which axis of the product it is, None for one
        along which the product is uniform.
      sign: of what the leaf takes over.
    """

    path: str
    axes: tuple[int | None, ...]
    sign: int


@dataclasses.dataclass
class Product:
    """A product of a weight with what holds constants.

    Attributes:
      record: of its equation.
      weight: which operand is the weight.
      array: computes the weight.
      constants: of the other operand.
      owed: (term of an axis that is summed over, where that operand is constant).
      ends: where the result goes: a leaf which takes over, or why that is not possible.
    """

    record: Record
    weight: int
    array: Callable[[], Any]
    constants: Constants
    owed: list[tuple[int, Bool[np.ndarray, "_"]]] = dataclasses.field(default_factory=list)
    ends: list[Meeting | str] = dataclasses.field(default_factory=list)

    @property
    def summed(self) -> dict[int, int]:
        """The axes that are summed over, of the operand that holds constants, and their terms."""
        summed, _ = ends(self.record.equation, 1 - self.weight)
        return {i: self.record.operands[1 - self.weight].axes[i] for i in summed}

    def added(self, gone: Mapping[int, Bool[np.ndarray, "_"]]) -> Float[np.ndarray, "..."]:
        """What constants add to the result; axes along which it is uniform have size 1.

        Args:
          gone: by summed axis of the operand that holds them, which of them to count.
        """
        values = {}
        for axis, chosen in gone.items():
            vector = self.constants.axes[axis]
            values[axis] = np.where(chosen & np.isfinite(vector), vector, 0)
        return contribution(self.record.equation, self.weight, self.array(), values)


class Followed:
    """Products and leaves on their way through a program.

    Attributes:
      products: those which constants go into.
      uses: by path of a leaf how many equations read it.
    """

    def __init__(self):
        self.products: list[Product] = []
        self.uses: dict[str, int] = {}

    def through(self, equation: Any, operands: Sequence[Tracked]) -> View | None:
        """The view that an equation hands on; views that end there are noted."""
        name, first = equation.primitive.name, operands[0].view if operands else None
        if name in MOVES and first is not None and len(operands) == 1:
            axes = _moved(equation, first.axes)
            if axes is not None:
                return View(first.source, axes)
        meeting = _meeting(equation, operands) if name in SUMS else None
        for operand in operands:
            self.end(operand, meeting or f"its result goes into {name}")
        return None

    def end(self, operand: Tracked, end: Meeting | str) -> None:
        """Notes where a product, or a leaf, ends."""
        if operand.view is None:
            return
        source = operand.view.source
        if isinstance(source, str):
            self.uses[source] = self.uses.get(source, 0) + 1
        else:
            self.products[source].ends.append(end)

    def outcome(self, product: Product) -> Meeting | str:
        """The leaf that takes over what a product's constants add, or why none does."""
        if len(product.ends) != 1:
            return "its result goes to several places"
        end = product.ends[0]
        if isinstance(end, Meeting) and self.uses[end.path] != 1:
            return f"{end.path} is added to something else, too"
        return end


def _moved(equation, axes):
    """For every axis of the result of a move which axis of the source it indexes."""
    name, params = equation.primitive.name, equation.params
    if name in ("transpose", "squeeze", "broadcast_in_dim"):
        return tuple(None if i is None else axes[i] for i in moved(equation))
    if name == "reshape":
        before, after = sizes(equation.invars[0]), sizes(equation.outvars[0])
        result: list[int | None] = [None] * len(after)
        if 0 in before or params["dimensions"] is not None:
            return None
        for old, new in common_groups(before, after):
            if len(old) == len(new) == 1:
                result[new[0]] = axes[old[0]]
            elif any(axes[i] is not None for i in old):
                return None
        return tuple(result)
    if name == "convert_element_type":
        floating = [jnp.issubdtype(v.aval.dtype, jnp.floating) for v in equation.invars]
        if not (all(floating) and jnp.issubdtype(params["new_dtype"], jnp.floating)):
            return None
    return axes


def _meeting(equation, operands):
    """The sum of a product and a leaf, if the leaf can take over what constants add."""
    if len(operands) != 2:
        return None
    views = [operand.view for operand in operands]
    for product, leaf in (views, views[::-1]):
        if product is None or leaf is None or not isinstance(product.source, int):
            continue
        if isinstance(leaf.source, int):
            continue
        own_axes = leaf.axes or (None,) * len(product.axes)
        pairs = list(zip(product.axes, own_axes, strict=True))
        lost = [axis for axis, own in pairs if axis is not None and own is None]
        if lost:
            return f"{leaf.source} is one number for all channels"
        by_axis: dict[int, int | None] = {own: axis for axis, own in pairs if own is not None}
        axes = tuple(by_axis.get(i) for i in range(1 + max(by_axis, default=-1)))
        return Meeting(leaf.source, axes, -1 if equation.primitive.name == "sub" else 1)
    return None
