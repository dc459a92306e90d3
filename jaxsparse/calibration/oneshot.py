"""`prune_oneshot`: a trained model, a few inputs, no training."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from jaxsparse.calibration.criteria import Criterion, wanda
from jaxsparse.calibration.observe import Site, observe, sites
from jaxsparse.calibration.reducers import Reducer, largest
from jaxsparse.calibration.targets import Target
from jaxsparse.patterns.rules import LeafSpec, Rule, resolve
from jaxsparse.products.traced_axes import read_axes
from jaxsparse.pruning.distributions import Distribution, as_distribution, targets_of
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path

SMALLEST = 1e-18  # its square is still a normal float32


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
        that is in no stage or in two, that is complex, or integer where the criterion makes
        new weights; batches that are none. Path and shape are quoted, before anything is
        pruned. And, once a stage is seen: a kernel that met nothing, or numbers that are not
        finite or too small or large for float32 squares.
      TypeError: on arguments of the wrong kind.

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
    if not isinstance(criterion, Criterion):
        raise TypeError(f"prune_oneshot: {criterion!r} is no criterion; wanda() would work")
    if hasattr(batches, "shape"):
        raise TypeError("prune_oneshot: batches is one array; [(batch,), ...] would work")
    batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not batches:
        raise ValueError("prune_oneshot: no batches; one tuple of arrays would work")
    specs = resolve(read_axes(rules, fn, params, *batches[0]), params)
    _check_numbers(params, specs)
    shares = targets_of(specs, sparsity, as_distribution(distribution))
    targets = {path: _target(spec, shares[path], per) for path, spec in specs.items()}
    known = {path: criterion.known(spec) for path, spec in specs.items()} if criterion.known else {}
    where = _only_sites(sites(fn, params, *batches[0]), specs)
    order = _in_stages(stages, specs)

    masks: dict[str, Bool[Array, ...]] = {}
    for paths in order:
        states = _observed(fn, params, batches, criterion.reducer, paths)
        new = {}
        for path in paths:
            weight, state = leaves_by_path(params)[path], states[where[path]]
            masks[path], new[path] = _prune(
                criterion, weight, state, targets[path], specs[path], known.get(path)
            )
        params = replace_by_path(params, leaves_by_path(params) | new)
    return OneShot(params, {path: masks[path] for path in specs})


def _target(spec: LeafSpec, sparsity: float, per: Any) -> Target:
    """What is to be kept of one kernel of a leaf."""
    shape = tuple(1 if i in spec.view.batch else n for i, n in enumerate(spec.view.shape))
    return Target(spec.pattern, sparsity, per, dataclasses.replace(spec.view, shape=shape))


def _observed(fn, params, batches, reducer: Reducer, paths: Sequence[str]) -> dict[Site, Any]:
    """What weights meet in all batches: the reducer's state, and how large it gets."""
    size = largest()
    both = Reducer(
        lambda site: (reducer.init(site), size.init(site)),
        lambda state, met, site: (
            reducer.update(state[0], met, site),
            size.update(state[1], met, site),
        ),
    )
    pattern = "|".join(map(re.escape, paths))

    def look(numbers, states, rest, tree):
        params, batch = jax.tree.unflatten(
            tree, [n if r is None else r for n, r in zip(numbers, rest, strict=True)]
        )
        return observe(fn, params, *batch, reducer=both, paths=pattern, states=states)[1]

    step, states = jax.jit(look, static_argnums=(2, 3)), None
    for batch in batches:
        leaves, tree = jax.tree.flatten((params, batch))
        numbers = [leaf if hasattr(leaf, "dtype") else None for leaf in leaves]
        rest = tuple(None if hasattr(leaf, "dtype") else leaf for leaf in leaves)
        states = step(numbers, states, rest, tree)
    assert states is not None
    return states


def _prune(criterion: Criterion, weight, state, target: Target, spec: LeafSpec, known=None):
    """A leaf, kernel by kernel; `known` beforehand is of its shape."""
    view, path = spec.view, spec.path
    _check_met(path, state[1])

    @jax.jit
    def run(weight, state, *known):
        def kernels(leaf):
            return view.matrix(leaf).reshape(-1, *view.matrix_shape)

        matrices = kernels(weight)
        state = jax.tree.map(lambda a: a.reshape(len(matrices), *a.shape[len(view.batch) :]), state)

        def one(slices):
            kernel, state, *known = slices
            mask, found = criterion.prune(kernel.astype(jnp.float32), state, target, *known)
            if found is not None and not jnp.issubdtype(weight.dtype, jnp.floating):
                raise ValueError(
                    f"{weight.dtype} weights cannot take the new ones of this criterion; wanda() "
                    "leaves them as they are"
                )
            found = kernel if found is None else found.astype(weight.dtype)
            return mask, jnp.where(mask, found, jnp.zeros((), weight.dtype))

        shape = (*view.batch_shape, *view.matrix_shape)
        return [
            view.leaf(a.reshape(shape))
            for a in lax.map(one, (matrices, state, *map(kernels, known)))
        ]

    try:
        mask, found = run(
            jnp.asarray(weight), state[0], *([] if known is None else [jnp.asarray(known)])
        )
    except ValueError as error:
        raise ValueError(
            f"prune_oneshot: {path!r} of shape {view.shape}, seen as {view}: {error}"
        ) from error
    if not jnp.isfinite(found).all():
        raise ValueError(
            f"prune_oneshot: new weights of {path!r} of shape {view.shape} are not finite: what "
            "it meets is too large for float32, or too much alike for its damping; values scaled "
            "down, a larger damping or wanda() would work"
        )
    return mask, found


def _check_numbers(params: Tree, specs: dict[str, LeafSpec]) -> None:
    leaves = leaves_by_path(params)
    for path, spec in specs.items():
        if jnp.iscomplexobj(leaves[path]):
            raise ValueError(
                f"prune_oneshot: {path!r} of shape {spec.view.shape} is complex; js.compute_masks, "
                "which goes by the modulus, would work"
            )
        if 0 in spec.view.shape:
            raise ValueError(
                f"prune_oneshot: {path!r} of shape {spec.view.shape} has no entries; a rule that "
                "leaves it out would work"
            )


def _check_met(path: str, size: Array) -> None:
    """Refuses a kernel whose statistics say nothing."""
    small, large = float(jnp.min(size)), float(jnp.max(size))
    if not np.isfinite(large) or not np.isfinite(small):
        raise ValueError(
            f"prune_oneshot: what {path!r} meets is not finite; look at the batches, and at the "
            "weights before it"
        )
    if small < SMALLEST:
        kernels = "" if not size.ndim else f" of kernels {np.argwhere(size < SMALLEST).tolist()}"
        raise ValueError(
            f"prune_oneshot: {path!r}{kernels} meets nothing but zeros, or numbers below "
            f"{SMALLEST}, whose squares float32 does not hold; batches that reach it (an expert, "
            "a branch), or values scaled up, would work"
        )


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
        if site.altered:
            raise ValueError(
                f"prune_oneshot: products multiply by something made of {path!r} of shape "
                f"{view.shape}, such as a gain times it, and not by the weight itself; with that "
                "folded into the weight in the parameters it would work"
            )
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
    try:
        order = [[path for path in specs if re.fullmatch(stage, path)] for stage in stages]
    except re.error as error:
        raise ValueError(f"prune_oneshot: stages={list(stages)}: {error}") from error
    for path in specs:
        times = sum(path in paths for paths in order)
        if times != 1:
            raise ValueError(
                f"prune_oneshot: {path!r} is in {times} of the stages {list(stages)}; one "
                "expression that matches it would work"
            )
    return [paths for paths in order if paths]
