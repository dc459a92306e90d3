"""DDPG: its targets, its noise, its memory, and that it finds what is rewarded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.allocation.amc import agent as ddpg
from jaxsparse.allocation.amc.agent import DDPG
from jaxsparse.allocation.amc.environment import Episode

SMALL = DDPG(hidden=8, batch=16, replay=3, warmup=2)
new_agent = jax.jit(ddpg.new_agent, static_argnums=(1, 2))
learn = jax.jit(ddpg.learn, static_argnums=3)
remember = jax.jit(ddpg.remember)


def episode(number, steps=2, features=3):
    rows = number + jnp.arange(steps * features, dtype=jnp.float32).reshape(steps, features) / 10
    return Episode(rows, rows[:, 0], jnp.zeros(steps, jnp.int32), jnp.int32(0))


def test_networks_are_the_published_ones():
    agent = new_agent(jax.random.key(0), 11, DDPG())
    sizes = {name: w.shape for name, w in agent.networks.actor.items() if "kernel" in name}
    assert sizes == {
        "first/kernel": (11, 300),
        "second/kernel": (300, 300),
        "last/kernel": (300, 1),
    }
    sizes = {name: w.shape for name, w in agent.networks.critic.items() if "kernel" in name}
    assert sizes == {
        "observation/kernel": (11, 300),
        "action/kernel": (1, 300),
        "second/kernel": (300, 300),
        "last/kernel": (300, 1),
    }
    actions = ddpg.act(agent.networks.actor, jax.random.normal(jax.random.key(1), (5, 11)))
    assert ((actions > 0) & (actions < 1)).all()


def test_the_replay_forgets_the_oldest_episode():
    replay = ddpg.new_replay(2, 3, SMALL)
    for number in range(4):
        replay = remember(replay, episode(number), jnp.float32(number))
    assert replay.count == 8
    assert replay.rewards.tolist() == [3, 3, 1, 1, 2, 2]
    assert replay.final.tolist() == [0, 1] * 3
    np.testing.assert_array_equal(replay.observations[2:4], episode(1).observations)
    np.testing.assert_array_equal(replay.following[2], episode(1).observations[1])
    np.testing.assert_array_equal(replay.following[3], episode(1).observations[1])


def test_actions_are_uniform_at_first_then_near_the_actors():
    agent = new_agent(jax.random.key(0), 3, SMALL)
    seen = jnp.ones(3)
    mean = ddpg.act(agent.networks.actor, seen)

    @functools.partial(jax.jit, static_argnums=0)
    def tried(settings, number):
        keys = jax.random.split(jax.random.key(7), 4000)
        return jax.vmap(lambda k: ddpg.explore(agent.networks.actor, seen, k, number, settings))(
            keys
        )

    first, near, late, last = (np.asarray(tried(SMALL, n)) for n in (1, 2, 50, 10_000))
    assert abs(first.mean() - 0.5) < 0.02
    assert abs(first.var() - 1 / 12) < 0.01
    assert near.min() >= 0
    assert near.max() <= 1
    # A normal of 0.5 within [0, 1] is nearly uniform; later it is as wide as it says.
    assert 0.2 < near.std() < 0.29
    np.testing.assert_allclose(late.std(), 0.5 * 0.95**48, rtol=0.05)
    np.testing.assert_allclose(late.mean(), mean, atol=0.005)
    np.testing.assert_allclose(last, mean, atol=1e-4)


def test_the_baseline_goes_half_the_way_to_each_mean():
    agent = new_agent(jax.random.key(0), 3, SMALL)
    replay = remember(ddpg.new_replay(2, 3, SMALL), episode(0), jnp.float32(-2))
    agent = learn(agent, replay, jax.random.key(1), SMALL)
    assert agent.baseline == -2
    replay = replay._replace(rewards=jnp.full(6, 4.0))
    agent = learn(agent, replay, jax.random.key(1), SMALL)
    assert agent.baseline == 1


def test_targets_follow():
    agent = new_agent(jax.random.key(0), 3, SMALL)
    replay = remember(ddpg.new_replay(2, 3, SMALL), episode(0), jnp.float32(-1))
    after = learn(agent, replay, jax.random.key(1), SMALL)
    for before, target, new in zip(
        *map(jax.tree.leaves, (agent.networks, after.targets, after.networks)), strict=True
    ):
        np.testing.assert_allclose(target, before + 0.01 * (new - before), rtol=1e-5, atol=1e-8)
    assert not jnp.array_equal(
        after.networks.actor["last/kernel"], agent.networks.actor["last/kernel"]
    )


@pytest.mark.slow
def test_it_finds_what_is_rewarded():
    """One step, and a reward that is largest at 0.7."""
    settings = DDPG(hidden=32, actor_rate=1e-3, critic_rate=1e-2, warmup=50, decay=0.99)
    agent = new_agent(jax.random.key(0), 2, settings)
    seen = jnp.ones((1, 2))

    def turn(state, number):
        agent, replay = state
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), number))
        action = ddpg.explore(agent.networks.actor, seen[0], keys[0], number, settings)
        done = Episode(seen, action[None], jnp.zeros(1, jnp.int32), jnp.int32(0))
        replay = ddpg.remember(replay, done, -10 * (action - 0.7) ** 2)
        new = ddpg.learn(agent, replay, keys[1], settings)
        agent = jax.tree.map(lambda a, b: jnp.where(number < settings.warmup, a, b), agent, new)
        return (agent, replay), action

    assert abs(float(ddpg.act(agent.networks.actor, seen[0])) - 0.7) > 0.15
    start = agent, ddpg.new_replay(1, 2, settings)
    (agent, _), _ = jax.jit(lambda s: jax.lax.scan(turn, s, jnp.arange(500)))(start)
    assert abs(float(ddpg.act(agent.networks.actor, seen[0])) - 0.7) < 0.1


@pytest.mark.parametrize(
    "wrong", [{"hidden": 0}, {"warmup": -1}, {"tau": 0.0}, {"noise": 0.0}, {"decay": 1.5}]
)
def test_numbers_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"amc: {name}="):
        DDPG(**wrong)
