"""DDPG: an actor that says how much stays, and a critic that says what that is worth."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxsparse.allocation.amc.environment import Episode

# Arrays by name; optax says no more of what it returns.
Arrays = Any


@dataclasses.dataclass(frozen=True)
class DDPG:
    """Numbers of AMC's agent.

    Attributes:
      hidden: width of both layers of both networks.
      actor_rate, critic_rate: of Adam.
      tau: share by which target networks follow after each update.
      discount: of later rewards.
      batch: transitions of an update.
      replay: episodes that are remembered.
      warmup: episodes of uniform actions, without updates.
      noise: standard deviation of what is added to actions after the warm-up, cut off at 0 and 1.
      decay: of the noise from one episode to the next.
      baseline: weight of a new mean reward in the one that is subtracted.

    References:
      He et al. 2018, arXiv 1802.03494, and its code.
    """

    hidden: int = 300
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    tau: float = 0.01
    discount: float = 1.0
    batch: int = 64
    replay: int = 100
    warmup: int = 100
    noise: float = 0.5
    decay: float = 0.95
    baseline: float = 0.5

    def __post_init__(self):
        for name in ("hidden", "batch", "replay"):
            if getattr(self, name) < 1:
                raise ValueError(f"amc: {name}={getattr(self, name)}; 1 or more would work")
        if self.warmup < 0:
            raise ValueError(f"amc: warmup={self.warmup}; 0 or more would work")
        for name in ("actor_rate", "critic_rate", "noise"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"amc: {name}={getattr(self, name)}; above 0 would work")
        for name in ("tau", "discount", "decay", "baseline"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"amc: {name}={getattr(self, name)}; in (0, 1] would work")


class Networks(NamedTuple):
    """An actor and a critic, or what belongs to each."""

    actor: Arrays
    critic: Arrays


class Agent(NamedTuple):
    """All that learning changes but the replay.

    Attributes:
      networks: in use.
      targets: those that follow.
      moments: of both optimizers.
      baseline: mean reward so far, NaN before the first update.
    """

    networks: Networks
    targets: Networks
    moments: tuple[optax.OptState, ...]
    baseline: Float[Array, ""]


class Replay(NamedTuple):
    """The last episodes, step by step; the oldest make room.

    Attributes:
      observations, actions, rewards: of every step; all steps of an episode have its reward.
      following: the observation after it, the last one's own.
      final: 1 for the last step of an episode.
      count: steps seen so far.
    """

    observations: Float[Array, "steps features"]
    actions: Float[Array, " steps"]
    rewards: Float[Array, " steps"]
    following: Float[Array, "steps features"]
    final: Float[Array, " steps"]
    count: Int[Array, ""]


def new_agent(key: Array, features: int, settings: DDPG) -> Agent:
    """Networks before any update: uniform weights within 1 / sqrt(inputs)."""
    keys = iter(jax.random.split(key, 14))
    width = settings.hidden

    def layer(name, inputs, outputs):
        limit = inputs**-0.5
        uniform = functools.partial(
            jax.random.uniform, dtype=jnp.float32, minval=-limit, maxval=limit
        )
        kernel, bias = uniform(next(keys), (inputs, outputs)), uniform(next(keys), (outputs,))
        return {f"{name}/kernel": kernel, f"{name}/bias": bias}

    actor = layer("first", features, width) | layer("second", width, width)
    actor |= layer("last", width, 1)
    critic = layer("observation", features, width) | layer("action", 1, width)
    critic |= layer("second", width, width) | layer("last", width, 1)
    networks = Networks(actor, critic)
    moments = tuple(o.init(w) for o, w in zip(_optimizers(settings), networks, strict=True))
    # Copied, so that a program may write over either.
    targets = jax.tree.map(jnp.copy, networks)
    return Agent(networks, targets, moments, jnp.float32(jnp.nan))


def act(actor: Arrays, observations: Float[Array, "*b f"]) -> Float[Array, "*b"]:
    """The fraction that stays, in (0, 1)."""
    hidden = jax.nn.relu(_layer(actor, "first", observations))
    hidden = jax.nn.relu(_layer(actor, "second", hidden))
    return jax.nn.sigmoid(_layer(actor, "last", hidden))[..., 0]


def value(
    critic: Arrays, observations: Float[Array, "*b f"], actions: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """What is expected of actions."""
    hidden = _layer(critic, "observation", observations)
    hidden = jax.nn.relu(hidden + _layer(critic, "action", actions[..., None]))
    hidden = jax.nn.relu(_layer(critic, "second", hidden))
    return _layer(critic, "last", hidden)[..., 0]


def explore(
    actor: Arrays,
    observation: Float[Array, " f"],
    key: Array,
    episode: Int[Array, ""],
    settings: DDPG,
) -> Float[Array, ""]:
    """An action to try: uniform in the warm-up, then a normal one around the actor's, cut off."""
    mean = act(actor, observation)
    after = jnp.maximum(episode - settings.warmup, 0)
    spread = settings.noise * jnp.float32(settings.decay) ** after
    spread = jnp.maximum(spread, 1e-6)  # what is divided by
    beside = jax.random.truncated_normal(key, -mean / spread, (1 - mean) / spread)
    near = jnp.clip(mean + spread * beside, 0, 1)
    return jnp.where(episode < settings.warmup, jax.random.uniform(key, dtype=jnp.float32), near)


def new_replay(steps: int, features: int, settings: DDPG) -> Replay:
    """Room for the last episodes."""
    size = settings.replay * steps
    one = jnp.zeros(size, jnp.float32)
    many = jnp.zeros((size, features), jnp.float32)
    return Replay(many, one, one, many, one, jnp.int32(0))


def remember(replay: Replay, episode: Episode, reward: Float[Array, ""]) -> Replay:
    """A replay with one episode more."""
    steps, size = len(episode.actions), len(replay.actions)
    following = jnp.concatenate([episode.observations[1:], episode.observations[-1:]])
    final = jnp.zeros(steps, jnp.float32).at[-1].set(1)
    rewards = jnp.full(steps, reward, jnp.float32)
    new = episode.observations, episode.actions, rewards, following, final
    at, held = replay.count % size, replay[:-1]
    held = [
        lax.dynamic_update_slice_in_dim(old, part, at, 0)
        for old, part in zip(held, new, strict=True)
    ]
    return Replay(*held, count=replay.count + steps)


def learn(agent: Agent, replay: Replay, key: Array, settings: DDPG) -> Agent:
    """One update of critic and actor by a batch, after which the targets follow.

    The critic comes nearer to r - b + discount Q'(s', actor'(s')), the second part not after the
    last step, with b the baseline; the actor goes up the critic's slope.
    """
    limit = jnp.minimum(replay.count, len(replay.actions))
    drawn = jax.random.randint(key, (settings.batch,), 0, limit)
    seen, done, rewards, following, final = (part[drawn] for part in replay[:-1])
    mean = jnp.mean(rewards)
    moved = agent.baseline + settings.baseline * (mean - agent.baseline)
    baseline = jnp.where(jnp.isnan(agent.baseline), mean, moved)
    actor, critic = agent.networks
    later = value(agent.targets.critic, following, act(agent.targets.actor, following))
    wanted = rewards - baseline + settings.discount * (1 - final) * later
    optimizers = _optimizers(settings)

    def miss(critic):
        return jnp.mean((value(critic, seen, done) - wanted) ** 2)

    change, critic_moments = optimizers[1].update(jax.grad(miss)(critic), agent.moments[1])
    critic = optax.apply_updates(critic, change)

    def worth(actor):
        return -jnp.mean(value(critic, seen, act(actor, seen)))

    change, actor_moments = optimizers[0].update(jax.grad(worth)(actor), agent.moments[0])
    networks = Networks(optax.apply_updates(actor, change), critic)
    targets: Any = optax.incremental_update(networks, agent.targets, settings.tau)
    return Agent(networks, targets, (actor_moments, critic_moments), baseline)


def _optimizers(settings: DDPG) -> tuple[optax.GradientTransformation, ...]:
    return optax.adam(settings.actor_rate), optax.adam(settings.critic_rate)


def _layer(weights: Arrays, name: str, x: Array) -> Array:
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]
