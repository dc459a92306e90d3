"""The state of `prune`, and the masks that are read from it and put there."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Int

from jaxsparse.patterns.base import GroupMask
from jaxsparse.patterns.rules import LeafSpec, describe
from jaxsparse.trees import Tree, leaves_by_path, names, near_misses, replace_by_path

NO_STATE = (
    "no PruneState in the optimizer's state; a chain that begins with prune(...), or "
    "pruned(optimizer, prune(...)), has one"
)


class PruneState(NamedTuple):
    """State of `prune`.

    Attributes:
      count: optimizer steps done.
      masks: GroupMask by slash path, in force until the next update; leaves that
        no rule names do not appear.
      score: the score's own state, `()` for scores without.
      threshold: what the schedule remembers: tau_0 of `importance_threshold`, what a
        `Chooser` of your own returns, `()` for every other.
    """

    count: Int[Array, ""]
    masks: dict[str, GroupMask]
    score: Any
    threshold: Any


# optax.tree.map_params initialises with a placeholder: a leaf where our state has a
# tree says that nothing in it has the shape of the parameters.
MAP_PARAMS = PruneState(*[jax.ShapeDtypeStruct((), jnp.int32)] * 4)  # pyright: ignore


def masks(opt_state: Tree, params: Tree | None = None) -> Tree:
    """Returns the masks in force, expanded to the shapes of the weights.

    Args:
      opt_state: any optax state with one or more PruneStates in it, however deep;
        an `nnx.Optimizer`, its `opt_state` and a `TrainState` too.
      params: give them to get a tree like them, None where dense.

    Returns:
      `{"slash/path": bool mask}`, True is kept, or the tree.

    Raises:
      ValueError: without a PruneState, and on a leaf in two of them.
    """
    found, states = {}, prune_states(opt_state)
    if not states:
        raise ValueError(NO_STATE)
    for state in states:
        for path, mask in nnx.as_pure(state.masks).items():
            if path in found:
                raise ValueError(f"leaf {path!r} is pruned twice: it is in two PruneStates")
            found[path] = mask.expand()
    if params is None:
        return found
    everything = dict.fromkeys(leaves_by_path(params))
    return replace_by_path(params, everything | found)


def replace_masks(opt_state: Tree, masks: Tree) -> Tree:
    """Returns the optimizer's state with other masks in force.

    What training chose gives way to what was made of it, such as the whole heads of
    `graph.Structure.resolve`; scores, counts and the state of the optimizer stay. It runs
    inside `jit`. The masks stay in force until the schedule chooses again, so after
    its `end` for good: then only the weights that they keep are trained.

    Args:
      opt_state: as in `masks`.
      masks: by path or as a tree like the parameters, in the shapes of the weights; leaves
        that are not named keep theirs. Each has to be a union of the groups of its rule.
        Where one is not, `prune(masks=masks)` in the pruner's place holds any: the state of
        its chain is `(prune(masks=masks).init(params), *opt_state[1:])`.

    Returns:
      A state like the one given.

    Raises:
      ValueError: without a PruneState, for a mask of another shape, for floats, which are
        weights rather than masks, and, where values are at hand (outside `jit`), for a mask
        that splits groups.
      KeyError: for the mask of a leaf that is not pruned.

    >>> import jaxsparse as js, optax
    >>> params = {"w": jnp.ones((2, 2))}
    >>> tx = optax.chain(js.prune([js.Rule("w", js.Channel(0))], schedule=0.5), optax.sgd(1.0))
    >>> state = replace_masks(tx.init(params), {"w": jnp.array([[False], [True]]).repeat(2, 1)})
    >>> js.masks(state)["w"].tolist()
    [[False, False], [True, True]]
    """
    is_state = lambda node: isinstance(node, PruneState)  # noqa: E731
    nodes = jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=is_state)[0]
    states = [(names(keys), node) for keys, node in nodes if is_state(node)]
    if not states:
        raise ValueError(NO_STATE)
    given, new = leaves_by_path(masks), {}
    held = {
        path: ("/".join((*prefix, "masks", path, "groups")), mask)
        for prefix, state in states
        for path, mask in nnx.as_pure(state.masks).items()
    }
    for path, mask in given.items():
        if path not in held:
            raise KeyError(f"mask for {path!r}, which is not pruned; {near_misses(path, held)}")
        place, old = held[path]
        new[place] = pooled_mask(path, mask, LeafSpec(path, old.pattern, old.view, None))
    return replace_by_path(opt_state, new)


def pooled_mask(path: str, given: Any, spec: LeafSpec) -> Array:
    """One bit a group of a mask in the shape of the weight.

    Raises:
      ValueError: for floats, for another shape, and for a mask at hand that splits groups.
    """
    check_mask(path, given, "so would what js.masks(opt_state) gives")
    traced = isinstance(given, Tracer)
    # Masks that are there are checked inside `jax.jit`, too.
    with contextlib.nullcontext() if traced else jax.ensure_compile_time_eval():
        mask = jnp.asarray(given, bool)
        if mask.shape != spec.view.shape:
            raise ValueError(
                f"the mask of {path!r} has shape {mask.shape}, the leaf {spec.view.shape}"
            )
        groups = spec.pool(mask, "max") > 0
        splits = (spec.expand(groups) != mask).any()
    if not traced and splits:
        raise ValueError(
            f"the mask of {path!r} splits groups of {spec.pattern}; one of whole groups would "
            "work, so would prune(masks=...) without rules, whose groups are single weights"
        )
    return groups


def check_mask(path: str, given: Any, hint: str) -> None:
    """Raises ValueError on what cannot be a mask: weights, above all, in the masks' place."""
    kind = describe(given)
    if isinstance(kind, str):
        raise ValueError(f"the mask of {path!r} is {kind}; an array of bool would work")
    if jnp.issubdtype(kind.dtype, jnp.inexact):
        raise ValueError(
            f"the mask of {path!r} is of {kind.dtype}, like a weight; bool would work, and {hint}"
        )


def has_masks(tree: Tree) -> bool:
    """Whether `masks` finds something to read in a tree."""
    return bool(prune_states(tree))


def prune_states(tree: Tree) -> list[PruneState]:
    """Every PruneState in an optimizer's state, however deep."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, PruneState))
    return [node for node in nodes if isinstance(node, PruneState)]
