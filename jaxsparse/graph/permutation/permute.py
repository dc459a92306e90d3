"""`permute`: channels in the order under which n:m sparsity keeps the most magnitude."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxsparse.graph.analysis.channels import Channels, Group, channels
from jaxsparse.graph.hosts import of_first_process, whole
from jaxsparse.graph.permutation.search import search_permutation
from jaxsparse.patterns.nm import NM
from jaxsparse.patterns.rules import LeafSpec, Rule, resolve
from jaxsparse.products.traced_axes import read_axes
from jaxsparse.trees import Tree, leaves_by_path

Search = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class PermutedGroup:
    """What the search made of one group of channels.

    Attributes:
      group: which channels, and where they are.
      leaves: paths of the n:m leaves whose input channels they are.
      pattern: "2:4" for example; empty if no leaf is eligible.
      plain: sum |w| that n:m keeps of these leaves in the order given.
      retained: what it keeps in the new order; as plain where none is better.
      bound: what the n/m largest of every row hold, whatever their order.
      reason: why the channels stay as they are; empty if they were permuted.
    """

    group: Group
    leaves: tuple[str, ...]
    pattern: str
    plain: float
    retained: float
    bound: float
    reason: str

    @property
    def efficacy(self) -> float:
        """(retained - plain) / (bound - plain), 0 where there is nothing to gain."""
        room = self.bound - self.plain
        return (self.retained - self.plain) / room if room > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class PermutedLeaf:
    """What a leaf's own n:m mask keeps of sum |w|, before and after.

    Attributes:
      path: slash path.
      pattern: of its rule.
      total: sum |w|.
      plain, retained: what the mask keeps before and after the permutation.
    """

    path: str
    pattern: str
    total: float
    plain: float
    retained: float


@dataclasses.dataclass(frozen=True)
class PermutationReport:
    """What `permute` did; `str(report)` is a table.

    Attributes:
      groups: every group that n:m leaves have input channels in.
      leaves: every leaf under an n:m rule.
      permutations: by group id; channel i was taken from permutation[i].
      channels: the analysis.
    """

    groups: tuple[PermutedGroup, ...]
    leaves: tuple[PermutedLeaf, ...]
    permutations: Mapping[int, Int[np.ndarray, " n"]]
    channels: Channels

    def __str__(self) -> str:
        lines = []
        for row in self.groups:
            kept = f"{row.plain:.6g} -> {row.retained:.6g}, at most {row.bound:.6g}"
            kept = f"{kept}, efficacy {row.efficacy:.1%}" if row.pattern else "not searched"
            because = f" ({row.reason})" if row.reason else ""
            lines.append(
                f"group {row.group.id}, {row.group.size} channels {row.pattern}: {kept}{because}: "
                + ", ".join(row.leaves)
            )
        lines += [
            f"{leaf.path} {leaf.pattern}: keeps {leaf.plain / (leaf.total or 1):.2%} -> "
            f"{leaf.retained / (leaf.total or 1):.2%} of the magnitude"
            for leaf in self.leaves
        ]
        return "\n".join(lines)


def permute(
    fn: Callable[..., Any],
    params: Tree,
    *inputs: Any,
    rules: Sequence[Rule],
    search: Search = search_permutation,
    blocks: Mapping[str, tuple[int, int]] | None = None,
    **options: Any,
) -> tuple[Tree, PermutationReport]:
    """Permutes channels so that n:m masks keep more magnitude; the function stays.

    For every group of channels (see `channels`) the leaves that rules give n:m and
    whose input channels they are stand side by side as one matrix (rows, channels);
    the order found for it is applied to every leaf axis that holds the channels, and
    only where the masks of all leaves together keep more than before.

    Args:
      fn, params, inputs: the model, as in `channels`; params are arrays.
      rules: the rules to prune with; those with another pattern than NM say nothing
        here. Axes that they leave open are read from the trace, as by `read_axes`.
      search: called as search(matrix, n, m, **options) for every group; returns
        `permutation`, `plain`, `retained` and `bound`, as `search_permutation` does.
      blocks: channels that go together, as in `channels`.
      options: for the search, such as `window=`, `escapes=` and `seed=`.

    The search runs on the host. Sharded parameters stay sharded; of several processes
    the first decides for all, and every one has to call.

    Returns:
      The parameters of the same function with channels in another order, and a
      report with the magnitude kept by group and by leaf.

    Raises:
      ValueError: for rules that do not fit (see `Rule`), or if none has an NM.

    Example:
      >>> import jaxsparse as js
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.eye(8), "down": jnp.array([[9.0] * 4 + [1.0] * 4]).T}
      >>> rules = [Rule("down", NM(2, 4))]
      >>> new, report = permute(mlp, params, jnp.ones((1, 8)), rules=rules)
      >>> (report.leaves[0].plain, report.leaves[0].retained)
      (20.0, 36.0)
      >>> bool(jnp.allclose(mlp(new, jnp.ones((1, 8))), mlp(params, jnp.ones((1, 8)))))
      True

    References:
      Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021.
    """
    specs = {
        path: spec
        for path, spec in resolve(read_axes(rules, fn, params, *inputs), params).items()
        if isinstance(spec.pattern, NM)
    }
    if not specs:
        raise ValueError("no rule has an n:m pattern; js.Rule(path, js.NM(2, 4)) would work")
    found = channels(fn, params, *inputs, blocks=blocks)
    state = _State(found, specs, params)
    before = {path: state.kept(path) for path in specs}
    rows = tuple(
        state.permute(group, paths, search, options) for group, paths in _input_leaves(found, specs)
    )
    leaves = tuple(
        PermutedLeaf(path, _name(spec), state.total(path), before[path], state.kept(path))
        for path, spec in specs.items()
    )
    sizes = {row.group.id: row.group.size for row in rows}
    permutations = of_first_process(state.permutations, sizes)
    report = PermutationReport(rows, leaves, permutations, found)
    return found.permuted(params, permutations), report


def _input_leaves(found: Channels, specs: Mapping[str, LeafSpec]) -> list[tuple[Group, list[str]]]:
    """Groups with the leaves under n:m which have them on an input axis."""
    rows = []
    for group in found.groups:
        paths = dict.fromkeys(
            place.path
            for place in group.places
            if place.path in specs and place.axis in specs[place.path].view.inputs
        )
        if paths:
            rows.append((group, list(paths)))
    return rows


def _name(spec: LeafSpec) -> str:
    assert isinstance(spec.pattern, NM)
    return f"{spec.pattern.n}:{spec.pattern.m}"


class _State:
    """The n:m leaves while one group after the other is put in order."""

    def __init__(self, found: Channels, specs: Mapping[str, LeafSpec], params: Tree):
        self.channels, self.specs = found, specs
        leaves = leaves_by_path(params)
        self.weights = {path: np.abs(whole(leaves[path]).astype(np.float64)) for path in specs}
        self.permutations: dict[int, np.ndarray] = {}

    def total(self, path: str) -> float:
        return float(self.weights[path].sum())

    def kept(self, path: str, weight: np.ndarray | None = None) -> float:
        """What the leaf's n:m mask keeps of its magnitude."""
        spec = self.specs[path]
        weight = self.weights[path] if weight is None else weight
        # In float32 sums of millions round by more than a permutation may gain.
        pooled = spec.pool(jnp.asarray(weight, jnp.float32))
        mask = spec.pattern.finish(self._none(pooled, spec), pooled, None, spec.view)
        return float(weight[np.asarray(spec.expand(mask))].sum())

    def _none(self, pooled, spec):
        return jnp.zeros_like(spec.pattern.unit_scores(pooled, None, spec.view)[0], bool)

    def permute(
        self, group: Group, paths: list[str], search: Search, options: Mapping[str, Any]
    ) -> PermutedGroup:
        """Searches an order for a group and takes it on if that gains anything."""
        matrices: dict[tuple[int, int], list[np.ndarray]] = {}
        eligible, reasons = [], []
        for path in paths:
            pattern = self.specs[path].pattern
            assert isinstance(pattern, NM)
            reason = ""
            for matrix in self._matrices(group, path):
                if isinstance(matrix, str):
                    reason = matrix
                    continue
                matrices.setdefault((pattern.n, pattern.m), []).append(matrix)
                eligible.append(path)
            if reason:
                reasons.append(f"{path}: {reason}")
        if not matrices:
            return PermutedGroup(group, tuple(paths), "", 0.0, 0.0, 0.0, "; ".join(reasons))
        # One order has to do for all; the pattern with most magnitude decides.
        n, m = max(matrices, key=lambda pattern: sum(x.sum() for x in matrices[pattern]))
        matrix = np.concatenate(matrices[n, m])
        result = search(matrix, n, m, **options)
        order = np.asarray(result.permutation)
        gains = self._try(group, order)
        numbers = float(result.plain), float(result.retained), float(result.bound)
        reason = ""
        if not gains:
            numbers, reason = (numbers[0], numbers[0], numbers[2]), "no order found keeps more"
        leaves = tuple(dict.fromkeys(eligible))
        return PermutedGroup(group, leaves, f"{n}:{m}", *numbers, reason)

    def _try(self, group: Group, order: np.ndarray) -> bool:
        """Permutes the leaves unless their masks then keep less, or no more."""
        new = {}
        for path in dict.fromkeys(place.path for place in group.places):
            if path not in self.weights:
                continue
            weight = self.weights[path]
            for axis in range(weight.ndim):
                index = self.channels.index(path, axis, {group.id: order})
                weight = np.take(weight, index, axis=axis)
            new[path] = weight
        before = math.fsum(self.kept(path) for path in new)
        after = math.fsum(self.kept(path, weight) for path, weight in new.items())
        if after <= before:
            return False
        self.weights.update(new)
        self.permutations[group.id] = order
        return True

    def _matrices(self, group: Group, path: str) -> Iterator[Float[np.ndarray, "rows n"] | str]:
        """The leaf as rows by channels of the group, or why its n:m does not see their order."""
        spec = self.specs[path]
        pattern, view, weight = spec.pattern, spec.view, self.weights[path]
        assert isinstance(pattern, NM)
        m, minor = pattern.m, view.inputs[-1]
        for axis in view.inputs:
            for piece in self.channels.axes[path][axis]:
                strides = [f.stride for f in piece.factors if f.group == group.id]
                if not strides:
                    continue
                others = [f.stride for f in piece.factors if f.group != group.id]
                rows = view.shape[minor] if len(view.inputs) > 1 else 0
                if strides != [1] or axis != minor:
                    yield "its neighbours along the input are other channels"
                elif group.size % m:
                    yield f"{group.size} channels are no multiple of {m}"
                elif any(step % m for step in (*others, piece.offset, rows)):
                    yield f"groups of {m} reach over its ends"
                else:
                    grid = piece.grid().reshape(-1, group.size)
                    inputs_last = np.moveaxis(weight, axis, -1)[..., grid]
                    yield inputs_last.reshape(-1, group.size)
