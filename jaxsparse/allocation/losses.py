"""What every layer loses at several sparsities, measured on calibration batches in one walk."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from jaxsparse.allocation.tables import Levels, levels_of
from jaxsparse.calibration import Criterion, wanda
from jaxsparse.calibration.criteria import with_products
from jaxsparse.calibration.kernels import prune_kernels, target_of, with_size
from jaxsparse.calibration.pieces import Unit
from jaxsparse.calibration.preparing import prepare
from jaxsparse.calibration.progress import relative_error
from jaxsparse.patterns.base import check_sparsity
from jaxsparse.patterns.rules import Rule
from jaxsparse.pruning.distributions import known_target
from jaxsparse.trees import Tree


def losses(
    fn: Callable[..., Any],
    params: Tree,
    batches: Iterable[Any],
    rules: Sequence[Rule],
    levels: Levels,
    *,
    criterion: Criterion | None = None,
    per: Literal["layer", "output"] = "layer",
    spill: str | pathlib.Path | None = None,
) -> dict[str, tuple[float, ...]]:
    """The loss of every leaf at every level, as `exact` takes it.

        loss_l(s) = |X W - X V(s)|² / |X W|²

    for the inputs X that the kernel W meets in the dense model, pruned to V(s) by a one-shot
    criterion, which may change what it keeps. The model runs once over all batches; at each
    kernel its Gram matrix XᵀX is there, and it is pruned to all levels. Of a stack of layers in
    one leaf the losses are added.

    Args:
      fn, params, batches, rules, criterion, per, spill: as in `js.calibration.prune_oneshot`.
      levels: sparsities in [0, 1), for all leaves or by path; at 0 nothing is lost.

    Returns:
      By path one number for each level, of the leaves whose sparsity the rules leave open.

    Raises:
      ValueError, TypeError: as `prune_oneshot`; rules that leave nothing open, and levels that a
        pattern does not reach.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse as js
      >>> params = {"w": jnp.diag(jnp.array([2.0, 1.0]))}
      >>> rules = [js.Rule("w", js.Unstructured())]
      >>> found = losses(lambda params, x: x @ params["w"], params, [jnp.eye(2)], rules, [0, 0.75])
      >>> [round(loss, 6) for loss in found["w"]]
      [0.0, 0.2]
    """
    criterion = wanda() if criterion is None else criterion
    run = prepare(fn, params, batches, rules, criterion)
    specs = {path: spec for path, spec in run.specs.items() if known_target(spec) is None}
    if not specs:
        raise ValueError(
            f"losses: the rules say the sparsity of all {len(run.specs)} leaves that they name; a "
            "rule without, of a pattern that does not fix it, would work"
        )
    shares = levels_of(levels, specs)
    for path, spec in specs.items():
        for share in shares[path]:
            check_sparsity(f"levels of {path!r}", share, spec.pattern)
    criterion = with_products(criterion)
    found = {path: [0.0] * len(shares[path]) for path in specs}

    def look(unit: Unit, weight, state):
        if unit.path in specs:
            view = dataclasses.replace(specs[unit.path].view, shape=weight.shape)
            spec = dataclasses.replace(specs[unit.path], view=view)
            for number, share in enumerate(shares[unit.path]):
                if share:
                    target, known = target_of(spec, share, per), run.beforehand(unit)
                    _, left = prune_kernels(criterion, weight, state, target, spec, known)
                    error = relative_error(view, weight, left, state["first"])
                    assert error is not None
                    found[unit.path][number] += error
        return weight

    run.walk(with_size(criterion.reducer), look, done={}, spill=spill)
    return {path: tuple(values) for path, values in found.items()}
