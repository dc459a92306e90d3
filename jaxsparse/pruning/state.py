"""The state of `prune`, and the masks that are read from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from jaxsparse.patterns.base import GroupMask
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path


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
    found, states = {}, _prune_states(opt_state)
    if not states:
        raise ValueError(
            "no PruneState in the optimizer's state; a chain that begins with prune(...), or "
            "pruned(optimizer, prune(...)), has one"
        )
    for state in states:
        for path, mask in nnx.as_pure(state.masks).items():
            if path in found:
                raise ValueError(f"leaf {path!r} is pruned twice: it is in two PruneStates")
            found[path] = mask.expand()
    if params is None:
        return found
    everything = dict.fromkeys(leaves_by_path(params))
    return replace_by_path(params, everything | found)


def has_masks(tree: Tree) -> bool:
    """Whether `masks` finds something to read in a tree."""
    return bool(_prune_states(tree))


def _prune_states(tree: Tree) -> list[PruneState]:
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, PruneState))
    return [node for node in nodes if isinstance(node, PruneState)]
