"""The walk of AMC: cases of the original code, and a budget that no episode leaves."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.allocation.amc import environment as walks
from jaxsparse.allocation.amc import rewards
from jaxsparse.allocation.amc.environment import Term, environment, rollout

FILE = pathlib.Path(__file__).parents[1] / "cases/amc.json"
CASES = {case["id"]: case for case in json.loads(FILE.read_text())["cases"]}
FACTS = CASES["amc_mobilenet_v1_facts"]["expected"]
ROLLOUTS = [name for name in CASES if name.startswith("amc_rollout")]
CHANNELS = np.array(FACTS["prunable_in_channels"])
NEAR = 1e-6


def walk(options, *, share=0.5):
    """MobileNetV1 whose layers keep fractions of their inputs."""
    layers = len(CHANNELS)
    terms = [Term((), np.array(0))]
    for layer, (macs, before) in enumerate(
        zip(FACTS["prunable_flops"], FACTS["buffer_flops_before_layer"], strict=True)
    ):
        mine = np.array(options[layer])
        terms.append(Term((layer,), before * mine))
        if layer + 1 < layers:
            terms.append(Term((layer, layer + 1), macs * np.outer(mine, options[layer + 1])))
        else:
            terms.append(Term((layer,), macs * mine))
    return environment(options, terms, share * FACTS["total_flops"], np.eye(layers))


def played(case, actions, beside):
    """The walk with options that are a case's own, beside those within 1e-6 of its clips."""
    options = [np.array([1.0])]
    for layer in range(1, len(CHANNELS)):
        found = {0.2, max(actions[layer], 0.2), 1.0, *beside[layer]}
        for clip in case["expected"][
            "clip_without_rounding" if beside is NONE else "actions_after_clip"
        ][layer : layer + 1]:
            if clip not in found:
                found |= {clip * (1 - NEAR), clip * (1 + NEAR)}
        options.append(np.array(sorted(found)))
    # As many of the first layer, which is never clipped, that all cases are one program.
    options[1] = np.array(sorted({*options[1], *(0.2 + 1e-4 * np.arange(8 - len(options[1])))}))
    return walk(options)


@jax.jit
def play(env, actions):
    """The episode of given actions; the observation names the layer."""
    act = lambda seen, key: actions[jnp.argmax(seen[: env.steps])]  # noqa: E731
    return rollout(env, act, jax.random.key(0))


@jax.jit
def uniform(env):
    """1,000 random episodes."""
    act = lambda seen, key: jax.random.uniform(key)  # noqa: E731
    return jax.vmap(lambda key: rollout(env, act, key))(jax.random.split(jax.random.key(1), 1000))


cost, clipped = jax.jit(walks.cost), jax.jit(walks.clipped)


NONE = [()] * len(CHANNELS)


@pytest.mark.parametrize("name", ROLLOUTS)
def test_the_clip_is_that_of_the_original_code(name):
    case = CASES[name]
    actions = jnp.array(case["inputs"]["actions"])
    env = played(case, case["inputs"]["actions"], NONE)
    episode = play(env, actions)
    wanted = np.array(case["expected"]["clip_without_rounding"])
    assert wanted.min() < 0.9
    np.testing.assert_allclose(episode.actions, wanted, rtol=1.2e-6)
    found = episode.cost * env.tick / FACTS["total_flops"]
    expected = case["expected"]["flops_ratio_without_rounding"]
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert episode.cost <= env.ticks


@pytest.mark.parametrize("name", ROLLOUTS)
def test_rounding_up_after_the_clip_is_what_breaks_the_original_budget(name):
    case = CASES[name]
    actions, expected = case["inputs"]["actions"], case["expected"]
    rounded = expected["ratios_after_rounding"]
    env = played(case, actions, [(ratio,) for ratio in rounded])
    options, costs = jnp.zeros(15, jnp.int32), []
    for layer, channels in enumerate(CHANNELS):
        costs.append(cost(env, options))
        option = clipped(env, layer, options, jnp.float32(actions[layer]))
        clip = float(env.kept[layer, option])
        np.testing.assert_allclose(clip, expected["actions_after_clip"][layer], rtol=1.2e-6)
        kept = min(-(-round(clip * channels) // 8) * 8, channels)
        assert kept == expected["channels"][layer]
        option = np.argmin(abs(env.kept[layer] - rounded[layer]))
        options = options.at[layer].set(option)
    np.testing.assert_allclose(cost(env, options) * env.tick, expected["final_flops"], rtol=1e-6)
    # What the original's state calls reduced, later layers being at their lower bounds.
    reduced = 1 - np.array(costs) * float(env.tick) / FACTS["total_flops"]
    states = np.array(expected["states"])
    np.testing.assert_allclose(reduced[1:], states[1:, 7], atol=2e-6)


def widths(divisor, lower=0.2):
    """Multiples from a lower bound on."""
    return [
        np.array([c])
        if c == 3
        else np.unique([*range(-(-int(np.ceil(lower * c)) // divisor) * divisor, c, divisor), c])
        for c in CHANNELS
    ]


def counted(options):
    """Terms of whole numbers, and the same sum from widths."""
    layers, terms = len(CHANNELS), []
    ends = [*CHANNELS[1:], 1000]
    for layer, (macs, before) in enumerate(
        zip(FACTS["prunable_flops"], FACTS["buffer_flops_before_layer"], strict=True)
    ):
        mine, size = options[layer], CHANNELS[layer]
        terms.append(Term((layer,), before // size * mine))
        each = macs // (size * ends[layer])
        if layer + 1 < layers:
            terms.append(Term((layer, layer + 1), each * np.outer(mine, options[layer + 1])))
        else:
            terms.append(Term((layer,), each * 1000 * mine))
    terms.append(Term((), np.array(1000)))

    def total(chosen):
        follow = [*chosen[1:], 1000]
        found = 1000
        for layer, (macs, before) in enumerate(
            zip(FACTS["prunable_flops"], FACTS["buffer_flops_before_layer"], strict=True)
        ):
            found += before // int(CHANNELS[layer]) * int(chosen[layer])
            each = macs // int(CHANNELS[layer] * ends[layer])
            found += each * int(chosen[layer]) * int(follow[layer])
        return found

    return terms, total


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_no_episode_costs_one_multiplication_more(share):
    options = widths(8)
    terms, total = counted(options)
    assert total([*CHANNELS]) == FACTS["total_flops"]
    budget = int(share * FACTS["total_flops"])
    kept = [found / c for found, c in zip(options, CHANNELS, strict=True)]
    env = environment(kept, terms, budget, np.eye(15))
    episodes = uniform(env)
    costs = [
        total([options[layer][at] for layer, at in enumerate(chosen)])
        for chosen in np.asarray(episodes.options)
    ]
    assert max(costs) <= budget
    # Costs in ticks are the real ones, and the budget is used.
    np.testing.assert_array_equal(1000 + np.array(episodes.cost) * int(env.tick), costs)
    always = play(env, jnp.ones(15))
    assert 1000 + int(always.cost) * int(env.tick) > 0.995 * budget


def test_an_option_more_at_any_step_would_pass_the_budget_or_the_action():
    options = widths(8)
    terms, _ = counted(options)
    kept = [found / c for found, c in zip(options, CHANNELS, strict=True)]
    env = environment(kept, terms, int(0.4 * FACTS["total_flops"]), np.eye(15))
    wanted = jax.random.uniform(jax.random.key(3), (15,), minval=0.6)
    episode = play(env, wanted)
    clips = 0
    for layer in range(1, 15):
        before = jnp.where(jnp.arange(15) < layer, episode.options, 0)
        option = int(episode.options[layer])
        if option == len(options[layer]) - 1:
            continue
        more = cost(env, before.at[layer].set(option + 1)) > env.ticks
        over = kept[layer][option + 1] > wanted[layer]
        assert more or over
        clips += int(more and not over)
    assert clips


def test_costs_that_are_no_whole_numbers_are_rounded_up():
    kept = [np.array([0.25, 0.5, 1.0])] * 3
    rng = np.random.default_rng(0)
    tables = [np.sort(rng.random(3)) for _ in range(3)]
    terms = [Term((step,), table) for step, table in enumerate(tables)]
    budget = float(sum(table[1] for table in tables))
    env = environment(kept, terms, budget, np.eye(3))
    for chosen in np.asarray(uniform(env).options):
        assert sum(table[at] for table, at in zip(tables, chosen, strict=True)) <= budget
    whole = environment(kept, terms, float(sum(t[-1] for t in tables)), np.eye(3))
    always = play(whole, jnp.ones(3))
    assert always.options.tolist() == [2, 2, 2]


def test_a_budget_below_the_lower_bounds_is_refused():
    kept = [np.array([0.5, 1.0])]
    with pytest.raises(ValueError, match=r"a budget of 4 is out of reach.*5 of 10 are left"):
        environment(kept, [Term((0,), np.array([5, 10]))], 4, np.zeros((1, 1)))


def test_the_state_counts_what_went_and_what_is_to_come():
    kept = [np.array([0.5, 1.0])] * 3
    terms = [Term((step,), np.array([2, 4])) for step in range(3)]
    env = environment(
        kept, terms, 100, np.array([[0, 5], [1, 5], [4, 5]]), np.array([1.0, 1.0, 2.0])
    )
    episode = rollout(env, lambda seen, key: 0.7, jax.random.key(0))
    np.testing.assert_allclose(
        episode.observations,
        [[0, 0, 0, 0.75, 1], [0.25, 0, 1 / 6, 0.5, 0.5], [1, 0, 1 / 3, 0, 0.5]],
        rtol=1e-6,
    )


def test_rewards_are_those_of_the_original_code():
    case = CASES["amc_rewards"]
    accuracies, flops = np.array(case["inputs"]["acc_flops"]).T
    found = [rewards.error(a / 100, f) for a, f in zip(accuracies, flops, strict=True)]
    # The original's is the accuracy: one more, which no comparison and no baseline sees.
    np.testing.assert_allclose(np.array(found) + 1, case["expected"]["acc_reward"], atol=1e-7)
    found = [rewards.error_and_cost(a / 100, f) for a, f in zip(accuracies, flops, strict=True)]
    np.testing.assert_allclose(found, case["expected"]["acc_flops_reward"], rtol=1e-6)
