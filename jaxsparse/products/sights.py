"""What an array in a traced program shows of the weights that it is made of."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self

import jax

from jaxsparse.patterns.views import View, spelled
from jaxsparse.products.factors import Axis, Factored, Role, roles, stranger


@dataclasses.dataclass(frozen=True)
class Product:
    """What one product of a program makes of a weight.

    Attributes:
      path: of the weight.
      shape: of the weight.
      primitive: JAX's name of the product.
      in_axis: axes of the weight that it sums over, major to minor; of a convolution the
        window comes first.
      out_axis: axes that it ends in. The groups of a convolution are part of these.
      batch_axis: axes along which every slice is a weight of its own.
      partial: axes that it sums over in part, which makes them none of the three.
      sums: False of a lookup by position. It sums over nothing; the axis looked up is one
        that the product of a head with the same table would end in.
    """

    path: str
    shape: tuple[int, ...]
    primitive: str
    in_axis: tuple[int, ...]
    out_axis: tuple[int, ...]
    batch_axis: tuple[int, ...]
    partial: tuple[int, ...] = ()
    sums: bool = True

    def agrees(self, view: View) -> bool:
        """Whether a view has the axes that the product sums over, and its batches apart."""

        def long(axes):
            return {axis for axis in axes if self.shape[axis] != 1}

        batch, apart = long(view.batch), long(self.batch_axis)
        # Every kernel of a stack may multiply the same x; then the stack is an output, too.
        return (
            long(view.inputs) == long(self.in_axis)
            and apart <= batch <= apart | long(self.out_axis)
            and not self.partial
        )


def told(met: Iterable[Product]) -> str:
    """Products in words, each once."""
    words = dict.fromkeys(
        f"{p.primitive} sums over part of the axes {p.partial}"
        if p.partial
        else f"{p.primitive} {'sums over' if p.sums else 'looks up'} "
        f"{spelled(p.in_axis, p.out_axis, p.batch_axis)}"
        for p in met
    )
    return " and ".join(words)


@dataclasses.dataclass(frozen=True, eq=False)
class Sight(Factored):
    """One weight as an array shows it.

    Attributes:
      axes: factors of every axis of the array.
      path, whole: of the weight, its path and shape.
      taken: what is no axis any more: taken apart as a batch, or summed.
      at: of each of these at which position it was taken apart, None if that is not known
        or it was summed; numbers and scalar arrays.
      flipped: names of factors that run backwards; those split off them do, too.
      pieces: axes of the weight of which the array shows a part, or parts put together in an
        order that is not known; below 0, axes along which several arrays were put together.
      altered: whether its numbers are others than the weight's, times a scalar or masked.
    """

    path: str
    whole: tuple[int, ...]
    taken: tuple[tuple[Role, Axis], ...] = ()
    at: tuple[Any, ...] = ()
    flipped: frozenset[tuple[int, ...]] = frozenset()
    pieces: frozenset[int] = frozenset()
    altered: bool = False

    @classmethod
    def of(cls, path: str, shape: Sequence[int]) -> Self:
        """The weight as it is."""
        shape = tuple(shape)
        return cls(tuple((((i,), size),) for i, size in enumerate(shape)), path, shape)

    def without(self, gone: Sequence[int], role: Role, at: Sequence[Any] | None = None) -> Self:
        """The array after some axes were summed, or taken apart, maybe at known positions."""
        return dataclasses.replace(
            self,
            axes=tuple(axis for i, axis in enumerate(self.axes) if i not in gone),
            taken=self.taken + tuple((role, self.axes[i]) for i in gone),
            at=self.at + (tuple(at) if at is not None else (None,) * len(gone)),
        )

    def resized(self, shape: Sequence[int], starts: Sequence[Any] | None = None) -> Self | None:
        """Cut, padded or concatenated to another shape; None if that cannot be told apart.

        Args:
          shape: the new one.
          starts: where it was cut, if it was.
        """
        if not all(isinstance(size, int) and size for size in shape):
            return None
        axes, taken, at, pieces = [], list(self.taken), list(self.at), []
        for i, (axis, have, size) in enumerate(zip(self.axes, self.shape, shape, strict=True)):
            if size == have:
                axes.append(axis)
            elif size == 1:
                taken.append(("batch", axis))
                at.append(None if starts is None else starts[i])
                axes.append(())
            elif len(axis) > 1:
                return None
            else:
                axes.append(((axis[0][0], size),) if axis else stranger(size))
                pieces.append(i)
        resized = dataclasses.replace(self, axes=tuple(axes), taken=tuple(taken), at=tuple(at))
        return resized.in_pieces(pieces)

    def in_pieces(self, places: Sequence[int]) -> Self:
        """The array after parts of it, or of several, were put together along some axes."""
        names = {name[0] for i in places for name, _ in self.axes[i]}
        return dataclasses.replace(self, pieces=self.pieces | names)

    def flip(self, places: Sequence[int]) -> Self:
        """The array with some axes backwards."""
        names = frozenset(name for i in places for name, _ in self.axes[i])
        return dataclasses.replace(self, flipped=self.flipped ^ names)

    def backwards(self, name: tuple[int, ...]) -> bool:
        """Whether a factor runs backwards."""
        return sum(name[: n + 1] in self.flipped for n in range(len(name))) % 2 == 1

    @property
    def ends(self) -> set[int]:
        """The axes of the weight that are still axes."""
        factors = (factor for axis in self.axes for factor in axis)
        return {name[0] for name, size in factors if name[0] >= 0 and size != 1}

    def product(self, primitive: str, summed: Sequence[int], batched: Sequence[int]) -> Product:
        """What a product makes of the weight that sums over some axes of the array."""
        free = [i for i in range(len(self.axes)) if i not in (*summed, *batched)]
        taken = {role: [axis for r, axis in self.taken if r == role] for role in ("in", "batch")}
        parts = [[self.axes[i] for i in part] for part in (summed, free, batched)]
        found = roles(parts[0] + taken["in"], parts[1], parts[2] + taken["batch"])
        # Axes of size 1 are lost in reshapes.
        lost = [axis for axis in range(len(self.whole)) if axis not in found]
        if lost and "out" not in found.values():
            found[lost.pop()] = "out"
        found |= dict.fromkeys(lost, "in")
        axes = {
            role: tuple(axis for axis in range(len(self.whole)) if found[axis] == role)
            for role in ("in", "out", "batch", None)
        }
        if primitive == "conv_general_dilated":  # channels are minor, wherever they are
            channels = [name[0] for name, _ in self.axes[summed[-1]]]
            axes["in"] = tuple(sorted(axes["in"], key=lambda axis: axis in channels))
        return Product(
            self.path, self.whole, primitive, axes["in"], axes["out"], axes["batch"], axes[None]
        )


def merged(sights: Sequence[Sight]) -> tuple[Sight, ...]:
    """One for every way in which a weight is seen: a norm of it beside itself is none."""
    kept: dict[Any, Sight] = {}  # by all that is known of them
    least: dict[str, int] = {}
    for sight in sights:
        least[sight.path] = min(len(sight.taken), least.get(sight.path, len(sight.taken)))
    for sight in sights:
        if len(sight.taken) == least[sight.path]:
            at = tuple(place if isinstance(place, int) else None for place in sight.at)
            key = sight.path, sight.axes, at, sight.flipped
            kept[key] = _same(kept.get(key, sight), sight)
    return tuple(kept.values())


def _same(one: Sight, other: Sight) -> Sight:
    """What is known of either of two."""
    pairs = zip(one.at, other.at, strict=True)
    at = tuple(a if a is b or isinstance(a, int) else None for a, b in pairs)
    pieces, altered = one.pieces | other.pieces, one.altered or other.altered
    return dataclasses.replace(one, at=at, pieces=pieces, altered=altered)


# One number everywhere, or zeros and ones.
Plain = Literal["scalar", "mask"]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array of the program.

    Attributes:
      array: its numbers.
      sights: the weights that it shows.
      data: whether it depends on the data, and so is no version of any weight.
      plain: what its numbers are known to be, where dtype and shape do not say it.
      chosen: whether data say which parts of its weights it shows.
      rows: of a product of weights with weights or constants, by weight what is left of the axes
        of the other operand, the rows that the weight met; all other axes are strangers.
    """

    array: Any
    sights: tuple[Sight, ...] = ()
    data: bool = False
    plain: Plain | None = None
    chosen: bool = False
    rows: tuple[Sight, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether its numbers depend on the data."""
        return self.data or self.chosen

    def tree_flatten(self):  # a loop may cut the array, and rows are not followed there
        places = [sight.at for sight in self.sights]
        return (self.array, places), (self.sights, self.data, self.plain, self.chosen)

    @classmethod
    def tree_unflatten(cls, aux, children):
        (sights, data, plain, chosen), (array, places) = aux, children
        pairs = zip(sights, places, strict=True)
        return cls(
            array, tuple(dataclasses.replace(s, at=at) for s, at in pairs), data, plain, chosen
        )


# By primitive, which axes of the operand at a position a product sums over, and which it takes
# as a batch. A convolution sums over the axes of its kernel in this order, channels last.
Ends = tuple[tuple[int, ...], tuple[int, ...]]


def _dot_general(equation, position) -> Ends:
    sums, batches = equation.params["dimension_numbers"]
    return sums[position], batches[position]


def _ragged_dot_general(equation, position) -> Ends:
    numbers = equation.params["ragged_dot_dimension_numbers"]
    sums, batches = numbers.dot_dimension_numbers
    groups = numbers.rhs_group_dimensions if position == 1 else ()
    return sums[position], (*batches[position], *groups)


def _convolution(equation, position) -> Ends:
    numbers = equation.params["dimension_numbers"]
    _, channels, *window = (numbers.lhs_spec, numbers.rhs_spec)[position]
    return (*window, channels), ()


ENDS: dict[str, Callable[..., Ends]] = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot_general,
    "conv_general_dilated": _convolution,
}
