"""The environment of AMC: a walk through the layers that cannot leave the budget.

A step decides how much of one thing stays, the units of a group or the entries of a leaf. What
can be decided is a list of options, each a fraction that is kept; what they cost together is a
sum of terms, each a table over the options of at most two steps: a layer costs what its inputs and
its outputs say. Costs are whole numbers, so that sums are exact, and a budget is kept to the last
one. All is arrays: episodes run inside `jit`, `scan` and `vmap`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

# Sums of costs stay below it: int32 holds them, whatever is added first.
MOST = 2**30
# Numbers in tables.
LARGEST = 2**27
# An action names an option up to rounding of float32.
SAME = 1e-6


class Term(NamedTuple):
    """A part of what a model costs.

    Attributes:
      steps: those whose options it depends on, two at most.
      costs: by option of each of them; integers are exact.
    """

    steps: tuple[int, ...]
    costs: np.ndarray


class Environment(NamedTuple):
    """The layers of a model as arrays.

    Attributes:
      kept: by step the fraction that each option keeps, ascending; infinite past the last.
      features: by step what the agent sees of the layer, in [0, 1].
      rest: by step the share of the cost that lies in layers after it.
      tables: of every term its costs in ticks.
      ends: by term the steps whose options the axes of its table are; past the last step: none.
      ticks: ticks that all terms may cost together.
      whole: ticks that they cost where everything is kept.
      total: what the whole model costs in ticks, with what no step changes.
      tick: what one tick costs; rounded up, so that a budget in ticks keeps the real one.
    """

    kept: Float[Array, "steps options"]
    features: Float[Array, "steps features"]
    rest: Float[Array, " steps"]
    tables: Int[Array, "terms options options"]
    ends: Int[Array, "terms 2"]
    ticks: Int[Array, ""]
    whole: Int[Array, ""]
    total: Float[Array, ""]
    tick: Float[Array, ""]

    @property
    def steps(self) -> int:
        """How many decisions an episode has."""
        return self.kept.shape[0]

    @property
    def last(self) -> Int[Array, " steps"]:
        """The option of every step that keeps most."""
        return jnp.sum(jnp.isfinite(self.kept), axis=1, dtype=jnp.int32) - 1


class Episode(NamedTuple):
    """What happened.

    Attributes:
      observations: what the agent saw before each step.
      actions: what was done, after the clip.
      options: which options these are.
      cost: of all, in ticks.
    """

    observations: Float[Array, "steps features"]
    actions: Float[Array, " steps"]
    options: Int[Array, " steps"]
    cost: Int[Array, ""]


def environment(
    kept: Sequence[np.ndarray],
    terms: Sequence[Term],
    budget: float,
    features: np.ndarray,
    shares: Float[np.ndarray, " steps"] | None = None,
) -> Environment:
    """Arrays of what a model's layers cost.

    Costs that are integers are divided by what they have in common; where their sum is then
    below 2³⁰ they are exact. Others are rounded up to a 2³⁰th of it.

    Args:
      kept: by step the fractions that its options keep, ascending.
      terms: what the options cost together; a term without steps is a constant.
      budget: of all terms together.
      features: by step what the agent sees of its layer; columns are scaled to [0, 1], constant
        ones become 0.
      shares: by step what its layer costs, of which `rest` is made; by default equal.

    Raises:
      ValueError: a budget below the cost of the first options, and more options than tables hold.

    Example:
      >>> kept = [np.array([0.5, 1.0])] * 2
      >>> terms = [Term((0, 1), np.array([[1, 2], [2, 4]]))]
      >>> walk = environment(kept, terms, 2, np.eye(2))
      >>> episode = rollout(walk, lambda observation, key: 1.0, jax.random.key(0))
      >>> episode.actions.tolist(), int(episode.cost)
      ([1.0, 0.5], 2)
    """
    counts = [len(fractions) for fractions in kept]
    widest = max(counts, default=1)
    constant = sum(np.asarray(term.costs).item() for term in terms if not term.steps)
    terms = [term for term in terms if term.steps]
    whole = sum(term.costs[(-1,) * len(term.steps)].item() for term in terms)
    top = max(sum(np.abs(term.costs).max().item() for term in terms), 1)
    if all(np.issubdtype(np.asarray(term.costs).dtype, np.integer) for term in terms):
        tick = math.gcd(*(int(cost) for term in terms for cost in term.costs.flat)) or 1
        tick = tick if top // tick < MOST else -(-top // MOST)
    else:
        tick = top / MOST
    if len(terms) * widest**2 > LARGEST:
        step = counts.index(widest)
        raise ValueError(
            f"amc: step {step} has {widest} options, and {len(terms)} tables over pairs of them "
            f"would have {len(terms) * widest**2:,} numbers; a larger divisor, or fewer levels, "
            "would work"
        )
    tables = np.zeros((len(terms), widest, widest), np.int32)
    ends = np.full((len(terms), 2), len(kept), np.int32)
    for number, term in enumerate(terms):
        found = _ticks(term.costs, tick)
        tables[number, : found.shape[0], : found.shape[-1] if found.ndim == 2 else 1] = (
            found if found.ndim == 2 else found[:, None]
        )
        ends[number, : len(term.steps)] = term.steps
    padded = np.full((len(kept), widest), np.inf, np.float32)
    for row, fractions in zip(padded, kept, strict=True):
        row[: len(fractions)] = fractions
    costly = np.ones(len(kept)) if shares is None else np.asarray(shares, np.float64)
    after = costly.sum() - np.cumsum(costly)
    left = budget - constant
    ticks = 2 * MOST - 1 if left >= top else math.floor(left / tick)
    made = Environment(
        jnp.asarray(padded),
        jnp.asarray(_scaled(features), jnp.float32),
        jnp.asarray(np.clip(after / max(costly.sum(), 1e-30), 0, 1), jnp.float32),
        jnp.asarray(tables),
        jnp.asarray(ends),
        jnp.int32(max(ticks, -2 * MOST)),
        jnp.int32(0),
        jnp.float32(max((whole + constant) / tick, 1e-30)),
        jnp.float32(tick),
    )
    made = made._replace(whole=cost(made, made.last))
    least = cost(made, jnp.zeros(made.steps, jnp.int32))
    if least > made.ticks:
        dearer = sum(term.costs[(0,) * len(term.steps)].item() for term in terms)
        asked, left, of = map(_shown, (budget, dearer + constant, whole + constant))
        raise ValueError(
            f"amc: a budget of {asked} is out of reach: with as little of everything as the bounds "
            f"allow {left} of {of} are left; a larger budget, a smaller lower=, or, of widths that "
            "are its multiples, a smaller divisor= would work"
        )
    return made


def cost(env: Environment, options: Int[Array, " steps"]) -> Int[Array, ""]:
    """What options cost together, in ticks."""
    ends = jnp.append(options, 0)[env.ends]
    return jnp.sum(env.tables[jnp.arange(env.tables.shape[0]), ends[:, 0], ends[:, 1]])


def observe(
    env: Environment, step: Int[Array, ""], options: Int[Array, " steps"], action: Float[Array, ""]
) -> Float[Array, " features"]:
    """What the agent sees before a step.

    Features of the layer; the share of the cost that earlier steps took away, later ones being
    whole; the share that lies in later layers; the last action.
    """
    ahead = jnp.arange(env.steps) >= step
    reduced = (env.whole - cost(env, jnp.where(ahead, env.last, options))) / env.total
    return jnp.concatenate([env.features[step], jnp.stack([reduced, env.rest[step], action])])


def clipped(
    env: Environment, step: Int[Array, ""], options: Int[Array, " steps"], action: Float[Array, ""]
) -> Int[Array, ""]:
    """The largest option that keeps no more than an action says, and leaves the budget in reach.

    In reach is what the steps after it can still meet by their first options, which `options`
    has there. The first option always is: the step before has seen to that.
    """
    choices, terms = jnp.arange(env.kept.shape[1]), jnp.arange(env.tables.shape[0])
    first, second = jnp.append(options, 0)[env.ends].T
    costs = jnp.where(
        env.ends[:, :1] == step,
        env.tables[terms, :, second],
        jnp.where(env.ends[:, 1:] == step, env.tables[terms, first, :], 0),
    )
    # Other terms have one cost, whatever is chosen here.
    others = jnp.where((env.ends == step).any(axis=1), 0, env.tables[terms, first, second])
    fit = (jnp.sum(costs, axis=0) + jnp.sum(others) <= env.ticks) & (
        env.kept[step] <= action * (1 + SAME)
    )
    return jnp.max(jnp.where(fit, choices, 0)).astype(jnp.int32)


def rollout(
    env: Environment,
    act: Callable[[Float[Array, " features"], Array], Float[Array, ""] | float],
    key: Array,
) -> Episode:
    """One episode.

    Args:
      env: what is walked through.
      act: called as act(observation, key): the fraction to keep, in (0, 1].
      key: of what is random.
    """

    def step(state, given):
        options, action = state
        number, key = given
        seen = observe(env, number, options, action)
        option = clipped(env, number, options, jnp.asarray(act(seen, key), jnp.float32))
        action = env.kept[number, option]
        return (options.at[number].set(option), action), (seen, action)

    first = jnp.zeros(env.steps, jnp.int32), jnp.float32(1)
    given = jnp.arange(env.steps), jax.random.split(key, env.steps)
    (options, _), (observations, actions) = lax.scan(step, first, given)
    return Episode(observations, actions, options, cost(env, options))


def _shown(number: float) -> str:
    return f"{number:,.6g}" if abs(number) < 1e6 and number != int(number) else f"{number:,.0f}"


def _ticks(costs: np.ndarray, tick: float) -> np.ndarray:
    """Costs in ticks, rounded up."""
    if isinstance(tick, int):
        return -(-np.asarray(costs).astype(object) // tick)
    return np.ceil(np.asarray(costs, np.float64) / tick)


def _scaled(features: np.ndarray) -> np.ndarray:
    """Columns from 0 to 1."""
    features = np.asarray(features, np.float64)
    low, high = features.min(axis=0), features.max(axis=0)
    return (features - low) / np.where(high > low, high - low, 1)
