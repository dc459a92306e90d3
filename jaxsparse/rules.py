"""Rules bind patterns to leaves by path; every mistake in them is an error."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Array, Float, Shaped

from jaxsparse.patterns import Pattern, Reduce, check_sparsity
from jaxsparse.trees import Tree, leaves_by_path, near_misses
from jaxsparse.views import Axes, View, view_of


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which pattern the leaves at a path get, and how sparse.

    Attributes:
      path: regular expression that the whole slash-joined path must match
        (`re.fullmatch`), for example `r"encoder/.*/mlp/.*/kernel"`.
      pattern: an instance of Unstructured, Block, NM or Channel.
      sparsity: fraction of zeros in [0, 1); None leaves it to the distribution
        (n:m: to the pattern).
      in_axis, out_axis, batch_axis: how the leaf is a matrix, as in
        `jax.nn.initializers`; None infers it (see `views.view_of`).

    >>> from jaxsparse.patterns import Unstructured
    >>> Rule(r".*/kernel", Unstructured(), sparsity=0.9).sparsity
    0.9
    """

    path: str
    pattern: Pattern
    sparsity: float | None = None
    in_axis: Axes = None
    out_axis: Axes = None
    batch_axis: Axes = None

    def __post_init__(self):
        for name in ("in_axis", "out_axis", "batch_axis"):
            axes = getattr(self, name)
            if isinstance(axes, Sequence):  # a list would not hash
                object.__setattr__(self, name, tuple(axes))
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(f"rule {self.path!r} is no regular expression: {error}") from error
        if not isinstance(self.pattern, Pattern):
            raise TypeError(
                f"rule {self.path!r}: {self.pattern!r} is no pattern; an instance such as "
                "Unstructured(), Block(4, 16), NM(2, 4) or Channel(-1) would work"
            )
        if self.sparsity is not None:
            check_sparsity(f"rule {self.path!r}", self.sparsity, self.pattern)


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """What the rules say of one leaf.

    Attributes:
      path: slash path of the leaf.
      pattern, view: how its entries form groups.
      sparsity: the rule's own sparsity, or None.
    """

    path: str
    pattern: Pattern
    view: View
    sparsity: float | None

    @property
    def units(self) -> int:
        """How many units selection chooses from in one batch slice."""
        return self.pattern.units(self.view)

    @property
    def group_shape(self) -> tuple[int, ...]:
        """Shape of the leaf's group arrays."""
        return self.pattern.group_shape(self.view)

    def kept(self, sparsity: float) -> int:
        """Units kept at a sparsity: n - round(s n), for n:m with s relative to its maximum."""
        return self.units - round(sparsity / self.pattern.max_sparsity * self.units)

    def pool(
        self, entries: Shaped[Array, "..."], reduce: Reduce | None = None
    ) -> Float[Array, "..."]:
        """Reduces entries of the weight's shape to one number a group."""
        return self.pattern.pool(entries, self.view, reduce)

    def expand(self, groups: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Gives every entry of the weight the value of its group."""
        return self.pattern.expand(groups, self.view)


def resolve(rules: Sequence[Rule], params: Tree) -> dict[str, LeafSpec]:
    """Returns the spec of every leaf that a rule names, sorted by path.

    Needs shapes only: arrays, tracers and `jax.ShapeDtypeStruct` will do.

    Raises:
      ValueError: on a rule that matches no leaf, a leaf that two rules match and
        a shape that the pattern does not fit; path, shape and near misses are
        quoted.
    """
    leaves = leaves_by_path(params)
    shapes = {path: tuple(getattr(leaf, "shape", ())) for path, leaf in leaves.items()}
    return dict(_resolve(tuple(rules), tuple(sorted(shapes.items()))))


@functools.lru_cache(maxsize=64)  # every trace of a training step asks again
def _resolve(
    rules: tuple[Rule, ...], shapes: tuple[tuple[str, tuple[int, ...]], ...]
) -> tuple[tuple[str, LeafSpec], ...]:
    matches: dict[str, list[Rule]] = {}
    for rule in rules:
        paths = [path for path, _ in shapes if re.fullmatch(rule.path, path)]
        if not paths:
            raise ValueError(
                f"rule {rule.path!r} matches no leaf; {near_misses(rule.path, dict(shapes))}"
            )
        for path in paths:
            matches.setdefault(path, []).append(rule)
    specs = []
    for path, shape in shapes:
        if path not in matches:
            continue
        if len(matches[path]) > 1:
            both = " and ".join(repr(rule.path) for rule in matches[path])
            raise ValueError(
                f"leaf {path!r} of shape {shape} is matched by the rules {both}; "
                "one rule a leaf would work"
            )
        rule = matches[path][0]
        view = view_of(path, shape, rule.in_axis, rule.out_axis, rule.batch_axis)
        rule.pattern.check(path, view)
        specs.append((path, LeafSpec(path, rule.pattern, view, rule.sparsity)))
    return tuple(specs)


def check_rules(rules: Iterable[Any]) -> tuple[Rule, ...]:
    """Returns the rules as a tuple; anything that is no Rule is a TypeError."""
    rules = tuple(rules)
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"{rule!r} is no Rule; Rule(path, pattern, sparsity) would work")
    return rules
