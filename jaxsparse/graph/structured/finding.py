"""`structure`: heads and neurons, found in the channel graph of a traced model."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxsparse.graph.analysis.channels import Channels, Group, Place, summarize
from jaxsparse.graph.analysis.pieces import Piece
from jaxsparse.graph.analysis.trace import Analysis
from jaxsparse.graph.analysis.values import Op, Record, Walked
from jaxsparse.graph.shrinking.folding import MOVES
from jaxsparse.graph.shrinking.needs import needed_beside
from jaxsparse.graph.structured.lineages import Lineages
from jaxsparse.graph.structured.names import names
from jaxsparse.graph.structured.resolving import Structure
from jaxsparse.graph.structured.units import Member, Role, StructuredGroup
from jaxsparse.trees import Tree

# What may stand between a product and the bias that is added to it: the head axes split off,
# and a residual that is added first.
BEFORE_A_BIAS = (*MOVES, "add", "add_any")


def structure(
    fn: Callable[..., Any],
    params: Tree,
    *inputs: Any,
    blocks: Mapping[str, tuple[int, int]] | None = None,
) -> Structure:
    """Finds the heads and neurons of a model, from its trace.

    A group of channels (`channels`) is one of units if some weights write it, others read it
    (sum over it), and what is read is not added to later: that is a residual stream, which no
    layer owns. A layer that occurs twice owns its units all the same.

    Units are read by weights alone: what another activation is multiplied and summed with (a
    Gram matrix, keys that are their own values), what a norm, a mean or a constant kernel runs
    over, and what a weight reads by more than its own numbers (by its exponential) would be
    missed, so these are none either.

    Where an axis is made of several groups, heads and head_dim, the major one that may go is
    meant: a head goes as a whole, and a neuron in all experts of a mixture. With grouped
    queries that is a key head with all its query heads. Layers stacked under a scan, which run
    at one size, share their units.

    Args:
      fn, params, inputs, blocks: the model, as in `channels`; shapes are enough.

    Returns:
      A static, hashable `Structure`, in the order in which units are read. Its `resolve`
      makes masks of whole heads and neurons.

    Raises:
      ValueError: for blocks that no leaf has.

    Example:
      >>> import jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return x + jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]
      >>> params = {"up": jnp.ones((2, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 2))}
      >>> print(structure(mlp, params, jnp.ones((5, 2))))
      up, down: 8 neurons, written by up[1], read by down[0]

    References:
      NNCF's structured masking, which knows its architectures by name.
    """
    return structure_of(Analysis(fn, params, inputs, blocks, removal=True))


def structure_of(analysis: Analysis) -> Structure:
    """`structure` of what is analysed already, with `removal`."""
    return _Finder(analysis, summarize(analysis)).structure()


class _Finder:
    def __init__(self, analysis: Analysis, channels: Channels):
        self.analysis, self.channels, self.ops = analysis, channels, channels.ops
        met = [product for products in analysis.products.values() for product in products]
        self.read = {(p.path, axis) for p in met for axis in p.in_axis}
        self.written = {(p.path, axis) for p in met for axis in p.out_axis}
        self.convolved = {p.path for p in met if p.primitive == "conv_general_dilated"}
        self.outputs = {p.path: p.out_axis for p in met}
        # By bias, the weight whose product it is added to.
        self.layers = dict(self._biases())

    def structure(self) -> Structure:
        found = [(group, self._members(group)) for group in self.channels.groups]
        owned = [
            (group, members)
            for group, members in found
            if {"writes", "reads"} <= {member.role for member in members}
            and not self._is_stream(group, members)
        ]
        elsewhere, heads = self._read_elsewhere(owned), self._batches()
        owned = [pair for pair in owned if pair[0].id not in elsewhere]
        ids = {group.id for group, _ in owned}
        units = [pair for pair in owned if not self._is_inner(pair[0], ids)]
        units.sort(key=lambda pair: self._first_read(pair[1]))
        labels = names([_weights(members) for _, members in units])
        groups = tuple(
            self._group(name, *pair, pair[0].id in heads)
            for name, pair in zip(labels, units, strict=True)
        )
        return Structure(groups, tuple(self.channels.shapes.items()))

    def _group(
        self, name: str, group: Group, members: tuple[Member, ...], heads: bool
    ) -> StructuredGroup:
        weights = [member for member in members if member.role != "beside"]
        convolved = any(m.path in self.convolved for m in weights if m.role == "writes")
        kind = "heads" if heads else "channels" if convolved else "neurons"
        inside = {member.path for member in members}
        readers = {member.path for member in weights if member.role == "reads"}
        outputs = [p for p, at in self.layers.items() if at in readers and p not in inside]
        return StructuredGroup(name, kind, group.size, members, tuple(outputs))

    def _members(self, group: Group) -> tuple[Member, ...]:
        members = []
        for place in group.places:
            at, role = (place.path, place.axis), "beside"
            if at in self.read:
                role = "reads"
            elif at in self.written:
                role = "writes"
            layer = self.layers.get(place.path) if role == "beside" else None
            members.append(self._member(group, place, role, layer))
        return tuple(members)

    def _member(self, group: Group, place: Place, role: Role, layer: str | None) -> Member:
        piece = self._piece(group, place)
        repeats = [(f.size, f.stride) for f in piece.factors if f.group != group.id]
        return Member(
            *(place.path, place.axis, place.axis_size, role),
            *(place.offset, place.stride, tuple(repeats), layer),
        )

    def _piece(self, group: Group, place: Place) -> Piece:
        pieces = self.channels.axes[place.path][place.axis]
        return next(
            piece
            for piece in pieces
            if piece.offset == place.offset
            and any(f.group == group.id and f.stride == place.stride for f in piece.factors)
        )

    def _is_inner(self, group: Group, owned: set[int]) -> bool:
        """Whether the channels lie inside of larger units wherever weights write them."""
        return all(
            group.id != self._major(place, owned)
            for place in group.places
            if (place.path, place.axis) in self.written
        )

    def _major(self, place: Place, owned: set[int]) -> int | None:
        """The first group that is owned of all that a weight ends in, at a place of it.

        Heads are; the experts of a mixture, which no weight reads, are none.
        """
        for axis in self.outputs[place.path]:
            for piece in self.channels.axes[place.path][axis]:
                if axis == place.axis and piece.offset != place.offset:
                    continue
                for factor in piece.factors:
                    if factor.group in owned and factor.size > 1:
                        return factor.group
        return None

    def _is_stream(self, group: Group, members: Sequence[Member]) -> bool:
        """Whether what is read is added to later."""
        writers = {member.path for member in members if member.role == "writes"}
        readers = {member.path for member in members if member.role == "reads"}
        followed = {path for op in self.ops if op.kernel is not None for path in op.weights}
        # In a loop whose state starts as a constant, what the state meets is no op.
        if writers & readers or not writers | readers <= followed:
            return True
        lineage = functools.partial(self._lineages.of, self.atoms[group.id])
        reading: dict[Any, int] = {}  # by lineage a number whose bits are the ops that read it
        for op in self._products(readers):
            for before in op.inputs:
                reading[lineage(before)] = reading.get(lineage(before), 0) | 1 << op.id
        return any(
            self._before[op.id] & reading.get(lineage(op.id), 0) for op in self._products(writers)
        )

    def _products(self, paths: set[str]) -> list[Op]:
        return [op for op in self.ops if op.kernel is not None and paths & set(op.weights)]

    @functools.cached_property
    def _lineages(self) -> Lineages:
        return Lineages(self.analysis)

    @functools.cached_property
    def _before(self) -> list[int]:
        """By op a number whose bits are the ops that it depends on."""
        before: list[int] = []
        for op in self.ops:
            before.append(0)
            for other in op.inputs:
                before[-1] |= before[other] | 1 << other
        return before

    def _first_read(self, members: Sequence[Member]) -> int:
        readers = {member.path for member in members if member.role == "reads"}
        return min(op.id for op in self._products(readers))

    def _biases(self) -> Iterator[tuple[str, str]]:
        for op in self.ops:
            if op.primitive not in ("add", "add_any") or len(op.weights) != 1:
                continue
            (path,), product = op.weights, self._product_before(op)
            if product is None or path in self.outputs or len(product.weights) != 1:
                continue
            (weight,), shapes = product.weights, self.channels.shapes
            ends = [shapes[weight][axis] for axis in self.outputs.get(weight, ())]
            if sorted(n for n in shapes[path] if n != 1) == sorted(n for n in ends if n != 1):
                yield path, weight

    def _product_before(self, op: Op) -> Op | None:
        """The last product with a weight of which an op gets the sum with something."""
        waiting, found = list(op.inputs), None
        while waiting:
            before = self.ops[waiting.pop()]
            if before.kernel is not None:
                found = before if found is None or before.id > found.id else found
            elif before.primitive in BEFORE_A_BIAS:
                waiting.extend(before.inputs)
        return found

    def _read_elsewhere(self, units: Sequence[tuple[Group, Sequence[Member]]]) -> set[int]:
        """The groups that are read by something else than weights that a mask could empty.

        The first unit of every group is masked in all its readers. Where the program still
        needs it, a norm, another activation or a constant reads it, or a reader whose zeros
        are no zeros any more when it multiplies. The only unit there is stays anyway.
        """
        zeros: dict[str, dict[int, np.ndarray]] = {}
        for group, members in units:
            for member in members:
                if member.role == "reads" and group.size > 1:
                    axes = zeros.setdefault(member.path, {})
                    zero = axes.setdefault(member.axis, np.zeros(member.axis_size, bool))
                    zero[member.positions(group.size)[0]] = True
        free = {self.atoms[group.id]: group.size for group, _ in units}
        needed = needed_beside(self.analysis, zeros, free)
        found = (group for group, _ in units if group.size > 1)
        return {group.id for group in found if needed[self.atoms[group.id]][0]}

    def _batches(self) -> set[int]:
        """The groups along which a product of two activations is a batch of products: heads."""
        numbers = {atom: id for id, atom in enumerate(self.atoms)}
        wanted = (term for record in _records(self.analysis.walked) for term in _batched(record))
        factors = self.analysis.terms.factors(wanted)
        return {numbers[f.atom] for f in factors if f.atom in numbers}

    @functools.cached_property
    def atoms(self) -> list[int]:
        """By number of a group its atom."""
        terms = self.analysis.terms
        axes = (term for value in self.analysis.leaves.values() for term in value.axes)
        return list(dict.fromkeys(f.atom for f in terms.factors(axes) if f.cause is None))


def _records(walked: Walked) -> Iterator[Record]:
    """The equations all of whose operands depend on the inputs, those of inner programs too."""
    for record in walked.records:
        for inner in record.inner:
            yield from _records(inner)
        if record.operands and all(value.ops for value in record.operands):
            yield record


def _batched(record: Record) -> Iterable[int]:
    """The axes along which a product is a batch of products."""
    if record.equation.primitive.name != "dot_general":
        return ()
    _, (batch, _) = record.equation.params["dimension_numbers"]
    return [record.operands[0].axes[i] for i in batch]


def _weights(members: Sequence[Member]) -> list[str]:
    """Paths of what writes units, then of what reads them."""
    weights = (member for role in ("writes", "reads") for member in members if member.role == role)
    return list(dict.fromkeys(member.path for member in weights))
