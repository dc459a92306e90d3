"""`amc`: an agent walks through the layers, and learns what to keep of each by the accuracy."""

import contextlib
import dataclasses
import functools
import math
import numbers
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsparse import locks
from jaxsparse.allocation.amc.agent import DDPG
from jaxsparse.allocation.amc.folder import Folder
from jaxsparse.allocation.amc.loop import Loop, accuracy_of
from jaxsparse.allocation.amc.plans import LEVELS, Plan, entry_plan, unit_plan, walk_through
from jaxsparse.allocation.amc.reconstruction import Readers
from jaxsparse.allocation.amc.result import AMC, Episodes
from jaxsparse.allocation.amc.rewards import error, error_and_cost
from jaxsparse.allocation.costs.flops import Cost, check_cost
from jaxsparse.allocation.costs.program import layers
from jaxsparse.allocation.narrowing import Score
from jaxsparse.graph import structure
from jaxsparse.patterns.rules import Rule
from jaxsparse.trees import Tree, leaves_by_path

Reward = Literal["error", "error_and_cost"] | Callable[[Array, Array], Array]


def amc(
    fn: Callable[..., Any],
    params: Tree,
    inputs: Any,
    evaluate: Callable[[Tree], Any],
    cost: Cost,
    budget: float | None,
    *,
    rules: Sequence[Rule] | None = None,
    groups: Sequence[str] | None = None,
    blocks: Mapping[str, tuple[int, int]] | None = None,
    batches: Iterable[Any] | None = None,
    reconstruct: bool = True,
    score: Score = "l1",
    lower: float = 0.2,
    divisor: int = 8,
    levels: int = LEVELS,
    reward: Reward = "error",
    episodes: int = 400,
    settings: DDPG | None = None,
    seed: int = 0,
    folder: str | pathlib.Path | None = None,
    every: int = 10,
) -> AMC:
    """Searches what to keep of every layer, by reinforcement learning.

    An episode walks through the layers. At each the agent (DDPG) sees

        index, n, c, h, w, stride, k, FLOPs, reduced, rest, last action

    and says the fraction that stays: of the units of the group that the layer reads, or of the
    entries of the weight. The action is rounded down to an option and clipped to what leaves the
    budget in reach with everything after it at its lower bound, so no episode ends above the
    budget, not by one multiplication. What the agent remembers is the clipped action. At the end
    the pruned model is evaluated without training, and its reward is that of every step.

    Where `evaluate` can be traced, the whole search is one compiled program, whatever policies
    are tried; else episodes are a Python loop.

    Args:
      fn, params: the model, called as fn(params, *inputs).
      inputs: an array or a tuple of them, an example; what the model costs is counted on its
        shapes.
      evaluate: called as evaluate(params) with pruned parameters, a tree like those given: the
        accuracy, a share in [0, 1], as a Python number or an array. On data of its own: neither
        what the model was trained on, nor what it is judged by in the end.
      cost: what the budget is counted in, such as `Flops(fn, params, *inputs)`.
      budget: most that `cost` may come to; None for none, with a reward that looks at costs.
      rules: prune entries of these leaves by their patterns; without, whole units go.
      blocks: as in `js.graph.structure`.
      groups: names of the groups of `js.graph.structure` that are searched, by default all.
      batches: unlabelled inputs of the model, arrays or tuples, to fit readers by; by default
        `inputs` alone.
      reconstruct: whether the weights that read a group are fitted by least squares to the units
        that are kept; else they are masked alone.
      score: of units, as in `narrow`.
      lower: fraction of everything that stays at least.
      divisor: widths are its multiples, or whole.
      levels: widths of a group, or densities of a leaf, that are tried at most. A latency is
        measured for every pair of widths that meet in a product: 8 of them are 64.
      reward: "error", -(1 - accuracy), or "error_and_cost", -(1 - accuracy) ln(cost); or a
        function of both, which is traced.
      episodes: how many, those of the warm-up too.
      settings: of the agent, by default those of the paper.
      seed: of all that is random.
      folder: where the search is kept, and goes on from after a kill, to the same end. A longer
        one goes on from a shorter one.
      every: episodes between two savings.

    Returns:
      The best policy of all that were tried, as an allocation, with the model that it leaves.

    Raises:
      ValueError: a budget below what the bounds allow, a name of no group, arguments out of range,
        accuracies that are no shares, costs that are no sum over pairs of decisions, and a folder
        of another search. All but the accuracies of later policies before the first episode.
      TypeError: a cost that is none.

    Warns:
      UserWarning: readers that are fitted to fewer rows than they have inputs.

    Example:
      >>> import jaxsparse as js
      >>> x, up = jnp.linspace(-1, 1, 64)[:, None], jnp.linspace(-2, 2, 16)[None]
      >>> params = {"up": up, "down": jnp.ones((16, 1)) / 16}
      >>> def model(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> def evaluate(pruned):
      ...     return 1 / (1 + jnp.mean((model(pruned, x) - model(params, x)) ** 2))
      >>> cost = js.allocation.Flops(model, params, x)
      >>> found = amc(model, params, (x,), evaluate, cost, cost.total() // 2, divisor=2,
      ...             episodes=6, settings=DDPG(hidden=8, warmup=4))
      >>> found.allocation.widths, found.cost <= cost.total() // 2
      ({'up, down': 8}, True)

    References:
      He et al. 2018, arXiv 1802.03494.
    """
    settings = DDPG() if settings is None else settings
    check_cost(cost, "amc")
    _check(lower, divisor, levels, episodes, every, budget, reward, rules, groups)
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    found = layers(fn, params, *inputs, blocks=blocks)
    given = [b if isinstance(b, tuple) else (b,) for b in batches] if batches is not None else []
    if rules is None:
        units = structure(fn, params, *inputs, blocks=blocks)
        fitted = functools.partial(Readers, fn, params, batches=given or [inputs])
        plan = unit_plan(
            units, params, groups=groups, lower=lower, divisor=divisor, levels=levels,
            score=score,
            readers=fitted if reconstruct else lambda chosen: None,
        )  # fmt: skip
        whole = {name: counts[-1] for name, counts in zip(plan.names, plan.counts, strict=True)}
        check_cost(cost, "amc", whole)
        unfitted = {} if plan.readers is None else plan.readers.unfitted
    else:
        plan, unfitted = entry_plan(rules, params, found, lower=lower, levels=levels), {}
    walk = walk_through(plan, cost, budget, found)
    dense = accuracy_of(evaluate(params), "of the whole model")
    base = cost.total() - float(walk.whole) * float(walk.tick)
    loop = Loop(plan, walk, params, evaluate, _reward(reward, plan, cost), base, settings, seed)
    run = {
        "model": [leaves_by_path(params), plan.names, plan.counts],
        "pruning": [rules, score, reconstruct, given or inputs],
        "cost": [walk, cost.unit],
        "evaluation": [dense, None if folder is None else loop.program()],
        "reward": reward,
        "settings": [dataclasses.asdict(settings), seed],
    }
    with contextlib.nullcontext() if folder is None else locks.held(folder):
        held, start = Folder(folder, run), loop.start(episodes)
        done, state = held.load(start) or (0, start)
        while done < episodes:
            stop = min(episodes, (done // every + 1) * every)
            state, done = loop.run(state, done, stop), stop
            held.save(done, state)
    options = np.asarray(state.history.options)
    at = int(np.argmax(state.history.rewards))
    best = options[at].tolist()
    costs = [plan.total(cost, dict(enumerate(each))) for each in options.tolist()]
    if budget is not None and costs[at] > budget:
        raise AssertionError(f"amc: {costs[at]} is over the budget of {budget}")
    pruned, masks = loop.pruned(jnp.asarray(best, jnp.int32))
    accuracy = float(state.history.accuracies[at])
    about = {"search": "amc", "accuracy": accuracy, "cost": costs[at], "unit": cost.unit}
    kept = np.asarray(walk.kept)[np.arange(len(best)), options]
    rewards, accuracies = map(np.asarray, state.history[:2])
    history = Episodes(rewards, accuracies, np.array(costs), kept)
    return AMC(
        plan.allocation(best, about), pruned, masks, accuracy, costs[at], dense, cost.total(),
        budget, cost.unit, plan.names, history, unfitted,
    )  # fmt: skip


def _check(lower, divisor, levels, episodes, every, budget, reward, rules, groups) -> None:
    if not isinstance(lower, int | float) or not 0 < lower < 1:
        raise ValueError(f"amc: lower={lower!r}; a fraction in (0, 1) such as 0.2 would work")
    for name, value, least in (
        ("divisor", divisor, 1), ("levels", levels, 2), ("episodes", episodes, 1),
        ("every", every, 1),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
            raise ValueError(f"amc: {name}={value!r}; a whole number from {least} on would work")
    if budget is not None and (not isinstance(budget, numbers.Real) or math.isnan(budget)):
        raise ValueError(f"amc: budget={budget!r}; a number in the unit of the cost would work")
    if not callable(reward) and reward not in ("error", "error_and_cost"):
        raise ValueError(f"amc: reward={reward!r} is neither 'error' nor 'error_and_cost'")
    if reward == "error" and budget is None:
        raise ValueError(
            "amc: without a budget the error alone says to keep everything; a budget, or "
            "reward='error_and_cost', would work"
        )
    if rules is not None and groups is not None:
        raise ValueError("amc: rules prune entries and groups whole units; one of them would work")


def _reward(reward: Reward, plan: Plan, cost: Cost) -> Callable[[Array, Array], Array]:
    if callable(reward):
        return reward
    least = plan.total(cost, dict.fromkeys(range(len(plan.names)), 0))
    if reward == "error_and_cost" and not least > 1:
        raise ValueError(
            f"amc: reward='error_and_cost' takes the logarithm of a cost down to {least} "
            f"{cost.unit}, which has the other sign below 1; a function of accuracy and cost would "
            "work"
        )
    return error if reward == "error" else error_and_cost
