"""`prune_oneshot`: a trained model, a few inputs, no training."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxsparse import locks
from jaxsparse.calibration.criteria import Criterion, wanda
from jaxsparse.calibration.kernels import prune_kernels, target_of, with_size
from jaxsparse.calibration.pieces import Unit
from jaxsparse.calibration.preparing import prepare
from jaxsparse.calibration.progress import Pruned, relative_error
from jaxsparse.calibration.resuming import Folder, fingerprint, of_program
from jaxsparse.calibration.site import Site
from jaxsparse.calibration.walk import part, place_of
from jaxsparse.patterns.rules import Rule
from jaxsparse.pruning.distributions import Distribution, as_distribution
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path


class OneShot(NamedTuple):
    """What `prune_oneshot` found.

    Attributes:
      params: as given, pruned weights with +0 where the mask is.
      masks: by path, True is kept, in the shape of the weights: for `pack_params`.
    """

    params: Tree
    masks: dict[str, Bool[Array, "..."]]


def prune_oneshot(
    fn: Callable[..., Any],
    params: Tree,
    batches: Iterable[tuple[Any, ...]],
    rules: Sequence[Rule],
    *,
    criterion: Criterion | None = None,
    sparsity: float | None = None,
    distribution: Distribution | None = None,
    per: Literal["layer", "output"] = "layer",
    on_pruned: Callable[[Pruned], Any] | None = None,
    folder: str | pathlib.Path | None = None,
    spill: str | pathlib.Path | None = None,
) -> OneShot:
    """Prunes weights by what they meet in a few inputs.

    The program runs once over all batches, cut before the last product of every weight that a
    rule names: there the weight is pruned by what it meets, and the run goes on with what is
    left, so that later weights see what pruned ones make. Of a stack every kernel has its place,
    whether a `scan` takes it or an index. Axes come from the products, so any framework will do.

    A weight with several products is pruned before the last of them, by what it meets in all;
    the earlier ones ran with the dense weight. Weights in the body of a `while`, a `cond`, or a
    `scan` that is not over their stack are pruned together: the loop runs once to look, and once
    more with what is left. Weights that meet the same value share one statistic, and equal parts
    of the program one compilation: `update` of a reducer sees the site of the first, and may use
    its shape and axes but not its path.

    Args:
      fn: called as fn(params, *batch): the model, not its loss.
      params: its weights.
      batches: tuples of arrays; sizes may differ where the program does not.
      rules: which leaves, with which pattern.
      criterion: `wanda()` by default; `alps()` loses least and takes longest.
      sparsity: overall target of the leaves whose rules name none.
      distribution: how they share it; default `uniform()`.
      per: what competes in an unstructured kernel: all of it, or each output's entries.
      on_pruned: called with a `Pruned` after every weight or kernel of a stack, for a bar.
      folder: where masks and new weights are kept as they are found. With the same arguments a
        killed run goes on behind the last of them. One process at a time may use it.
      spill: a folder for files with the values that the walk carries from cut to cut, which are
        in memory otherwise: those of all batches at one place of the program.

    Returns:
      The weights and their masks.

    Raises:
      ValueError: a leaf or a kernel of a stack that no product meets, a leaf that products sum
        over in different ways, that is complex, not finite or below 1e-30 throughout, or integer
        where the criterion makes new weights; batches that are none, have NaN or make another
        program; a folder of another run, or in use by one. Path and shape are quoted, before
        anything is pruned. And, once it is seen: a kernel that met numbers that are not finite or
        too small or large for float32 squares.
      TypeError: on arguments of the wrong kind.

    Warns:
      UserWarning: XᵀX of a criterion that solves with it has fewer rows than columns.

    Example:
      >>> import jaxsparse as js
      >>> params = {"up": jnp.eye(8), "down": jnp.eye(8)}
      >>> def model(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> batches = [(jax.random.normal(jax.random.key(i), (4, 8)),) for i in range(3)]
      >>> rules = [js.Rule(".*", js.NM(2, 4))]
      >>> found = prune_oneshot(model, params, batches, rules)
      >>> float(found.masks["up"].mean())
      0.5
    """
    criterion = wanda() if criterion is None else criterion
    run = prepare(fn, params, batches, rules, criterion)
    specs, where = run.specs, run.where
    shares = as_distribution(distribution).targets(specs, sparsity)
    targets = {path: target_of(spec, shares[path], per) for path, spec in specs.items()}
    masks: dict[Unit, Any] = {}
    done: dict[Unit, Any] = {}
    kept: Folder | None = None
    leaves = leaves_by_path(params)
    began = 0.0

    def prune(unit: Unit, weight, state):
        nonlocal began
        path = unit.path
        view = dataclasses.replace(specs[path].view, shape=weight.shape)
        spec = dataclasses.replace(specs[path], view=view)
        known = run.beforehand(unit)
        mask, found = prune_kernels(criterion, weight, state, targets[path], spec, known)
        if kept is not None:
            stayed = np.array_equal(found, jnp.where(mask, weight, 0))
            kept.save(unit, mask, found, new=not stayed)
        masks[unit] = np.asarray(mask)
        if on_pruned is not None:
            error = relative_error(spec.view, weight, found, state["first"])
            jax.block_until_ready(found)
            now = time.perf_counter()
            on_pruned(Pruned(path, unit.index, len(masks), len(run.units), error, now - began))
            began = now
        return found

    with contextlib.ExitStack() as stack:
        if folder is not None:
            held = {
                "program": of_program(run.traced.program),
                "weights": fingerprint(leaves),
                "batches": fingerprint([leaves_by_path(batch) for batch in run.batches]),
                "rules": fingerprint([(path, str(specs[path]), targets[path]) for path in specs]),
                "criterion": fingerprint(criterion),
            }
            stack.enter_context(locks.held(folder))
            kept = Folder(folder, held)
            arrays = {path: jnp.asarray(leaves[path]) for path in specs}
            like = {u: _like(arrays[u.path], where[u.path], u) for u in run.units}
            for unit, (mask, found) in kept.load(like).items():
                weight = part(arrays[unit.path], where[unit.path], unit)
                masks[unit], done[unit] = (
                    mask,
                    jnp.where(mask, weight if found is None else found, 0),
                )
        began = time.perf_counter()
        new = run.walk(with_size(criterion.reducer), prune, done=done, spill=spill)
    whole = {path: _together(masks, path, where[path]) for path in specs}
    return OneShot(replace_by_path(params, leaves | {path: new[path] for path in specs}), whole)


def _like(leaf, site: Site, unit: Unit) -> jax.ShapeDtypeStruct:
    """What the kernels of a unit are like."""
    return jax.eval_shape(lambda leaf: part(leaf, site, unit), leaf)


def _together(masks: dict[Unit, Any], path: str, site: Site) -> Bool[Array, "..."]:
    """The mask of a leaf, of those of its kernels."""
    whole = np.zeros(site.shape, bool)
    for unit, mask in masks.items():
        if unit.path == path:
            whole[place_of(site, unit)] = mask
    return jnp.asarray(whole)
