"""`prune_oneshot`: a trained model, a few inputs, no training."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxsparse.calibration.criteria import Criterion, wanda
from jaxsparse.calibration.observe import Site, observe, sites
from jaxsparse.calibration.targets import Target
from jaxsparse.patterns.rules import LeafSpec, Rule, resolve
from jaxsparse.products.traced_axes import read_axes
from jaxsparse.pruning.distributions import Distribution, as_distribution, targets_of
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
    stages: Sequence[str] = (".*",),
) -> OneShot:
    """Prunes weights by what they meet in a few inputs.

    Axes come from the products of the traced model, so any framework will do. A stack of
    kernels is pruned kernel by kernel.

    Args:
      fn: called as fn(params, *batch): the model, not its loss.
      params: its weights.
      batches: tuples of arrays of one shape, gone through once a stage.
      rules: which leaves, with which pattern.
      criterion: `wanda()` by default; `alps()` loses least and takes longest.
      sparsity: overall target of the leaves whose rules name none.
      distribution: how they share it; default `uniform()`.
      per: what competes in an unstructured kernel: all of it, or each output's entries.
      stages: regular expressions of paths. Weights of a stage are pruned together, by what
        they meet when the stages before are pruned; a stage for every block of a
        transformer is usual. Every leaf that a rule names is in one.

    Returns:
      The weights and their masks.

    Raises:
      ValueError: a leaf that no product meets or that products sum over in different ways,
        that is in no stage or in two; batches that are none; values that are not finite.
        Path and shape are quoted; before anything is pruned, but for the values.

    Example:
      >>> import jaxsparse as js
      >>> params = {"up": jnp.eye(8), "down": jnp.eye(8)}
      >>> def model(params, x):
      ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
      >>> batches = [(jax.random.normal(jax.random.key(i), (4, 8)),) for i in range(3)]
      >>> rules = [js.Rule(".*", js.NM(2, 4))]
      >>> found = prune_oneshot(model, params, batches, rules, stages=["up", "down"])
      >>> float(found.masks["up"].mean())
      0.5
    """
    criterion = wanda() if criterion is None else criterion
    batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not batches:
        raise ValueError("prune_oneshot: no batches; one tuple of arrays would work")
    specs = resolve(read_axes(rules, fn, params, *batches[0]), params)
    shares = targets_of(specs, sparsity, as_distribution(distribution))
    targets = {path: Target(spec.pattern, shares[path], per) for path, spec in specs.items()}
    where = _only_sites(sites(fn, params, *batches[0]), specs)
    order = _in_stages(stages, specs)

    masks: dict[str, Bool[Array, ...]] = {}
    for paths in order:
        pattern = "|".join(map(re.escape, paths))

        def look(params, batch, states, pattern=pattern):
            return observe(
                fn, params, *batch, reducer=criterion.reducer, paths=pattern, states=states
            )[1]

        states, step = None, jax.jit(look)
        for batch in batches:
            states = step(params, batch, states)
        assert states is not None
        new = {}
        for path in paths:
            state = states[where[path]]
            _check(path, state)
            weight = leaves_by_path(params)[path]
            masks[path], new[path] = _prune(criterion, weight, state, targets[path], specs[path])
        params = replace_by_path(params, leaves_by_path(params) | new)
    return OneShot(params, {path: masks[path] for path in specs})


def _prune(criterion: Criterion, weight, state, target: Target, spec: LeafSpec):
    """A leaf, kernel by kernel."""
    view = spec.view

    @jax.jit
    def run(weight: Float[Array, "..."], state):
        matrices = view.matrix(weight).reshape(-1, *view.matrix_shape)
        state = jax.tree.map(lambda a: a.reshape(len(matrices), *a.shape[len(view.batch) :]), state)

        def one(pair):
            return criterion.prune(pair[0].astype(jnp.float32), pair[1], target)

        mask, found = lax.map(one, (matrices, state))
        found = jnp.where(mask, found.astype(weight.dtype), jnp.zeros((), weight.dtype))
        shape = (*view.batch_shape, *view.matrix_shape)
        return view.leaf(mask.reshape(shape)), view.leaf(found.reshape(shape))

    return run(jnp.asarray(weight), state)


def _only_sites(found: Sequence[Site], specs: dict[str, LeafSpec]) -> dict[str, Site]:
    where: dict[str, Site] = {}
    for site in found:
        if site.path in where and site.path in specs:
            raise ValueError(
                f"prune_oneshot: products sum over {site.path!r} of shape {site.shape} along "
                f"{where[site.path].in_axis} and along {site.in_axis}; a rule that leaves it out "
                "would work"
            )
        where[site.path] = site
    for path, spec in specs.items():
        if path not in where:
            raise ValueError(
                f"prune_oneshot: no product meets {path!r} of shape {spec.view.shape}; js.prune "
                "or js.compute_masks, which look at weights alone, would work"
            )
        site, view = where[path], spec.view
        if (site.in_axis, site.batch_axis) != (view.inputs, view.batch):
            raise ValueError(
                f"prune_oneshot: the rule sees {path!r} of shape {view.shape} as {view}, its "
                f"products sum over {site.in_axis} with kernels along {site.batch_axis}; a rule "
                "without axes would work"
            )
    return where


def _in_stages(stages: Sequence[str], specs: dict[str, LeafSpec]) -> list[list[str]]:
    if isinstance(stages, str):
        raise TypeError(f"prune_oneshot: stages={stages!r}: a list of expressions would work")
    order = [[path for path in specs if re.fullmatch(stage, path)] for stage in stages]
    for path in specs:
        times = sum(path in paths for paths in order)
        if times != 1:
            raise ValueError(
                f"prune_oneshot: {path!r} is in {times} of the stages {list(stages)}; one "
                "expression that matches it would work"
            )
    return [paths for paths in order if paths]


def _check(path: str, state: Any) -> None:
    for array in jax.tree.leaves(state):
        if not np.isfinite(np.asarray(array)).all():
            raise ValueError(
                f"prune_oneshot: what {path!r} meets is not finite; look at the batches, and at "
                "the weights before it"
            )
