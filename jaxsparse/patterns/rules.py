"""Rules bind patterns to leaves by path; every mistake in them is an error."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxsparse.patterns.base import Pattern, Reduce, check_sparsity
from jaxsparse.patterns.views import Axes, View, view_of
from jaxsparse.trees import Tree, leaves_by_path, near_misses


class Sealed:
    """A node of a tree that holds arrays of which no rule can name one, such as a packed weight.

    Attributes:
      opened: what to do for rules to see the weight, to end an error.
    """

    opened: ClassVar[str]


Predicate = Callable[[str, jax.ShapeDtypeStruct], bool]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which pattern the leaves at a path get, and how sparse.

    Attributes:
      path: regular expression that the whole slash-joined path must match
        (`re.fullmatch`), for example `r"encoder/.*/mlp/.*/kernel"`; or a function
        of (path, leaf) that says whether the rule is meant. It sees the shape and
        the dtype of the leaf alone, is asked about numbers and arrays of them only,
        and must answer the same every time.
      pattern: an instance of Unstructured, Block, NM or Channel. None keeps the
        leaves dense, in a rule that overrides.
      sparsity: fraction of zeros in [0, 1); None leaves it to the distribution
        (n:m: to the pattern).
      in_axis, out_axis, batch_axis: how the leaf is a matrix, as in
        `jax.nn.initializers`. None infers it from the name, or refuses to (see
        `views.view_of`); `read_axes` reads it from a traced model.
      override: take leaves from the rules before this one. Without it two rules
        for one leaf are an error.

    >>> from jaxsparse.patterns.groups import Block
    >>> from jaxsparse.patterns.base import Unstructured
    >>> rules = [
    ...     Rule(lambda path, leaf: len(leaf.shape) == 2, Unstructured(), sparsity=0.9),
    ...     Rule("up/.*", Block(4, 4), sparsity=0.5, override=True),
    ...     Rule("head/.*", None, override=True),
    ... ]
    >>> params = {name: {"w": jnp.ones((8, 8))} for name in ("up", "down", "head")}
    >>> {path: str(spec.pattern) for path, spec in resolve(rules, params).items()}
    {'down/w': 'Unstructured()', 'up/w': 'Block(4, 4)'}
    """

    path: str | Predicate
    pattern: Pattern | None
    sparsity: float | None = None
    in_axis: Axes = None
    out_axis: Axes = None
    batch_axis: Axes = None
    override: bool = False

    def __post_init__(self):
        for name in ("in_axis", "out_axis", "batch_axis"):
            axes = getattr(self, name)
            if isinstance(axes, Sequence):  # a list would not hash
                object.__setattr__(self, name, tuple(axes))
        _check_path(self.path)
        if self.pattern is None and self.override:
            if self.sparsity is not None:
                raise ValueError(
                    f"rule {self.label}: a pattern of None keeps leaves dense, but sparsity is "
                    f"{self.sparsity}; a pattern, or no sparsity, would work"
                )
        elif not isinstance(self.pattern, Pattern):
            dense = "; None, to keep leaves dense, needs override=True" * (self.pattern is None)
            raise TypeError(
                f"rule {self.label}: {self.pattern!r} is no pattern; an instance such as "
                f"Unstructured(), Block(4, 16), NM(2, 4) or Channel(-1) would work{dense}"
            )
        if self.sparsity is not None:
            check_sparsity(f"rule {self.label}", self.sparsity, self.pattern)

    @property
    def label(self) -> str:
        """How messages name the rule: its expression in quotes, or its function."""
        if isinstance(self.path, str):
            return repr(self.path)
        return getattr(self.path, "__qualname__", repr(self.path))

    def matches(self, path: str, leaf: jax.ShapeDtypeStruct) -> bool:
        """Whether the rule is meant for this leaf."""
        if isinstance(self.path, str):
            return re.fullmatch(self.path, path) is not None
        try:
            return bool(self.path(path, leaf))
        except Exception as error:
            error.add_note(f"in rule {self.label}, asked about {path!r} of shape {leaf.shape}")
            raise


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
        """Reduces entries of the weight's shape to one number a group.

        Raises:
          ValueError: if explicit axes of a mesh cut groups that a reshape makes.
        """
        sharding = jax.typeof(entries).sharding
        shard = sharding.shard_shape(self.view.shape)
        # Automatic axes, which the type does not show, are gathered along instead.
        if self.pattern.tiled and self.pattern.cut_by(self.view, shard):
            raise ValueError(
                f"{self.pattern} on {self.path!r} of shape {self.view.shape}, seen as {self.view}: "
                f"the explicit sharding {sharding.spec} leaves shards of {shard}, which cut its "
                "groups; a sharding of whole groups, such as PartitionSpec(), would work, so "
                "would a pattern that divides the shards, or a mesh of AxisType.Auto, which gathers"
            )
        return self.pattern.pool(entries, self.view, reduce)

    def expand(self, groups: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Gives every entry of the weight the value of its group."""
        return self.pattern.expand(groups, self.view)


def resolve(rules: Sequence[Rule], params: Tree) -> dict[str, LeafSpec]:
    """Returns the spec of every leaf that a rule names, sorted by path.

    Needs shapes only: arrays, tracers and `jax.ShapeDtypeStruct` will do. What is no
    array (a function, a string, a random key) may be in the tree, but no rule may
    name it.

    Raises:
      ValueError: on a rule that matches no leaf or loses all of them, a leaf that
        two rules match, a leaf that is no array of numbers, and a shape that the
        pattern does not fit; path, shape and near misses are quoted.
    """
    leaves = {path: describe(leaf) for path, leaf in leaves_by_path(params).items()}
    _refuse_sealed(rules, leaves, params)
    return dict(_resolve(tuple(rules), tuple(sorted(leaves.items(), key=lambda item: item[0]))))


@functools.lru_cache(maxsize=64)  # every trace of a training step asks again
def _resolve(
    rules: tuple[Rule, ...], leaves: tuple[tuple[str, jax.ShapeDtypeStruct | str], ...]
) -> tuple[tuple[str, LeafSpec], ...]:
    specs, by_path = [], dict(leaves)
    for path, rule in _choose(rules, by_path).items():
        leaf, pattern = by_path[path], rule.pattern
        assert pattern is not None and not isinstance(leaf, str)  # `_choose` leaves these out
        axes = rule.in_axis, rule.out_axis, rule.batch_axis
        view = view_of(path, leaf.shape, *axes, directed=pattern.directed)
        pattern.check(path, view)
        specs.append((path, LeafSpec(path, pattern, view, rule.sparsity)))
    return tuple(sorted(specs, key=lambda item: item[0]))


def choose(rules: Sequence[Rule], params: Tree) -> dict[str, Rule]:
    """Returns the rule that every leaf goes by, sorted by path; its errors are `resolve`'s."""
    leaves = {path: describe(leaf) for path, leaf in leaves_by_path(params).items()}
    _refuse_sealed(rules, leaves, params)
    return dict(sorted(_choose(tuple(rules), leaves).items()))


def _refuse_sealed(
    rules: Sequence[Rule], leaves: dict[str, jax.ShapeDtypeStruct | str], params: Tree
) -> None:
    """Raises ValueError on a rule whose leaves are all sealed; parts of them are near misses."""
    whole = leaves_by_path(params, lambda node: isinstance(node, Sealed)).items()
    sealed = {path: leaf for path, leaf in whole if isinstance(leaf, Sealed)}
    for rule in rules if sealed else ():
        if any(_meant(rule, path, leaf) for path, leaf in leaves.items()):
            continue
        for path, leaf in sealed.items():
            if _meant(rule, path, repr(leaf)):
                raise ValueError(
                    f"rule {rule.label} names {path!r}, which is packed, {leaf!r}; {leaf.opened}"
                )


def _choose(
    rules: tuple[Rule, ...], leaves: dict[str, jax.ShapeDtypeStruct | str]
) -> dict[str, Rule]:
    chosen: dict[str, Rule] = {}
    for rule in rules:
        paths = [path for path, leaf in leaves.items() if _meant(rule, path, leaf)]
        if not paths:
            name = rule.path if isinstance(rule.path, str) else ""
            raise ValueError(f"rule {rule.label} matches no leaf; {near_misses(name, leaves)}")
        for path in paths:
            if path in chosen and not rule.override:
                raise ValueError(
                    f"leaf {path!r}, {_kind(leaves[path])}, is matched by the rules "
                    f"{chosen[path].label} and {rule.label}; one rule a leaf would work, so would "
                    "override=True in the one that wins, put after the other"
                )
            chosen[path] = rule
    for rule in rules:
        if not any(winner is rule for winner in chosen.values()):
            raise ValueError(
                f"rule {rule.label} loses every leaf to later rules with override=True; without "
                "it, or put after them and with override=True itself, the rules would work"
            )
    for path, rule in chosen.items():
        if isinstance(leaves[path], str) and rule.pattern is not None:
            raise ValueError(
                f"rule {rule.label} matches {path!r}, {leaves[path]}: only arrays of numbers are "
                "pruned; an expression that leaves it out would work"
            )
    return {path: rule for path, rule in chosen.items() if rule.pattern is not None}


def _meant(rule: Rule, path: str, leaf: jax.ShapeDtypeStruct | str) -> bool:
    if isinstance(leaf, str):  # a function of (path, leaf) expects an array
        return isinstance(rule.path, str) and re.fullmatch(rule.path, path) is not None
    return rule.matches(path, leaf)


def _kind(leaf: jax.ShapeDtypeStruct | str) -> str:
    return leaf if isinstance(leaf, str) else f"of shape {leaf.shape}"


def describe(leaf: Any) -> jax.ShapeDtypeStruct | str:
    """Shape and dtype of a number or an array of numbers; what anything else is, in words."""
    if isinstance(leaf, bool | int | float | complex):
        return jax.ShapeDtypeStruct((), jnp.result_type(leaf))
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return f"a {type(leaf).__name__}"
    if jnp.issubdtype(leaf.dtype, jnp.number) or jnp.issubdtype(leaf.dtype, jnp.bool_):
        return jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)
    return f"an array of {leaf.dtype}"  # random keys, strings, float0


def is_real(value: Any) -> bool:
    """Whether something is one real number, NumPy's and JAX's included; truth values are none."""
    kind = describe(value)
    kinds = jnp.integer, jnp.floating
    return (
        not isinstance(kind, str)
        and kind.shape == ()
        and any(jnp.issubdtype(kind.dtype, each) for each in kinds)
    )


def _check_path(path: Any) -> None:
    if isinstance(path, str):
        try:
            re.compile(path)
        except re.error as error:
            raise ValueError(f"rule {path!r} is no regular expression: {error}") from error
        return
    try:
        inspect.signature(path).bind("path", "leaf")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"rule {path!r}: neither a regular expression nor a function of (path, leaf); "
            "lambda path, leaf: path.endswith('kernel') would work"
        ) from error


def check_rules(rules: Iterable[Any]) -> tuple[Rule, ...]:
    """Returns the rules as a tuple, at least one; what is no Rule is a TypeError."""
    if isinstance(rules, Rule | str):
        raise TypeError(f"{rules!r} is no list of rules; [Rule(path, pattern)] would work")
    rules = tuple(rules)
    if not rules:
        raise ValueError("no rules, so no leaf is meant; [Rule(path, pattern)] would work")
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"{rule!r} is no Rule; Rule(path, pattern, sparsity) would work")
    return rules
