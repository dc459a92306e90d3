"""`amc`: an agent walks through the layers, and learns what to keep of each by the accuracy."""

import dataclasses
import functools
import math
import numbers
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.amc import agent as ddpg
from jaxsparse.allocation.amc import rewards
from jaxsparse.allocation.amc.agent import Agent, Replay, Settings
from jaxsparse.allocation.amc.environment import Environment, Episode, rollout
from jaxsparse.allocation.amc.folder import Folder
from jaxsparse.allocation.amc.plans import LEVELS, Plan, channels, walk_through, weights
from jaxsparse.allocation.amc.reconstruction import Readers
from jaxsparse.allocation.costs.flops import Cost
from jaxsparse.allocation.costs.program import layers
from jaxsparse.allocation.narrowing import Score
from jaxsparse.calibration.resuming import fingerprint
from jaxsparse.graph import structure
from jaxsparse.patterns.rules import Rule
from jaxsparse.trees import Tree, leaves_by_path

Reward = Literal["error", "error_and_cost"] | Callable[[Array, Array], Array]
WALKED = 11


class History(NamedTuple):
    """Episode by episode.

    Attributes:
      rewards, accuracies, costs: of the policy that was tried; a cost in the unit of the budget.
      kept: the fraction that it kept of everything that was decided.
    """

    rewards: Float[np.ndarray, " episodes"]
    accuracies: Float[np.ndarray, " episodes"]
    costs: Float[np.ndarray, " episodes"]
    kept: Float[np.ndarray, "episodes steps"]


@dataclasses.dataclass(frozen=True)
class AMC:
    """What `amc` found.

    Attributes:
      allocation: the best policy: widths of groups, or sparsities of leaves.
      params: the weights that it leaves, with readers fitted to the units that are kept.
      masks: by path, True is kept.
      accuracy, cost: of it.
      dense_accuracy, dense_cost: of the model before.
      budget: that it was searched under, None for none.
      unit: of costs.
      names: of what was decided, in the order of the program.
      history: of the search.
      unfitted: by path of a reader why it was masked alone.
    """

    allocation: Allocation
    params: Tree
    masks: Mapping[str, Bool[Array, "..."]]
    accuracy: float
    cost: int | float
    dense_accuracy: float
    dense_cost: int | float
    budget: float | None
    unit: str
    names: tuple[str, ...]
    history: History
    unfitted: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """All but the arrays of the model, for JSON."""
        plain = ("accuracy", "cost", "dense_accuracy", "dense_cost", "budget", "unit")
        found = {name: getattr(self, name) for name in plain}
        history = {name: np.asarray(v).tolist() for name, v in self.history._asdict().items()}
        found |= {"names": list(self.names), "history": history}
        return found | {"allocation": self.allocation.to_dict(), "unfitted": dict(self.unfitted)}


class _Tried(NamedTuple):
    """A history in which there is room for what is to come."""

    rewards: Float[Array, " episodes"]
    accuracies: Float[Array, " episodes"]
    options: Int[Array, "episodes steps"]


class _State(NamedTuple):
    agent: Agent
    replay: Replay
    history: _Tried


def amc(
    fn: Callable[..., Any],
    params: Tree,
    inputs: tuple[Any, ...],
    evaluate: Callable[[Tree], Any],
    cost: Cost,
    budget: float | None,
    *,
    rules: Sequence[Rule] | None = None,
    groups: Iterable[str] | None = None,
    batches: Iterable[Any] | None = None,
    reconstruct: bool = True,
    score: Score = "l1",
    lower: float = 0.2,
    divisor: int = 8,
    levels: int = LEVELS,
    reward: Reward = "error",
    episodes: int = 400,
    settings: Settings | None = None,
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
      inputs: an example, as a tuple; what the model costs is counted on its shapes.
      evaluate: called as evaluate(params) with pruned parameters, a tree like those given: the
        accuracy, a share in [0, 1], as a Python number or an array. On data of its own: neither
        what the model was trained on, nor what it is judged by in the end.
      cost: what the budget is counted in, such as `Flops(fn, params, *inputs)`.
      budget: most that `cost` may come to; None for none, with a reward that looks at costs.
      rules: prune entries of these leaves by their patterns; without, whole units go.
      groups: names of the groups of `js.graph.structure` that are searched, by default all.
      batches: unlabelled inputs of the model, arrays or tuples, to fit readers by; by default
        `inputs` alone.
      reconstruct: whether the weights that read a group are fitted by least squares to the units
        that are kept; else they are masked alone.
      score: of units, as in `narrow`.
      lower: fraction of everything that stays at least.
      divisor: widths are its multiples, or whole.
      levels: densities that a leaf may have.
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
      ...             episodes=6, settings=Settings(hidden=8, warmup=4))
      >>> found.allocation.widths, found.cost <= cost.total() // 2
      ({'up, down': 8}, True)

    References:
      He et al. 2018, arXiv 1802.03494.
    """
    settings = Settings() if settings is None else settings
    _check(inputs, lower, divisor, levels, episodes, every, budget, reward, rules, groups)
    found = layers(fn, params, *inputs)
    given = [b if isinstance(b, tuple) else (b,) for b in batches] if batches is not None else []
    if rules is None:
        plan = channels(
            structure(fn, params, *inputs), params, groups=groups, lower=lower, divisor=divisor,
            score=score,
            readers=lambda chosen: Readers(fn, params, chosen, given or [inputs])
            if reconstruct
            else None,
        )  # fmt: skip
        unfitted = {} if plan.readers is None else plan.readers.unfitted
    else:
        plan, unfitted = weights(rules, params, found, lower=lower, levels=levels), {}
    walk = walk_through(plan, cost, budget, found)
    dense = _accuracy(evaluate(params), "of the whole model")
    paid = _reward(reward, plan, cost)
    search = _Search(plan, walk, evaluate, paid, settings, seed, cost, params)
    state = search.start(episodes)
    done, kept = 0, None
    if folder is not None:
        run = {
            "model": [leaves_by_path(params), plan.names, plan.counts],
            "cost": [walk, cost.unit],
            "evaluation": dense,
            "reward": reward,
            "settings": [dataclasses.asdict(settings), seed, reconstruct, given or inputs],
        }
        kept = Folder(folder, {name: fingerprint(value) for name, value in run.items()})
        done, state = kept.load(state) or (0, state)
    while done < episodes:
        stop = min(episodes, (done // every + 1) * every)
        state = search.run(state, done, stop)
        done = stop
        if kept is not None:
            kept.save(done, state)
    return search.result(state, budget, dense, unfitted)


class _Search:
    def __init__(
        self,
        plan: Plan,
        walk: Environment,
        evaluate: Callable[[Tree], Any],
        reward: Callable[[Array, Array], Array],
        settings: Settings,
        seed: int,
        cost: Cost,
        params: Tree,
    ):
        self._plan, self._walk, self._cost, self._params = plan, walk, cost, params
        self._evaluate, self._reward, self._settings = evaluate, reward, settings
        self._base = cost.total() - float(walk.whole) * float(walk.tick)
        self._key = jax.random.key(seed)
        self._apply = jax.jit(plan.applied)
        self._propose = jax.jit(self._proposed)
        self._absorb = jax.jit(self._absorbed)
        self._loop = jax.jit(self._looped)
        self.traced = _is_traceable(evaluate, self.applied(walk.last)[0])

    def applied(self, options: Int[Array, " steps"]) -> tuple[Tree, dict[str, Array]]:
        """The pruned parameters and the masks of a policy."""
        return self._apply(self._plan.arrays, self._params, options)

    def start(self, episodes: int) -> _State:
        """Before the first episode."""
        steps = self._walk.steps
        none = jnp.full(episodes, jnp.nan, jnp.float32)
        return _State(
            jax.jit(ddpg.new_agent, static_argnums=(1, 2))(self._key, WALKED, self._settings),
            ddpg.new_replay(steps, WALKED, self._settings),
            _Tried(none, none, jnp.zeros((episodes, steps), jnp.int32)),
        )

    def run(self, state: _State, start: int, stop: int) -> _State:
        """Some episodes more."""
        if self.traced:
            state = self._loop(state, self._plan.arrays, self._params, start, stop)
        else:
            for number in range(start, stop):
                episode = self._propose(state, number)
                pruned = self.applied(episode.options)[0]
                accuracy = _accuracy(self._evaluate(pruned), f"after episode {number}")
                state = self._absorb(state, number, episode, accuracy)
        tried = np.asarray(state.history.accuracies), np.asarray(state.history.rewards)
        for number in range(start, stop):
            _accuracy(tried[0][number], f"after episode {number}")
            if np.isnan(tried[1][number]):
                raise ValueError(
                    f"amc: the reward of episode {number} is NaN, of accuracy {tried[0][number]}; "
                    "a number would work"
                )
        return state

    def _keys(self, number) -> Array:
        # Not the key of the networks' first weights.
        return jax.random.split(jax.random.fold_in(self._key, number + 1))

    def _proposed(self, state: _State, number) -> Episode:
        explore = functools.partial(
            ddpg.explore, state.agent.networks.actor, episode=number, settings=self._settings
        )
        return rollout(
            self._walk, lambda seen, key: explore(observation=seen, key=key), self._keys(number)[0]
        )

    def _absorbed(self, state: _State, number, episode: Episode, accuracy) -> _State:
        cost = self._base + episode.cost * self._walk.tick
        accuracy = jnp.asarray(accuracy, jnp.float32)
        reward = jnp.asarray(self._reward(accuracy, cost), jnp.float32)
        replay = ddpg.remember(state.replay, episode, reward)
        keys = jax.random.split(self._keys(number)[1], self._walk.steps)

        def learned(agent):
            step = lambda agent, key: (ddpg.learn(agent, replay, key, self._settings), None)  # noqa: E731
            return jax.lax.scan(step, agent, keys)[0]

        ready = number >= self._settings.warmup
        agent = jax.lax.cond(ready, learned, lambda agent: agent, state.agent)
        tried = _Tried(
            state.history.rewards.at[number].set(reward),
            state.history.accuracies.at[number].set(accuracy),
            state.history.options.at[number].set(episode.options),
        )
        return _State(agent, replay, tried)

    def _looped(self, state: _State, arrays: Any, params: Tree, start, stop) -> _State:
        def turn(number, state):
            episode = self._proposed(state, number)
            accuracy = self._evaluate(self._plan.applied(arrays, params, episode.options)[0])
            return self._absorbed(state, number, episode, accuracy)

        return jax.lax.fori_loop(start, stop, turn, state)

    def cost(self, options: Sequence[int]) -> int | float:
        """Of a policy, by the cost itself."""
        return self._plan.total(self._cost, dict(enumerate(map(int, options))))

    def result(self, state: _State, budget, dense: float, unfitted) -> AMC:
        """Of what was tried the best."""
        history = state.history
        options = np.asarray(history.options)
        at = int(np.argmax(history.rewards))
        best = options[at].tolist()
        params, masks = self.applied(jnp.asarray(best, jnp.int32))
        found = self.cost(best)
        if budget is not None and found > budget:
            raise AssertionError(f"amc: {found} is over the budget of {budget}")
        kept = np.asarray(self._walk.kept)[np.arange(len(best)), options]
        costs = np.array([self.cost(each) for each in options])
        accuracy = float(history.accuracies[at])
        about = {"search": "amc", "accuracy": accuracy, "cost": found, "unit": self._cost.unit}
        return AMC(
            self._plan.allocation(best, about), params, masks, accuracy, found,
            dense, self._cost.total(), budget, self._cost.unit, self._plan.names,
            History(np.asarray(history.rewards), np.asarray(history.accuracies), costs, kept),
            unfitted,
        )  # fmt: skip


def _check(inputs, lower, divisor, levels, episodes, every, budget, reward, rules, groups) -> None:
    if not isinstance(inputs, tuple) or not inputs:
        raise ValueError(f"amc: inputs={type(inputs).__name__}; a tuple such as (x,) would work")
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
    return rewards.error if reward == "error" else rewards.error_and_cost


def _accuracy(value: Any, when: str) -> float:
    """A share, or a ValueError."""
    found = np.asarray(value)
    if found.shape != () or not 0 <= float(found) <= 1:
        shown = value if found.shape == () else f"of shape {found.shape}"
        raise ValueError(
            f"amc: the accuracy {when} is {shown}; one number from 0 to 1, such as the share of "
            "examples that are right, would work"
        )
    return float(found)


def _is_traceable(fn: Callable[..., Any], *args: Any) -> bool:
    """Whether a function runs on arrays whose numbers are not known."""
    try:
        jax.eval_shape(fn, *args)
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerBoolConversionError,
        jax.errors.TracerIntegerConversionError,
    ):
        return False
    return True
