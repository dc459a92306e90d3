"""Where masks meet weights: exact zeros in what the model sees and in what is stored."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, Shaped

from jaxsparse.patterns.base import widen
from jaxsparse.patterns.rules import Sealed, describe
from jaxsparse.pruning.state import check_mask, has_masks, masks
from jaxsparse.trees import Tree, leaves_by_path, near_misses, replace_by_path

NEED_PARAMS = "{name} needs the parameters: call update(grads, state, params)"

# Leaves (path and shape) whose masks a forward pass has seen in this process. It
# decides whether `prune` warns, and nothing else.
_seen: set[tuple[str, tuple[int, ...]]] = set()


def next_count(count: Int[Array, ""]) -> Int[Array, ""]:
    """count + 1, saturating at the largest integer."""
    return jnp.asarray(optax.safe_increment(count))


def mask_params(params: Tree, masks: Tree) -> Tree:
    """Returns the parameters with exact zeros where a mask is False: what the model sees.

    where(mask, w, 0), so a masked NaN or infinity is zero too, which no update can
    make of it. Gradients with respect to *its result* are dense, which is what
    `prune` wants; `masked(loss, masks)` takes them for you.

    Args:
      params: any Flax or plain tree.
      masks: `{"slash/path": mask}` or a tree like `params` with None where dense.

    Raises:
      KeyError: if a mask names a leaf that is not there.
      ValueError: if shapes differ, or the leaf is no array of numbers.
    """
    given = leaves_by_path(masks)
    note_masked((path, jnp.shape(mask)) for path, mask in given.items())
    return mask_tree(params, given)


def masked(loss: Callable[..., Any], masks_or_state: Tree) -> Callable[..., Any]:
    """Returns `loss` of the masked weights, with the gradients that pruning wants.

    `masked(loss, m)(w, ...)` is `loss(where(m, w, 0), ...)`, and its derivative is
    that of `loss` there, dense: masked weights have gradients too, by which they
    can grow back or be scored. `jax.grad` through `mask_params` would be zero at
    them. It is differentiated, jitted and called as `loss` is.

    The first argument is what holds the weights: an `nnx.Module` (or a tree of
    them), linen's parameters, or any other tree, with the paths that the optimizer
    was initialised with. Everything that `loss` changes in a module, such as the
    statistics of a BatchNorm, stays changed; the pruned weights keep their values.

    Args:
      loss: any function, with or without auxiliary outputs.
      masks_or_state: `{"slash/path": mask}`, a tree of masks, or whatever
        `js.masks` reads: an optimizer's state, an `nnx.Optimizer`, a `TrainState`.

    Raises:
      TypeError: if `loss` is no function.
      ValueError: on a state without a PruneState; when called, if shapes differ.
      KeyError: when called, if a mask names a leaf that is not there.

    >>> loss = lambda params: jnp.sum((params["w"] - 3) ** 2)
    >>> seen = masked(loss, {"w": jnp.array([True, False])})
    >>> params = {"w": jnp.array([1.0, 1.0])}
    >>> float(seen(params)), jax.grad(seen)(params)["w"].tolist()
    (13.0, [-4.0, -6.0])

    In a training step of `flax.nnx`::

        grads = nnx.grad(js.masked(loss, optimizer))(model, x, y)
        optimizer.update(model, grads)
    """
    if not callable(loss):
        raise TypeError(
            f"masked: {type(loss).__name__} is no function; the loss comes first, "
            "masked(loss, opt_state)"
        )
    # Expanded here and not in the call: that may be inside another trace.
    found = masks(masks_or_state) if has_masks(masks_or_state) else _given(masks_or_state)

    @functools.wraps(loss)
    def seen(weights, *args, **kwargs):
        note_masked((path, jnp.shape(mask)) for path, mask in found.items())
        if _has_modules(weights):
            with _masked_variables(weights, found):
                return loss(weights, *args, **kwargs)
        pairs = pair_masks(weights, found)
        new = {path: _pass_through(leaf, mask) for path, (mask, leaf) in pairs.items()}
        return loss(replace_by_path(weights, new), *args, **kwargs)

    return seen


def _given(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree of masks; a ValueError on a state in which nothing is pruned."""
    found = leaves_by_path(tree)
    for path, leaf in found.items():
        kind = describe(leaf)
        if isinstance(kind, str) or not (
            jnp.issubdtype(kind.dtype, jnp.bool_)
            or (kind.shape and jnp.issubdtype(kind.dtype, jnp.integer))
        ):
            raise ValueError(
                f"masked: no PruneState, and {path!r} is no mask but {kind}; the state of a chain "
                "that begins with prune(...), or {path: mask}, would work"
            )
    if not found and not isinstance(tree, Mapping):
        raise ValueError(
            f"masked: neither masks nor a PruneState in {tree!r}; the state of a chain that begins "
            "with prune(...), or {path: mask}, would work"
        )
    return found


@jax.custom_jvp
def _pass_through(
    weight: Shaped[Array, "..."], mask: Bool[Array | np.ndarray, "..."]
) -> Shaped[Array, "..."]:
    """where(mask, w, 0), whose derivative is 1 everywhere."""
    return select(mask, weight, 0)


@_pass_through.defjvp
def _pass_through_jvp(primals, tangents):
    return _pass_through(*primals), tangents[0]


def _has_modules(tree: Tree) -> bool:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, nnx.Module))
    return any(isinstance(node, nnx.Module) for node in leaves)


@contextlib.contextmanager
def _masked_variables(
    modules: Tree, found: dict[str, Shaped[Array | np.ndarray, "..."]]
) -> Iterator[None]:
    """Masks the modules' own variables meanwhile, so that other changes to them survive."""
    variables = {
        "/".join(map(str, path)): node
        for path, node in nnx.iter_graph(modules)
        if isinstance(node, nnx.Variable)
    }
    stored = {path: node.get_raw_value() for path, node in variables.items()}
    pairs = pair_masks(stored, found)
    try:
        for path, (mask, leaf) in pairs.items():
            variables[path].set_raw_value(_pass_through(leaf, mask))
        yield
    finally:
        for path in pairs:
            variables[path].set_raw_value(stored[path])


def mask_tree(tree: Tree, masks: Mapping[str, Shaped[Array | np.ndarray, "..."]]) -> Tree:
    """`mask_params` of gradients or of anything else that no forward pass sees."""
    pairs = pair_masks(tree, masks)
    return replace_by_path(tree, {p: select(mask, leaf, 0) for p, (mask, leaf) in pairs.items()})


def pair_masks(
    params: Tree, masks: Mapping[str, Shaped[Array | np.ndarray, "..."]]
) -> dict[str, tuple[Any, Any]]:
    """Returns {path: (mask, leaf)} for every mask; what does not fit is an error that says so."""
    leaves = leaves_by_path(params)
    pairs = {}
    for path, mask in masks.items():
        if path not in leaves:
            leaf = leaves_by_path(params, lambda node: isinstance(node, Sealed)).get(path)
            if isinstance(leaf, Sealed):
                raise ValueError(f"mask for {path!r}, which is packed, {leaf!r}; {leaf.opened}")
            raise KeyError(f"mask for {path!r}, but no such leaf; {near_misses(path, leaves)}")
        leaf = describe(leaves[path])
        if isinstance(leaf, str):
            raise ValueError(f"mask for {path!r}, {leaf}: only arrays of numbers are masked")
        if jnp.shape(mask) != leaf.shape:
            raise ValueError(
                f"the mask of {path!r} has shape {jnp.shape(mask)}, the leaf {leaf.shape}"
            )
        check_mask(path, mask, "in mask_params(params, masks) the parameters come first")
        pairs[path] = jnp.asarray(mask, bool), jnp.asarray(leaves[path])
    return pairs


def apply_masks() -> optax.GradientTransformationExtraArgs:
    """Last in a chain: updates that leave exact zeros where a mask is False.

    u <- where(mask, u, -w), in the weight's dtype. `update` takes the keyword
    `masks=`, the `masks(opt_state)` of the state passed in; so the stored weights
    follow the masks that were in force during the step. Finish with
    `mask_params`, which alone makes zeros of masked NaN and infinities.

    Raises:
      ValueError: at update, without parameters or masks.
    """

    def update(updates, state, params=None, *, masks=None, **extra):
        del extra
        if params is None:
            raise ValueError(NEED_PARAMS.format(name="apply_masks"))
        if masks is None:
            raise ValueError(
                "apply_masks needs the masks in force: "
                "update(grads, state, params, masks=masks(state)) would work"
            )
        return zero_masked(updates, params, leaves_by_path(masks)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def select(
    mask: Bool[Array | np.ndarray, "..."],
    kept: Shaped[Array, "..."],
    masked: Shaped[Array, "..."] | float,
) -> Shaped[Array, "..."]:
    """where(mask, kept, masked) in the dtype and sharding of `kept`."""
    return jnp.where(sharded_as(mask, kept), kept, jnp.asarray(masked, kept.dtype))


def sharded_as(array: Any, like: Array) -> Any:
    """The array in the explicit sharding of another one of its shape; automatic ones follow."""
    sharding = jax.typeof(like).sharding
    if jax.typeof(array).sharding != sharding and sharding.mesh.are_all_axes_explicit:
        return jax.sharding.reshard(array, sharding)
    return array


def zero_masked(
    updates: Tree, params: Tree, masks: Mapping[str, Bool[Array | np.ndarray, "..."]]
) -> Tree:
    """Returns updates u that leave w + u at exactly +0 where a mask is False and w is finite.

    u <- where(mask, u, -w), in the weight's dtype; adding it turns -0 into +0, too.
    """
    weights, changes = pair_masks(params, masks), pair_masks(updates, masks)
    new = {
        path: select(mask, changes[path][1].astype(weight.dtype), -weight)
        for path, (mask, weight) in weights.items()
    }
    return replace_by_path(updates, new)


def check_finite(weights: Mapping[str, Array]) -> None:
    """Raises ValueError on NaN and infinities, where values are at hand.

    An update is added, and nothing that is added to a NaN makes it zero.
    """
    for path, weight in weights.items():
        bad = _not_finite(weight)  # traced under jit, whatever the weight is
        if not isinstance(bad, Tracer) and bad:
            raise ValueError(
                f"{bad} of the weights of {path!r}, of shape {weight.shape}, are NaN or infinite: "
                "no update would make zeros of them when they are masked; jnp.nan_to_num of this "
                "leaf would work, and where masks hide them already js.mask_params(params, masks)"
            )


@jax.jit
def _not_finite(weight: Array) -> Int[Array, ""]:
    return jnp.sum(~jnp.isfinite(widen(weight)))


def note_masked(leaves: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Notes that a forward pass sees these leaves masked."""
    _seen.update(leaves)


def warn_unless_masked(leaves: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Warns, once for each leaf, if no forward pass has seen it masked."""
    unseen = sorted(set(leaves) - _seen)
    if not unseen:
        return
    _seen.update(unseen)
    warnings.warn(
        f"prune: no forward pass has seen {unseen[0][0]!r} masked, so the model trains dense and "
        "will be cut untrained. Differentiate js.masked(loss, opt_state) instead of loss, or loss "
        "at js.mask_params(params, js.masks(opt_state)); js.pruned(optimizer, pruner) needs "
        "neither, but takes no straight_through() and no importance_threshold()",
        stacklevel=3,
    )
