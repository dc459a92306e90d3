"""The loop of episodes: what is tried, what it is worth, what is learned of it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsparse.allocation.amc import agent as ddpg
from jaxsparse.allocation.amc.agent import DDPG, Agent, Replay
from jaxsparse.allocation.amc.environment import Environment, Episode, rollout
from jaxsparse.allocation.amc.features import STATIC
from jaxsparse.allocation.amc.plans import Plan
from jaxsparse.calibration.resuming import of_program
from jaxsparse.trees import Tree, apart, together

# Numbers in an observation: of the layer, and what the walk adds to them.
SEEN = STATIC + 3


class Tried(NamedTuple):
    """A history in which there is room for what is to come."""

    rewards: Float[Array, " episodes"]
    accuracies: Float[Array, " episodes"]
    options: Int[Array, "episodes steps"]


class State(NamedTuple):
    """All that a search goes on from."""

    agent: Agent
    replay: Replay
    history: Tried


class Loop:
    """Episodes of one search.

    Args:
      plan, walk: what is decided, and the environment of it.
      params: of the model.
      evaluate: the accuracy of parameters like these.
      reward: of an accuracy and a cost.
      base: what the model costs beside the terms of the walk.
      settings: of the agent.
      seed: of all that is random.

    Attributes:
      traced: whether `evaluate` can be, so that the loop is one compiled program.
    """

    def __init__(
        self,
        plan: Plan,
        walk: Environment,
        params: Tree,
        evaluate: Callable[[Tree], Any],
        reward: Callable[[Array, Array], Array],
        base: float,
        settings: DDPG,
        seed: int,
    ):
        self._plan, self._walk, self._settings = plan, walk, settings
        self._evaluate, self._reward, self._base = evaluate, reward, base
        self._key = jax.random.key(seed)
        self._numbers, *self._form = apart(params)
        self._apply = jax.jit(self._applied)
        self._propose = jax.jit(self._proposed)
        self._absorb = jax.jit(self._absorbed)
        self._loop = jax.jit(self._looped)
        self.traced = _is_traceable(
            lambda *given: evaluate(self._pruned(*given)), *self._given(walk.last)
        )

    def program(self) -> str | None:
        """The fingerprint of `evaluate` and its data, where it can be traced."""
        if not self.traced:
            return None
        traced = jax.make_jaxpr(lambda *given: self._evaluate(self._pruned(*given)))(
            *self._given(self._walk.last)
        )
        return of_program((traced.jaxpr, traced.consts))

    def pruned(self, options: Int[Array, " steps"]) -> tuple[Tree, dict[str, Array]]:
        """The parameters and the masks of a policy."""
        numbers, masks = self._apply(*self._given(options))
        return together(numbers, *self._form), masks

    def _given(self, options):
        # Arguments, not constants, of what is compiled.
        return self._plan.arrays, self._numbers, options

    def _applied(self, arrays, numbers, options) -> tuple[list[Any], dict[str, Array]]:
        params, masks = self._plan.applied(arrays, together(numbers, *self._form), options)
        return apart(params)[0], masks

    def _pruned(self, arrays, numbers, options) -> Tree:
        return together(self._applied(arrays, numbers, options)[0], *self._form)

    def start(self, episodes: int) -> State:
        """Before the first episode."""
        steps = self._walk.steps
        none = jnp.full(episodes, jnp.nan, jnp.float32)
        return State(
            jax.jit(ddpg.new_agent, static_argnums=(1, 2))(self._key, SEEN, self._settings),
            ddpg.new_replay(steps, SEEN, self._settings),
            Tried(none, none, jnp.zeros((episodes, steps), jnp.int32)),
        )

    def run(self, state: State, start: int, stop: int) -> State:
        """Some episodes more."""
        if self.traced:
            state = self._loop(state, self._plan.arrays, self._numbers, start, stop)
        else:
            for number in range(start, stop):
                episode = self._propose(state, number)
                pruned = self.pruned(episode.options)[0]
                accuracy = accuracy_of(self._evaluate(pruned), f"after episode {number}")
                state = self._absorb(state, number, episode, accuracy)
        tried = np.asarray(state.history.accuracies), np.asarray(state.history.rewards)
        for number in range(start, stop):
            accuracy_of(tried[0][number], f"after episode {number}")
            if np.isnan(tried[1][number]):
                raise ValueError(
                    f"amc: the reward of episode {number} is NaN, of accuracy {tried[0][number]}; "
                    "a number would work"
                )
        return state

    def _keys(self, number) -> Array:
        # Not the key of the networks' first weights.
        return jax.random.split(jax.random.fold_in(self._key, number + 1))

    def _proposed(self, state: State, number) -> Episode:
        explore = functools.partial(
            ddpg.explore, state.agent.networks.actor, episode=number, settings=self._settings
        )
        return rollout(
            self._walk, lambda seen, key: explore(observation=seen, key=key), self._keys(number)[0]
        )

    def _absorbed(self, state: State, number, episode: Episode, accuracy) -> State:
        cost = self._base + episode.cost * self._walk.tick
        accuracy = jnp.asarray(accuracy, jnp.float32)
        reward = jnp.asarray(self._reward(accuracy, cost), jnp.float32)
        replay = ddpg.remember(state.replay, episode, reward)
        keys = jax.random.split(self._keys(number)[1], self._walk.steps)

        def learned(agent):
            def step(agent, key):
                return ddpg.learn(agent, replay, key, self._settings), None

            return jax.lax.scan(step, agent, keys)[0]

        ready = number >= self._settings.warmup
        agent = jax.lax.cond(ready, learned, lambda agent: agent, state.agent)
        tried = Tried(
            state.history.rewards.at[number].set(reward),
            state.history.accuracies.at[number].set(accuracy),
            state.history.options.at[number].set(episode.options),
        )
        return State(agent, replay, tried)

    def _looped(self, state: State, arrays: Any, numbers: Any, start, stop) -> State:
        def turn(number, state):
            episode = self._proposed(state, number)
            accuracy = self._evaluate(self._pruned(arrays, numbers, episode.options))
            return self._absorbed(state, number, episode, accuracy)

        return jax.lax.fori_loop(start, stop, turn, state)


def accuracy_of(value: Any, when: str) -> float:
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
