"""`read_axes`: the axes of rules, from the products of a traced model."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxsparse.patterns.rules import Rule, check_rules, choose
from jaxsparse.patterns.views import Axes, spelled, view_of
from jaxsparse.products.reading import Product, products
from jaxsparse.products.sights import told
from jaxsparse.trees import Tree, leaves_by_path


def read_axes(
    rules: Sequence[Rule], fn: Callable[..., Any], params: Tree, *args: Any
) -> list[Rule]:
    """Fills in which axes of every weight are inputs and outputs, as the model uses them.

    Nothing runs: the function is traced, and every product that a weight takes part in
    says which axes of it are summed over (`in_axis`), which it ends in (`out_axis`) and
    along which every slice is a weight of its own (`batch_axis`). Any framework will do.
    Of a table that is both looked up and multiplied by, the product decides.

    Args:
      rules: to be completed. Axes that a rule states are held against the products.
      fn: called as fn(params, *args): the model itself, not its loss or its gradient.
      params: a tree that the rules are meant for, of arrays or shapes.
      args: arrays or shapes.

    Returns:
      A rule for every leaf that the rules name. A leaf that no product meets keeps what
      its rule or its name says.

    Raises:
      ValueError: axes of a rule that the products contradict; a weight whose products sum
        over different axes, or over part of an axis; an ambiguous weight that no product
        meets. Path, shape and what would work are quoted.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> params = {"out": {"w": jnp.ones((4, 8, 16))}}
      >>> def attend(params, x):
      ...     return jnp.einsum("btnh,nhd->btd", x, params["out"]["w"])
      >>> rules = [js.Rule(".*w", js.Block(4, 16), sparsity=0.9)]
      >>> [rule] = js.read_axes(rules, attend, params, jnp.ones((2, 3, 4, 8)))
      >>> rule.in_axis, rule.out_axis
      ((0, 1), 2)
    """
    return with_axes(rules, params, products(fn, params, *args))


def with_axes(rules: Sequence[Rule], params: Tree, found: Iterable[Product]) -> list[Rule]:
    """`read_axes` where the products are known; rules come sorted by the path of their leaf."""
    leaves, chosen = leaves_by_path(params), choose(check_rules(rules), params)
    met: dict[str, list[Product]] = {}
    for product in found:
        met.setdefault(product.path, []).append(product)
    return [
        _filled(rule, path, np.shape(leaves[path]), met.get(path, []))
        for path, rule in chosen.items()
    ]


def _filled(rule: Rule, path: str, shape: tuple[int, ...], met: Sequence[Product]) -> Rule:
    sums = [product for product in met if product.sums]
    alone = dataclasses.replace(rule, path=re.escape(path), override=False)
    given = rule.in_axis, rule.out_axis, rule.batch_axis
    # What does not depend on the sides need not know them.
    directed = len(shape) > 2 or (rule.pattern is not None and rule.pattern.directed)
    if given != (None, None, None) or not met or len(shape) < 2:
        view = view_of(path, shape, *given, directed=directed)
        if given != (None, None, None) and sums and not any(p.agrees(view) for p in sums):
            stated = spelled(view.inputs, view.outputs, view.batch)
            raise ValueError(f"{path!r} of shape {shape}: its rule says {stated}, but {told(sums)}")
        return alone
    met = sums or met
    whole = {(p.in_axis, p.out_axis, p.batch_axis) for p in met if not p.partial}
    if len(whole) == 1 and not any(p.partial for p in met):
        axes = map(_axes, *whole)
        return dataclasses.replace(
            alone, **dict(zip(("in_axis", "out_axis", "batch_axis"), axes, strict=True))
        )
    if not directed:
        return alone
    raise ValueError(
        f"{path!r} of shape {shape}: {told(met)}; no axes do for all of them, so state in its "
        "rule those that count"
    )


def _axes(axes: tuple[int, ...]) -> Axes:
    if not axes:
        return ()
    return axes[0] if len(axes) == 1 else axes
