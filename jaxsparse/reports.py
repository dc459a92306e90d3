"""What is sparse, against what was asked for, and what it takes to store."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.packed.base import Packed, is_packed
from jaxsparse.packed.packing import pack_view
from jaxsparse.patterns.base import Unstructured, widen
from jaxsparse.patterns.rules import LeafSpec, Rule, check_rules, describe, resolve
from jaxsparse.patterns.views import View
from jaxsparse.products.reading import products
from jaxsparse.products.sights import Product, told
from jaxsparse.pruning.distributions import known_target
from jaxsparse.pruning.masking import pair_masks
from jaxsparse.text import columned
from jaxsparse.trees import Tree, leaves_by_path


@dataclasses.dataclass(frozen=True)
class LeafReport:
    """One leaf of the model.

    Attributes:
      path, shape, dtype: of the leaf.
      pattern: "Block(4, 16) on (64, 32)", or "dense"; a pattern names itself, by `str`. Of a
        packed weight its kind, "BlockSparse[4x16, 9.4%]".
      target: sparsity asked for, None if unknown or dense.
      kept, size: entries kept and entries in all.
      dense_bytes: as a plain array.
      stored_bytes: as a packed array, indices counted, or dense where that is less.
      non_finite: NaN and infinite entries under the mask; `mask_params` zeroes
        them, an additive update cannot.
      note: what else is worth knowing, empty if nothing.
      zeros_met: fraction of zeros in the activations that it multiplies, None if unknown.
      saturated: fraction of these that its codes' range does not hold, None if unknown.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    pattern: str
    target: float | None
    kept: int
    size: int
    dense_bytes: int
    stored_bytes: int
    non_finite: int
    note: str = ""
    zeros_met: float | None = None
    saturated: float | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of entries that are masked."""
        return 1 - self.kept / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class Report:
    """Every leaf and the totals; `str(report)` is a table.

    Attributes:
      leaves: in the order of the tree.
    """

    leaves: tuple[LeafReport, ...]

    @property
    def sparsity(self) -> float:
        """Fraction masked of the leaves that have a mask."""
        pruned = [leaf for leaf in self.leaves if leaf.pattern != "dense"]
        size = sum(leaf.size for leaf in pruned)
        return 1 - sum(leaf.kept for leaf in pruned) / size if size else 0.0

    @property
    def total_sparsity(self) -> float:
        """Fraction masked of all parameters."""
        return 1 - self.kept / self.size if self.size else 0.0

    @property
    def kept(self) -> int:
        """Parameters kept, dense leaves included."""
        return sum(leaf.kept for leaf in self.leaves)

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the whole model as plain arrays."""
        return sum(leaf.dense_bytes for leaf in self.leaves)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the whole model with what is masked not stored."""
        return sum(leaf.stored_bytes for leaf in self.leaves)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain numbers and strings, for JSON."""
        names = ("sparsity", "total_sparsity", "kept", "size", "dense_bytes", "stored_bytes")
        return {name: getattr(self, name) for name in names} | {
            "leaves": [
                dataclasses.asdict(leaf) | {"sparsity": leaf.sparsity} for leaf in self.leaves
            ]
        }

    def __str__(self) -> str:
        head = ("leaf", "shape", "pattern", "target", "sparsity", "kept", "bytes", "stored", "note")
        rows: list[tuple[str, ...]] = [head]
        for leaf in self.leaves:
            target = "" if leaf.target is None else f"{leaf.target:.2%}"
            sparsity = "" if leaf.pattern == "dense" else f"{leaf.sparsity:.2%}"
            met = [] if leaf.zeros_met is None else [f"{leaf.zeros_met:.0%} of what it meets is 0"]
            if leaf.saturated:
                met.append(f"{leaf.saturated:.2%} of what it meets saturates")
            rows.append(
                (
                    leaf.path,
                    "x".join(map(str, leaf.shape)),
                    leaf.pattern,
                    target,
                    sparsity,
                    *(f"{n:,}" for n in (leaf.kept, leaf.dense_bytes, leaf.stored_bytes)),
                    "; ".join([leaf.note] * bool(leaf.note) + met),
                )
            )
        totals = (f"{n:,}" for n in (self.kept, self.dense_bytes, self.stored_bytes))
        rows.append(("total", f"{self.size:,}", "", "", f"{self.total_sparsity:.2%}", *totals, ""))
        lines = columned(rows, {0, 2, 8})
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def report(
    params: Tree,
    masks: Tree,
    *,
    rules: Sequence[Rule] = (),
    targets: Mapping[str, float] | None = None,
    fn: Callable[..., Any] | None = None,
    inputs: Sequence[Any] = (),
    activations: Mapping[Any, Mapping[str, Any]] | None = None,
    saturation: Mapping[str, Any] | None = None,
) -> Report:
    """Counts what masks leave of the parameters.

    Args:
      params: any tree; what is no number in it (functions, random keys) has no row. A packed
        weight is one row, of what it stores.
      masks: `masks(opt_state)`, or a tree like `params` with None where dense.
      rules: the rules of the pruner, for patterns and targets; without them masks
        are taken as unstructured.
      targets: sparsity asked for by path, `targets(rules, params, sparsity)`; of the
        leaves that it leaves out what the rule says, and 1 - n/m for n:m.
      fn, inputs: the model, called as fn(params, *inputs); a leaf whose pattern lies
        along other axes than its products sum over then has a note. Nothing runs.
      activations: what `calibration.observe(..., reducer=zeros())` found: how many of the
        numbers that a weight meets are zero is then in its row.
      saturation: what `quantized.saturation` counted: the share of these that
        lies outside of the codes' range is then in its row, where there is any.

    Raises:
      KeyError: if a mask names a leaf that is not there.
      ValueError: if a mask has another shape than its leaf.

    >>> r = report({"w": jnp.ones((4, 4))}, {"w": jnp.eye(4, dtype=bool)})
    >>> r.sparsity, r.kept
    (0.75, 4)
    """
    pairs = pair_masks(params, leaves_by_path(masks))
    specs = resolve(check_rules(rules), params) if rules else {}
    asked = {path: known_target(spec) for path, spec in specs.items()} | dict(targets or {})
    met: dict[str, list[Product]] = {}
    for product in products(fn, params, *inputs) if fn is not None and specs else ():
        if product.sums:
            met.setdefault(product.path, []).append(product)
    zeros = _zeros_met({} if activations is None else activations)
    rows: list[LeafReport] = []
    for path, leaf in leaves_by_path(params, is_packed).items():
        if is_packed(leaf):
            rows.append(_packed_row(path, leaf))
            continue
        kind = describe(leaf)
        if isinstance(kind, str):
            continue
        size, itemsize = math.prod(kind.shape), kind.dtype.itemsize
        kept, stored, bad, pattern, note = size, size * itemsize, 0, "dense", ""
        if path in pairs:
            spec = specs.get(path) or _unstructured(path, kind.shape)
            mask = np.asarray(pairs[path][0])
            kept, stored = int(mask.sum()), int(min(stored, _stored_bytes(spec, mask, kind.dtype)))
            bad = _not_finite(leaf, mask)
            pattern, note = (
                f"{spec.pattern} on {spec.view}",
                _note(spec, leaf, bad, met.get(path, [])),
            )
        rows.append(
            LeafReport(path, kind.shape, str(kind.dtype), pattern, asked.get(path), kept, size,
                       size * itemsize, stored, bad, note)
        )  # fmt: skip
    counts = saturation or {}
    return Report(
        tuple(
            dataclasses.replace(
                row,
                zeros_met=zeros.get(row.path),
                saturated=counts[row.path].share if row.path in counts else None,
            )
            for row in rows
        )
    )


def mask_picture(mask: Any, longest: int = 256) -> np.ndarray:
    """Returns a mask as a grey picture: uint8 (rows, columns), 0 kept and 255 masked.

    All axes but the last are merged into rows, so that stacks stand under one
    another; large masks are averaged down to at most `longest` pixels a side.
    """
    mask = np.asarray(mask)
    matrix = mask.reshape(-1, mask.shape[-1]) if mask.ndim > 1 else mask.reshape(1, -1)
    for axis in (0, 1):
        edges = np.unique(np.linspace(0, matrix.shape[axis], longest + 1).astype(int))[:-1]
        sums = np.add.reduceat(matrix, edges, axis=axis, dtype=np.float64)
        counts = np.diff(np.append(edges, matrix.shape[axis]))
        matrix = sums / (counts[:, None] if axis == 0 else counts)
    return np.round(255 * (1 - matrix)).astype(np.uint8)


def _zeros_met(activations: Mapping[Any, Mapping[str, Any]]) -> dict[str, float]:
    """The share of zeros by path, of all products that a weight takes part in."""
    if not isinstance(activations, Mapping):
        raise TypeError("report: activations are the states, by site, that observe returns")
    counts: dict[str, np.ndarray] = {}
    for site, state in activations.items():
        if not (isinstance(state, Mapping) and {"zeros", "size"} <= set(state)):
            raise TypeError(
                f"report: activations hold no counts of zeros for {site.path!r}; what "
                "calibration.observe(..., reducer=calibration.zeros()) returns as states would work"
            )
        found = np.array([np.sum(state["zeros"]), np.sum(state["size"])], np.float64)
        counts[site.path] = counts.get(site.path, np.zeros(2)) + found
    return {path: zeros / size for path, (zeros, size) in counts.items() if size}


def _packed_row(path: str, packed: Packed) -> LeafReport:
    """What a packed weight stores; a place that a mask left out within it counts as masked."""
    ones = jnp.ones_like(packed.values, jnp.int8)
    places = packed.replace(scales=None).with_values(ones).todense()
    return LeafReport(
        path,
        packed.shape,
        str(packed.dtype),
        repr(packed).split("(")[0],
        None,
        int(jnp.count_nonzero(places)),
        packed.size,
        packed.size * packed.dtype.itemsize,
        packed.nbytes,
        0,
    )


def _unstructured(path: str, shape: tuple[int, ...]) -> LeafSpec:
    axes = tuple(range(len(shape)))
    view = View(tuple(shape), (), axes[:-1], axes[-1:])
    return LeafSpec(path, Unstructured(), view, None)


def _stored_bytes(spec: LeafSpec, mask: np.ndarray, dtype: Any) -> int | float:
    """Bytes of the packed array, infinite where there is none."""
    places = np.broadcast_to(np.zeros((), dtype), mask.shape)
    # An N:M mask may keep more than n of m until its schedule has ended.
    for pattern in (spec.pattern, Unstructured()):
        try:
            return pack_view(places, pattern, mask, spec.view).nbytes
        except ValueError:
            continue
    return math.inf


def _not_finite(leaf: Any, mask: np.ndarray) -> int:
    """NaN and infinite entries under the mask."""
    finite = np.asarray(jnp.isfinite(widen(jnp.asarray(leaf))))
    return int(np.sum(~finite & ~mask))


def _note(spec: LeafSpec, leaf: Any, non_finite: int, met: Sequence[Product]) -> str:
    bad = f"{non_finite} NaN or inf under the mask: mask_params makes zeros of them"
    notes = [bad] if non_finite else []
    if spec.pattern.directed and met and not any(p.agrees(spec.view) for p in met):
        notes.append(f"{told(met)}: with those in its rule it would multiply packed")
    sharding = getattr(leaf, "sharding", None)
    if isinstance(leaf, jax.Array) and sharding is not None and not sharding.is_fully_replicated:
        shard = sharding.shard_shape(leaf.shape)
        if spec.pattern.cut_by(spec.view, shard):
            notes.append(f"shards of {'x'.join(map(str, shard))} cut groups: pooling gathers")
    return "; ".join(notes)
