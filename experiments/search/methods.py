"""Methods of a search by name: what finds the widths."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxsparse as js
from experiments.registry import Registry
from experiments.search.problem import Problem
from jaxsparse.allocation import Allocation, Sensitivity

RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


class Found(NamedTuple):
    """What a search found.

    Attributes:
      allocation: the widths of all groups.
      history: numbers for figures, as JSON has them.
      tree: weights that the search trained or fitted; None where it left the dense model's.
      masks: of the units that these keep; None keeps those of the largest norm.
    """

    allocation: Allocation
    history: dict[str, Any]
    tree: Any = None
    masks: Mapping[str, Any] | None = None


METHODS: Registry[Found] = Registry("method", given=1)


@METHODS.register("uniform")
def uniform(problem: Problem) -> Found:
    """All groups scaled alike: the largest share of their units that keeps the budget."""
    cost, limits = problem.cost, problem.limits
    tried = []
    for share in limits.shares():
        widths = limits.at(share)
        tried.append((float(share), cost.total(widths)))
        if tried[-1][1] <= problem.budget:
            break
    allocation = Allocation(widths=widths, about={"search": "uniform", "share": float(share)})
    return Found(allocation, {"tried": tried})


@METHODS.register("sensitivity")
def sensitivity(problem: Problem, ratios: Sequence[float] = RATIOS) -> Found:
    """As much of every group as loses no more accuracy, alone, than that of any other.

    Args:
      problem: the search.
      ratios: fractions of a group that are tried; those that go below its lowest width are not.
    """
    table = _scanned(problem, "accuracy", ratios)
    allocation = table.allocation(problem.cost, problem.budget)
    joint = table.joint(allocation)
    history = {
        **_curves(table),
        "joint": {"drop": joint.change.drop, "error": joint.change.error, "sum": joint.sum},
    }
    return Found(allocation, history)


@METHODS.register("spdy")
def spdy(problem: Problem, ratios: Sequence[float] = RATIOS) -> Found:
    """The widths with the least sum of losses within the budget, by a table of single losses.

    The losses are those of the cross-entropy, which unlike accuracy feels every channel.

    Args:
      problem: the search.
      ratios: as for `sensitivity`.
    """
    table = _scanned(problem, "loss", ratios)
    losses = {}
    for name, curve in table.curves.items():
        cells = zip(table.levels, table.losses[name], strict=True)
        # Of ratios that keep the same number, one.
        losses[name] = {curve.target.kept(ratio): loss for ratio, loss in cells}
    allocation = js.allocation.exact_widths(losses, problem.cost, problem.budget)
    return Found(allocation, {**_curves(table), **allocation.about})


@METHODS.register("netadapt")
def netadapt(
    problem: Problem,
    short: int = 10,
    choice: Literal["accuracy", "ratio"] = "accuracy",
    initial: float = 0.1,
    decay: float = 0.97,
) -> Found:
    """One group after another gives a little, the one whose loss a few steps of tuning mend best.

    Args:
      problem: the search.
      short: steps that every candidate is tuned for.
      choice, initial, decay: as in `js.allocation.netadapt`.
    """
    found = js.allocation.netadapt(
        *(problem.fn, problem.tree, problem.example, problem.evaluate),
        *(problem.cost, problem.budget),
        tune=problem.tune,
        short=short,
        long=0,
        choice=choice,
        initial=initial,
        decay=decay,
        divisor=problem.limits.divisor,
        lowest=problem.limits.least(),
        folder=problem.folder / "netadapt",
    )
    return Found(found.allocation, found.to_dict(), found.params, found.masks)


@METHODS.register("amc")
def amc(
    problem: Problem,
    episodes: int = 200,
    warmup: int = 50,
    hidden: int = 300,
    reward: Literal["error", "error_and_cost"] = "error",
    calibration: int = 64,
) -> Found:
    """An agent that learns by the accuracy what to keep of each layer, one after the other.

    Episodes are half of the paper's, whose networks are larger.

    Args:
      problem: the search.
      episodes, reward: as in `js.allocation.amc`.
      warmup, hidden: of `js.allocation.DDPG`.
      calibration: validation images by which weights are fitted to the channels that are kept.
    """
    found = js.allocation.amc(
        *(problem.fn, problem.tree, (problem.example,), problem.evaluate),
        *(problem.cost, problem.budget),
        batches=[jnp.asarray(problem.validation.inputs[:calibration])],
        lower=problem.limits.lowest,
        divisor=problem.limits.divisor,
        reward=reward,
        episodes=episodes,
        settings=js.allocation.DDPG(warmup=warmup, hidden=hidden),
        seed=problem.seed,
        folder=problem.folder / "amc",
    )
    return Found(found.allocation, found.to_dict(), found.params, found.masks)


def _scanned(problem: Problem, metric: str, ratios: Sequence[float]) -> Sensitivity:
    """What each group loses of a metric at each ratio; kept in the folder after every cell."""
    least = problem.limits.least()
    within = tuple(
        ratio
        for ratio in ratios
        if all(n - round(ratio * n) >= least[name] for name, n in problem.limits.units.items())
    )
    highest = max(within, default=0.0)
    narrowest = {name: n - round(highest * n) for name, n in problem.limits.units.items()}
    if (reached := problem.cost.total(narrowest)) > problem.budget:
        raise ValueError(
            f"config.search.ratios = {tuple(ratios)}: with ratios up to {highest}, which keep the "
            f"lowest widths, the model costs {reached:,.6g} {problem.cost.unit}, and the budget is "
            f"{problem.budget:,.6g}; higher ratios, or a smaller config.lowest, would work"
        )

    def measured(tree, batch):
        inputs, labels = batch
        outputs = problem.fn(tree, inputs)
        if metric == "accuracy":
            return outputs.argmax(-1) == labels
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)

    batch = jax.tree.map(jnp.asarray, (problem.validation.inputs, problem.validation.labels))
    return js.allocation.scan(
        *(measured, problem.tree, None, within),
        batches=[batch],
        better="higher" if metric == "accuracy" else "lower",
        structure=problem.structure,
        path=problem.folder / f"scan_{metric}.json",
        on_cell=lambda _: problem.tick(),
    )


def _curves(table: Sensitivity) -> dict[str, Any]:
    bands = table.bands()
    return {
        "ratios": list(table.ratios),
        "drops": {name: [c.drop for c in curve.changes] for name, curve in table.curves.items()},
        "bands": {name: bands[name].tolist() for name in table.curves},
    }
