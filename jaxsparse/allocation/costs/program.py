"""The products of a traced program, counted: every size a polynomial in the units' widths."""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, SupportsIndex

import numpy as np

from jaxsparse.allocation.costs.polynomials import Polynomial, product, total
from jaxsparse.allocation.narrowing import check_widths
from jaxsparse.graph import StructuredGroup
from jaxsparse.graph.analysis.symbolic import is_symbolic
from jaxsparse.graph.analysis.trace import Analysis
from jaxsparse.graph.analysis.values import Record, Value, Walked
from jaxsparse.graph.structured.finding import structure_of
from jaxsparse.jaxprs import where
from jaxsparse.packed.base import is_packed
from jaxsparse.products.sights import Product
from jaxsparse.trees import Tree, leaves_by_path, near_misses

# What multiplies by a program of its own that no trace shows.
OPAQUE = ("pallas_call", "ffi_call", "custom_partitioning", "cloud_product")
# What makes no new numbers.
VIEWS = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "stop_gradient")
Op = Literal["dense", "conv", "depthwise"]
Blocks = Mapping[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A product that a weight enters.

    Attributes:
      path: slash path of the weight.
      op: "conv" for all convolutions but those with a filter for every single channel,
        which are "depthwise"; "dense" for every other product.
      shape: of the weight.
      macs: multiplications of all its calls, with all units there.
      bytes: of the weight as a plain array.
      reads: name of the unit group that lies on the axes it sums over, of a depthwise
        convolution the one that it hands on. None where none does (the input, a residual
        stream, what is pinned) and where several do.
      writes: name of the group that it ends in; None as for `reads`.
      stride, window: of a convolution; `()` of other products.
      calls: how often it runs: the length of the scans around it.
    """

    path: str
    op: Op
    shape: tuple[int, ...]
    macs: int
    bytes: int
    reads: str | None
    writes: str | None
    stride: tuple[int, ...]
    window: tuple[int, ...]
    calls: int


@dataclasses.dataclass(frozen=True)
class Part:
    """A product of a program, counted.

    Attributes:
      macs: multiplications of one call.
      paths: of the weights that enter it; none for a product of activations.
      equation: the product itself.
      shapes: of its operands.
      data: of every operand, whether it depends on the inputs.
    """

    macs: Polynomial
    paths: tuple[str, ...]
    equation: Any
    shapes: tuple[tuple[Polynomial, ...], ...]
    data: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """A program, counted.

    Attributes:
      parts: its products.
      inner: the programs that it runs, and how often.
      choices: of every branching its branches, one of which runs.
      rest: how many numbers everything else than products makes of the inputs.
    """

    parts: tuple[Part, ...]
    inner: tuple[tuple[int, "Block"], ...]
    choices: tuple[tuple["Block", ...], ...]
    rest: Polynomial

    def products(self, times: int = 1) -> Iterator[tuple[int, Part]]:
        """All products, those of every branch, and how often each runs."""
        for part in self.parts:
            yield times, part
        for repeats, inner in self.inner:
            yield from inner.products(times * repeats)
        for branches in self.choices:
            for branch in branches:
                yield from branch.products(times)


class Program:
    """A traced program whose products are counted.

    Args:
      fn, params, inputs, blocks: the model, as in `js.graph.structure`.

    Attributes:
      groups: of its units, by name.
      units: how many each of them has.
      sizes: by path how many entries every leaf has.
      itemsizes: by path the bytes of one.
      layers: in the order of the program.
      block: what runs.
      analysis: of the program.

    Raises:
      ValueError: symbolic sizes, of which there is no number.
      TypeError: packed weights, which have no axes to trace.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Tree,
        inputs: Sequence[Any],
        blocks: Blocks | None = None,
    ):
        _check(params)
        self.analysis = Analysis(fn, params, inputs, blocks, removal=True)
        self._check_sizes()
        self._structure = structure_of(self.analysis)
        self.groups = {group.name: group for group in self._structure.groups}
        self.units = {name: group.units for name, group in self.groups.items()}
        self._names = {self._atom(group): name for name, group in self.groups.items()}
        self._ends = {role: self._on_axes(role) for role in ("reads", "writes")}
        variables = self.analysis.program[0].invars[: len(self.shapes)]
        self.itemsizes = {
            path: variable.aval.dtype.itemsize
            for path, variable in zip(self.shapes, variables, strict=True)
        }
        self.sizes = {
            path: product(map(self.axis, value.axes))
            for path, value in self.analysis.leaves.items()
        }
        self._layers: list[Layer] = []
        self.block = self._counted(self.analysis.walked, 1)
        self.layers = tuple(self._layers)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the leaves, by path."""
        return self.analysis.shapes

    def axis(self, term: int) -> Polynomial:
        """How many positions of an axis are left."""
        return total(
            product(
                Polynomial.of(self._names[factor.atom])
                if factor.atom in self._names
                else Polynomial.constant(factor.size)
                for factor in piece.factors
            )
            for piece in self.analysis.terms.pieces(term)
        )

    def shape(self, path: str, widths: Mapping[str, int]) -> tuple[int, ...]:
        """Of a leaf of which the units of some widths are left."""
        return tuple(self.axis(term)(widths) for term in self.analysis.leaves[path].axes)

    def check_widths(self, widths: Mapping[str, SupportsIndex]) -> dict[str, int]:
        """The width of every group; a ValueError or TypeError for what is none."""
        check_widths(self._structure, widths)
        return self.units | {name: operator.index(width) for name, width in widths.items()}

    def check_path(self, path: str) -> None:
        """KeyError for what is no leaf."""
        if path not in self.sizes:
            raise KeyError(f"no leaf {path!r}; {near_misses(path, self.sizes)}")

    def kept(self, path: str, density: float, widths: Mapping[str, int]) -> tuple[int, int]:
        """How many entries a leaf keeps, and how many there are.

        The nearest whole number, of two the larger: masks keep no more. 1 - s is no share to the
        last bit.
        """
        self.check_path(path)
        if not isinstance(density, int | float | np.number) or not 0 <= density <= 1:
            raise ValueError(f"densities: {path!r} keeps {density!r}; 0 to 1 would work")
        size = self.sizes[path](widths)
        return min(math.floor(float(density) * size + 0.5 + size * 2**-50), size), size

    def _check_sizes(self) -> None:
        for variable in self.analysis.program[0].invars:
            if any(map(is_symbolic, variable.aval.shape)):
                raise ValueError(
                    f"an argument has shape {variable.aval.shape}; what it costs is a number only "
                    "with numbers in the place of symbolic sizes"
                )

    def _atom(self, group: StructuredGroup) -> int:
        member = group.weights[0]
        axis = self.analysis.leaves[member.path].axes[member.axis]
        for piece in self.analysis.terms.pieces(axis):
            for factor in piece.factors:
                at = piece.offset, factor.stride, factor.size
                if at == (member.offset, member.stride, group.units):
                    return factor.atom
        raise AssertionError(f"{group.name} is of another program")

    def _on_axes(self, role: str) -> dict[str, str | None]:
        """By path the one group that a weight reads or writes, None for several."""
        found: dict[str, set[str]] = {}
        for group in self.groups.values():
            for member in group.weights:
                if member.role == role:
                    found.setdefault(member.path, set()).add(group.name)
        return {path: next(iter(n)) if len(n) == 1 else None for path, n in found.items()}

    def _counted(self, walked: Walked, calls: int) -> Block:
        parts, inner, choices, rest = [], [], [], []
        for record in walked.records:
            name = record.equation.primitive.name
            if name == "cond":
                choices.append(tuple(self._counted(branch, calls) for branch in record.inner))
            elif record.inner:
                times = record.equation.params["length"] if name == "scan" else 1
                inner += [(times, self._counted(w, calls * times)) for w in record.inner]
            elif (axes := _multiplied(record)) is not None:
                macs = product(map(self.axis, axes))
                layers = list(self._of_record(record, macs, calls))
                self._layers += layers
                shapes = (tuple(map(self.axis, value.axes)) for value in record.operands)
                data = tuple(bool(value.ops) for value in record.operands)
                paths = tuple(layer.path for layer in layers)
                parts.append(Part(macs, paths, record.equation, tuple(shapes), data))
            elif name in OPAQUE:
                raise ValueError(
                    f"{where(record.equation)}: nobody knows how much {name} multiplies; a model "
                    "without it, of XLA's own products, would work"
                )
            elif name not in VIEWS:
                made = (value for value in record.results if value.ops)
                rest += [product(map(self.axis, value.axes)) for value in made]
        return Block(tuple(parts), tuple(inner), tuple(choices), total(rest))

    def _of_record(self, record: Record, macs: Polynomial, calls: int) -> Iterator[Layer]:
        params = record.equation.params
        for met in self._met(record):
            window, stride, op = (), (), "dense"
            if record.equation.primitive.name == "conv_general_dilated":
                _, channels, *places = params["dimension_numbers"].rhs_spec
                kernel = record.equation.invars[1].aval.shape
                window = tuple(kernel[place] for place in places)
                stride = tuple(params["window_strides"])
                alone = params["feature_group_count"] > 1 and kernel[channels] == 1
                op = "depthwise" if alone else "conv"
            writes = self._ends["writes"].get(met.path)
            reads = writes if op == "depthwise" else self._ends["reads"].get(met.path)
            size = math.prod(met.shape)
            yield Layer(
                *(met.path, op, met.shape, macs(self.units) * calls),
                *(size * self.itemsizes[met.path], reads, writes, stride, window, calls),
            )

    def _met(self, record: Record) -> list[Product]:
        """The weights that this very call of an equation takes.

        Calls of one function share its equations, and so does what was read of them.
        """
        known = self.analysis.products.get(id(record.equation), ())
        here = {path for value in record.operands if not value.ops for path in value.weights}
        here |= self._picked(record.operands, {met.path for met in known})
        return [met for met in known if met.path in here]

    def _picked(self, operands: Iterable[Value], wanted: set[str]) -> set[str]:
        """Weights that data has picked from a stack, on the way to an operand."""
        waiting = [op for value in operands for op in value.ops]
        found, seen = set(), set(waiting)
        while waiting:
            op = self.analysis.ops[waiting.pop()]
            if op.kernel is not None:
                continue
            if here := wanted & set(op.weights):
                found |= here
                continue
            waiting += [before for before in op.inputs if before not in seen]
            seen |= set(op.inputs)
        return found


def layers(
    fn: Callable[..., Any], params: Tree, *inputs: Any, blocks: Blocks | None = None
) -> tuple[Layer, ...]:
    """The products of a program that weights enter, in its order, with what they cost.

    Nothing runs: the function is traced on the shapes of its arguments. A weight that is used
    twice is two layers.

    Args:
      fn, params, inputs, blocks: the model, as in `js.graph.structure`; shapes are enough.

    Raises:
      ValueError: for blocks that no leaf has, and symbolic sizes.
      TypeError: for packed weights; a model is counted while it is dense.

    Example:
      >>> import jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((2, 8)), "down": jnp.ones((8, 3))}
      >>> up, down = layers(mlp, params, jnp.ones((5, 2)))
      >>> up.macs, up.bytes, up.writes == down.reads
      (80, 64, True)
    """
    return Program(fn, params, inputs, blocks).layers


def _check(params: Tree) -> None:
    for path, leaf in leaves_by_path(params, is_packed).items():
        if is_packed(leaf):
            raise TypeError(
                f"{path!r} is {leaf!r}; costs are counted on the dense model: "
                "unpack_params(params) would work, and densities= say what is kept"
            )


def _multiplied(record: Record) -> list[int] | None:
    """The axes over which a product runs, None for what is no product."""
    name, params = record.equation.primitive.name, record.equation.params
    if name == "dot_general":
        (_, summed), (_, batch) = params["dimension_numbers"]
        left, right = record.operands
        rest = (axis for i, axis in enumerate(right.axes) if i not in (*summed, *batch))
        return [*left.axes, *rest]
    if name == "ragged_dot_general":
        numbers = params["ragged_dot_dimension_numbers"]
        (_, summed), (_, batch) = numbers.dot_dimension_numbers
        left, right = record.operands[:2]
        gone = (*summed, *batch, *numbers.rhs_group_dimensions)
        return [*left.axes, *(axis for i, axis in enumerate(right.axes) if i not in gone)]
    if name == "conv_general_dilated":
        _, *summed = params["dimension_numbers"].rhs_spec
        return [*record.results[0].axes, *(record.operands[1].axes[i] for i in summed)]
    return None
