"""`netadapt`: the search for widths under a budget."""

import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxsparse import locks
from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.costs.flops import Cost, check_cost
from jaxsparse.allocation.narrowing import Score, chosen_groups, unit_masks
from jaxsparse.allocation.netadapt.checks import (
    DIVISOR,
    check_budget,
    check_numbers,
    divisors_of,
    lowest_widths,
    total,
)
from jaxsparse.allocation.netadapt.iterations import Search, State
from jaxsparse.allocation.netadapt.progress import Network, Progress
from jaxsparse.allocation.netadapt.result import NetAdapt
from jaxsparse.allocation.netadapt.rules import Candidate, Choice, proposal
from jaxsparse.allocation.netadapt.tuning import Tune
from jaxsparse.calibration.resuming import fingerprint
from jaxsparse.graph import structure
from jaxsparse.pruning.masking import mask_params
from jaxsparse.trees import Tree, leaves_by_path


def netadapt(
    fn: Callable[..., Any],
    params: Tree,
    inputs: Any,
    evaluate: Callable[[Tree], float],
    cost: Cost,
    budget: float,
    *,
    tune: Tune | None = None,
    short: int = 100,
    long: int = 1000,
    choice: Choice = "accuracy",
    initial: float = 0.025,
    decay: float = 0.96,
    divisor: int | Mapping[str, int] = DIVISOR,
    lowest: Mapping[str, int] | None = None,
    groups: Sequence[str] | None = None,
    score: Score = "l2",
    blocks: Mapping[str, tuple[int, int]] | None = None,
    folder: str | pathlib.Path | None = None,
    on_candidate: Callable[[Candidate], Any] | None = None,
) -> NetAdapt:
    """Narrows one group of units after another until a network costs no more than a budget.

    Iteration i is to bring the cost C below a target,

        C < C_before - initial * C_whole * decay^(i - 1)

    Every group makes one proposal, the largest of its widths that does so alone, or its lowest
    width. The units whose writing weights have the largest norm stay. Proposals are tuned for a
    few steps, each from the network that the iteration began with, and one is kept; once the cost
    is within the budget, a long tuning ends the run.

    All networks have the whole one's shapes, with masks: programs of yours are compiled once.
    `js.graph.shrink` on the result makes it small; `long=0` leaves the long tuning to you, there.

    Args:
      fn, params, inputs: the model, as in `js.graph.structure`; inputs an array or a tuple of them.
      evaluate: called with masked parameters: their accuracy, or any number that is to be large.
      cost: of the program by widths, such as `js.allocation.Flops(fn, params, *inputs)`. What it
        says of a network is taken as it is.
      budget: in the unit of the cost; the result costs no more.
      tune: called as tune(params, masks, steps): parameters after some steps of training with
        the masks in force. `steps` is a range of the numbers that they have in the whole run, the
        same for all candidates of an iteration. `tuner` makes one of any optimizer of optax.
      short, long: steps of each candidate, and at the end. `tune` is not needed if both are 0.
      choice: which candidate is kept, see `choose`: "accuracy", as in the paper, or "ratio", the
        least loss of accuracy for the cost that is saved, as in the authors' code.
      initial: the share of the cost that the first iteration takes off.
      decay: how much less each iteration takes off than the one before.
      divisor: widths are its multiples; groups of fewer units stay whole. Heads go one by one.
        Or by name of a group.
      lowest: units that are left at least, by name of a group.
      groups: names of those that may be narrowed; by default all.
      score: how large a unit is, as in `narrow`.
      blocks: as in `js.graph.structure`.
      folder: keeps every candidate: after a kill the same call goes on behind the last one, and
        comes to the same result if `tune` and `evaluate` give the same for the same arguments.
        A table of latency has to be kept in a file, too. One process at a time may use the folder.
      on_candidate: called with each candidate as it is done.

    Returns:
      The widths as an `Allocation`, parameters, masks, and every candidate.

    Raises:
      ValueError: a budget below the cost at the lowest widths, a number out of range, names of no
        groups, a folder of another run or in use; all before the first candidate. An accuracy or
        cost that is not finite.
      TypeError: arguments of another kind.
      RuntimeError: no group alone makes the network cheaper any more, and it costs too much still.

    Warns:
      UserWarning: a budget that iterations which just meet their targets would not reach, as
        these add up to `reduction_bound(initial, decay)`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse as js
      >>> def mlp(params, x):
      ...     return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]
      >>> sizes = {"a": (4, 32), "b": (32, 32), "c": (32, 3)}
      >>> key = jax.random.key(0)
      >>> params = {name: jax.random.normal(key, size) for name, size in sizes.items()}
      >>> x = jax.random.normal(key, (64, 4))
      >>> labels = mlp(params, x).argmax(-1)
      >>> accuracy = lambda params: jnp.mean(mlp(params, x).argmax(-1) == labels)
      >>> flops = js.allocation.Flops(mlp, params, x)
      >>> found = netadapt(
      ...     mlp, params, x, accuracy, flops, 0.5 * flops.total(), short=0, long=0, initial=0.2
      ... )
      >>> found.cost <= found.budget, [width % 8 for width in found.allocation.widths.values()]
      (True, [0, 0])

    References:
      Yang et al. 2018, arXiv 1804.03230, and its code.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    check_cost(cost, "netadapt")
    check_numbers(short, long, tune, choice, initial, decay)
    units = structure(fn, params, *inputs, blocks=blocks)
    names = [group.name for group in chosen_groups(units, groups, "netadapt")]
    divisors = divisors_of(units, divisor)
    least = lowest_widths(units, names, divisors, lowest or {})
    dense = check_budget(cost, budget, units, least, initial, decay)
    search = Search(units, evaluate, tune, score, choice, on_candidate)
    before = search.accuracy(params, "the whole network")
    widths = {group.name: group.units for group in units.groups}
    whole = Network(params, {name: np.ones(n, bool) for name, n in widths.items()})
    settings = [short, long, choice, initial, decay, divisors, least, names, float(budget)]
    run = {
        "structure": fingerprint([str(units), list(units.shapes)]),
        "weights": fingerprint(leaves_by_path(params)),
        "settings": fingerprint([settings, score]),
        "cost": [cost.unit, dense],
    }

    def proposed(name: str, iteration: int, state: State) -> Candidate:
        target = state.cost - initial * dense * decay ** (iteration - 1)

        def costs(width: int) -> float:
            return total(cost, {**state.widths, name: width})

        found = proposal(state.widths[name], divisors[name], least[name], costs, target)
        return Candidate(iteration, name, *found, target)

    state, candidates, done = State(widths, dense, before, None, whole), [], 0
    with contextlib.nullcontext() if folder is None else locks.held(folder):
        progress = Progress(folder, run, before, whole)
        while state.cost > budget:
            steps, done = range(done * short, (done + 1) * short), done + 1
            proposals = [proposed(name, done, state) for name in names]
            rows, state = search.iterate(proposals, state, steps, progress)
            candidates += rows
        steps = range(done * short, done * short + long)
        network, accuracy = search.finished(state, steps, progress)
    about = {"search": "netadapt", "cost": state.cost, "unit": cost.unit, "accuracy": accuracy}
    masks = unit_masks(units, network.params, network.kept)
    return NetAdapt(
        Allocation(widths=state.widths, about=about),
        mask_params(network.params, masks),
        masks,
        tuple(candidates),
        *(cost.unit, float(budget), dense, state.cost, before, accuracy),
    )
