"""`observe`: the program runs, and at each product what a weight meets goes into a statistic.

What is met is `turned` to the axes of the weight as it is in the parameters. Statistics go through
loops and branches with all else that these carry: nothing large is kept.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.calibration.reducers import Reducer
from jaxsparse.calibration.site import Site, note, site_of, with_mixed
from jaxsparse.calibration.turned import Turned
from jaxsparse.products.reading import Reader, Traced
from jaxsparse.trees import Tree


def sites(fn: Callable[..., Any], params: Tree, *args: Any, paths: str = ".*") -> list[Site]:
    """What `observe` sees, in the order of the program; nothing runs.

    Args:
      fn, params, args: as in `observe`; shapes will do.
      paths: regular expression of the weights to look at.

    Example:
      >>> params = {"up": jnp.ones((4, 8)), "head": jnp.ones((3, 8))}
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["head"].T
      >>> [(site.path, site.in_axis, site.inputs) for site in sites(mlp, params, jnp.ones((2, 4)))]
      [('up', (0,), 4), ('head', (1,), 8)]
    """
    return _sites(Traced(fn, params, args), paths)


def observe(
    fn: Callable[..., Any],
    params: Tree,
    *args: Any,
    reducer: Reducer,
    paths: str = ".*",
    states: Mapping[Site, Any] | None = None,
) -> tuple[Any, dict[Site, Any]]:
    """Runs a function, and reduces what its weights meet in products to one state a site.

    Weights are followed through casts, transposes, flips, reshapes, scaling, masks, `jit`, `vmap`,
    `remat`, `scan`, `while`, `cond`, functions with gradients of their own and stacks, in any
    framework. A kernel that a loop uses several times is met as often. Lookups in a table
    are no products. What `cond` does not run is not met, and what the condition of a
    `while` multiplies is not, either.

    Not followed, so that there is no site and no error: rows or columns picked by an array of
    positions (`w[order]`, which is a lookup), `jnp.where(data, w, v)` and whatever else is
    computed from weights and data, parts of axes that a reshape put together, products inside
    `shard_map` and kernels of other libraries. `sites` has what is followed.

    What is met is met by the operand of the product, which need not be the weight alone: where
    the program multiplies by `g * w`, by `tanh(w)`, a normed weight or `w + v`, X @ (g * w) is
    the product and X @ w is not. `Site.altered` says so. Casts, transposes, flips, reshapes,
    kernels of a stack, negation, a factor or divisor that is one number, and bool masks leave
    it False: `jnp.where(mask, w, number)` and `mask * w` are the weight where it is kept.

    Of `x @ (v @ w)` it is v that w meets, and not what the data make of it: `Site.mixed` says so.
    Learned queries and tables are met as they are, where no product sums over their rows.

    It is a pure function and can be jitted. Batch by batch, give `states` of the batch
    before. Later layers see what the `params` given make of their inputs: to have them see
    those of pruned layers, observe once more with the pruned weights. Under `jit`, what
    comes after the sites observed does not run if the outputs are not used.

    Args:
      fn: called as fn(params, *args).
      params: a tree of arrays.
      args: the data; what is no array is a constant.
      reducer: of the values; see `Reducer`, `gram`, `square_norms`, `largest`, `zeros`.
      paths: regular expression of the weights to observe.
      states: to go on from.

    Returns:
      What the function returns; and by site the state. Of a site with `batch_axis` every
      array of its state has these axes first, one state for every kernel.

    Raises:
      ValueError: what a weight meets cannot be told: several kernels at once whose rows data
        choose, a part of a kernel, parts or layers that the program puts together, blocks of
        inputs or groups of outputs that meet values of their own. Path and shape are quoted.

    Example:
      >>> from jaxsparse.calibration import gram
      >>> params = {"up": jnp.ones((4, 8)), "stack": jnp.ones((3, 8, 8))}
      >>> def model(params, x):
      ...     x = jnp.tanh(x @ params["up"])
      ...     return jax.lax.scan(lambda x, w: (x @ w, None), x, params["stack"])[0]
      >>> y, states = observe(model, params, jnp.ones((2, 4)), reducer=gram())
      >>> {site.path: state["products"].shape for site, state in states.items()}
      {'up': (4, 4), 'stack': (3, 8, 8)}
    """
    traced = Traced(fn, params, args)
    found = _sites(traced, paths)
    if states is None:
        states = {site: _stacked(reducer.init(site), site.kernels) for site in found}
    elif set(states) != set(found):
        other = sorted(site.path for site in set(states) ^ set(found))
        raise ValueError(f"observe: the states are of other sites than the program: {other}")
    observer = _Observer(reducer, dict(states))
    outputs = traced.run(observer)
    return outputs, {site: observer.state[site] for site in found}


def _sites(traced: Traced, paths: str) -> list[Site]:
    finder = _Finder(paths)
    traced.read(finder)
    return list(with_mixed(finder.sites.values(), finder).values())


class _Finder(Reader):
    """A reader that notes sites."""

    def __init__(self, paths: str):
        super().__init__()
        self._paths, self.sites = paths, dict[Site, Site]()

    def meet(self, equation, sight, position, other):
        if re.fullmatch(self._paths, sight.path):
            note(self.sites, site_of(equation, sight, position))


def _stacked(state, sizes):
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*sizes, *jnp.shape(a))), state)


class _Observer(Reader):
    """A reader that reduces what weights meet; its state goes through control flow."""

    def __init__(self, reducer: Reducer, states: dict[Site, Any]):
        super().__init__()
        self._reducer, self.state = reducer, states

    def meet(self, equation, sight, position, other):
        site = site_of(equation, sight, position)
        if site in self.state:
            value = Turned(site, equation, sight, position, other)
            new = value.reduced(self._reducer, self.state[site], value.index)
            self.state = self.state | {site: new}
