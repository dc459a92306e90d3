"""The exact program against all choices there are, and against the original's."""

import itertools
import json
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsparse.allocation import exact
from jaxsparse.allocation.solving import solve
from jaxsparse.allocation.tables import table

CASES = json.loads((pathlib.Path(__file__).parents[1] / "cases" / "spdy.json").read_text())
LEVELS = [0.0, 0.5, 0.75, 0.9]


def all_choices(losses, costs, pairs=None):
    """Loss, cost and options of every choice."""
    for chosen in itertools.product(*(range(len(loss)) for loss in losses)):
        loss = sum(loss[k] for loss, k in zip(losses, chosen, strict=True))
        cost = sum(paid[k] for paid, k in zip(costs, chosen, strict=True))
        for at in range(1, len(chosen)):
            if pairs is not None and pairs[at] is not None:
                cost += pairs[at][chosen[at - 1], chosen[at]]
        yield loss, cost, chosen


@st.composite
def problems(draw):
    """Variables of up to four options, some with costs that depend on the one before."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))

    def array(shape, high):
        size = math.prod(shape)
        drawn = draw(st.lists(st.integers(0, high), min_size=size, max_size=size))
        return np.array(drawn).reshape(shape)

    scale = draw(st.sampled_from([1.0, 1 / 3, 1e-7]))
    losses = [array((n,), 12) * scale for n in sizes]
    costs = [array((n,), 30) for n in sizes]
    pairs = [array(ends, 20) if draw(st.booleans()) else None for ends in itertools.pairwise(sizes)]
    return losses, costs, [None, *pairs], draw(st.integers(0, 120))


@settings(deadline=None, max_examples=200)
@given(problems())
def test_no_choice_is_better(problem):
    losses, costs, pairs, budget = problem
    within = [(loss, cost) for loss, cost, _ in all_choices(losses, costs, pairs) if cost <= budget]
    if not within:
        with pytest.raises(ValueError, match="cheapest options cost"):
            solve(losses, costs, budget, pairs)
        return
    found = solve(losses, costs, budget, pairs)
    best = min(loss for loss, _ in within)
    assert found.loss == pytest.approx(best, rel=1e-12) and found.proved
    assert (found.loss, found.cost) in [
        (loss, cost) for loss, cost, chosen in all_choices(losses, costs, pairs)
        if chosen == found.chosen
    ]  # fmt: skip
    assert found.cost <= budget
    # With room for two partial choices it may miss the best one, and says by how much at most.
    small = solve(losses, costs, budget, pairs, limit=2)
    assert small.cost <= budget
    assert small.bound <= best * (1 + 1e-12) <= small.loss * (1 + 1e-11)


def test_a_limit_that_cuts_the_best_off_proves_nothing():
    sizes = np.random.RandomState(0).randint(10**6, 10**7, 40)  # a sum of some of them
    found = solve(
        [np.array([0.0, -n]) for n in sizes], [np.array([0, n]) for n in sizes], 10**8, limit=64
    )
    assert found.cost == -found.loss <= 10**8
    assert not found.proved and -(10**8) * (1 + 1e-9) < found.bound < found.loss < -99_990_000


def case_table(case):
    space = {"numpy": np}
    exec(case["inputs"]["generator"], space)
    errors, times = eval(case["inputs"]["call"], space)
    paths = [f"layer{i}" for i in range(len(errors))]
    levels = np.linspace(0, 0.9, errors.shape[1]).tolist()
    return (
        dict(zip(paths, errors, strict=True)),
        dict(zip(paths, times, strict=True)),
        case["inputs"]["time_budget"],
        levels,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_it_finds_what_the_original_finds(case):
    losses, costs, budget, levels = case_table(case)
    expected = case["expected"]
    for buckets in (None, case["inputs"]["buckets"]):
        found = exact(losses, costs, budget, levels=levels, buckets=buckets)
        assert found.about["loss"] == expected["error"] == expected["optimum_error"]
        assert found.about["cost"] == expected["time"] and found.about["proved"]
    chosen = tuple(expected["solution_of_original"])
    assert list(found.sparsities.values()) == [levels[k] for k in chosen]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_coarse_buckets_are_rounded_up_and_hold_the_budget(case):
    losses, costs, budget, levels = case_table(case)
    coarse = case["expected"]["with_coarse_buckets"]
    assert coarse["over_budget"] and coarse["true_time"] > budget
    found = exact(losses, costs, budget, levels=levels, buckets=coarse["buckets"])
    assert found.about["cost"] <= budget and not found.about["proved"]
    up = [np.ceil(np.array(times) * coarse["buckets"] / budget) for times in costs.values()]
    fits = (
        loss
        for loss, cost, _ in all_choices(list(losses.values()), up)
        if cost <= coarse["buckets"]
    )
    assert found.about["loss"] == min(fits)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4), min_size=1, max_size=4),
    st.floats(0.1, 1.0),
    st.sampled_from([None, 7]),
)
def test_a_budget_of_times_holds_to_the_last_bit(times, share, buckets):
    costs = {f"layer{i}": each for i, each in enumerate(times)}
    losses = {path: [0.0, 1.0 + i, 3.0, 7.0] for i, path in enumerate(costs)}
    budget = share * sum(map(max, times)) * (2 if buckets else 1)
    try:
        found = exact(losses, costs, budget, levels=LEVELS, buckets=buckets)
    except ValueError as error:
        assert "out of reach" in str(error)
        assert buckets or math.fsum(map(min, times)) > budget
        return
    paid = [costs[path][LEVELS.index(share)] for path, share in found.sparsities.items()]
    assert math.fsum(paid) == found.about["cost"] <= budget
    if not buckets:
        assert found.about["loss"] == least_within(losses, costs, budget)
        assert found.about["proved"]


def least_within(losses, costs, budget):
    """The least loss of all choices whose costs, added up and then rounded, keep a budget."""
    choices = itertools.product(*(range(len(loss)) for loss in losses.values()))
    return min(
        sum(loss[k] for loss, k in zip(losses.values(), chosen, strict=True))
        for chosen in choices
        if math.fsum(paid[k] for paid, k in zip(costs.values(), chosen, strict=True)) <= budget
    )


TIMES = {
    "tenths": st.integers(0, 20).map(lambda n: n / 10),
    "last places": st.integers(0, 5).map(lambda n: 1 + n * 2**-52),
    "any": st.floats(1e-9, 1e9),
}


def test_a_sum_that_rounds_up_over_the_budget_is_no_bound():
    one = 1 + 3 * 2**-52  # and a last place more: half-way between two numbers
    costs, losses = {"a": [one], "b": [one + 2**-52, one]}, {"a": [0], "b": [0, 1]}
    levels = {"a": LEVELS[:1], "b": LEVELS[:2]}
    found = exact(losses, costs, math.fsum([one, one]), levels=levels)
    assert found.about["loss"] == 1 and found.about["proved"]


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(sorted(TIMES)))
def test_a_budget_that_is_what_some_choice_costs_pays_for_it(data, kind):
    """So the cheapest is never out of reach of its own cost, nor the dense one of its own."""
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    costs = {
        f"layer{i}": data.draw(st.lists(TIMES[kind], min_size=size, max_size=size))
        for i, size in enumerate(sizes)
    }
    losses = {path: data.draw(st.permutations(range(len(costs[path])))) for path in costs}
    chosen = [data.draw(st.sampled_from(each)) for each in costs.values()]
    levels = {path: LEVELS[: len(each)] for path, each in costs.items()}
    found = exact(losses, costs, math.fsum(chosen), levels=levels)
    assert found.about["cost"] <= math.fsum(chosen) and found.about["proved"]
    assert found.about["loss"] == least_within(losses, costs, math.fsum(chosen))


def test_large_whole_costs_are_solved_exactly_or_nothing_is_proved():
    for size, proved in ((2**57, True), (2**61, False)):
        costs = {"a": [size + 1, size - 1], "b": [size, size - 1], "c": [2 * size, 5]}
        losses = {"a": [0, 2], "b": [0, 1], "c": [0, 7]}
        budget = 4 * size + 1
        assert exact(losses, costs, budget, levels=[0.0, 0.5]).about["loss"] == 0
        found = exact(losses, costs, budget - 1, levels=[0.0, 0.5])
        assert found.about["proved"] == proved and found.about["cost"] < budget
        assert found.about["loss"] == 1 if proved else found.about["bound"] <= 1


class Program:
    """Multiplications of two leaves, and of both together where `joint` is not 0."""

    unit = "MACs"

    def __init__(self, joint=0):
        self.joint = joint

    def total(self, widths=None, densities=None):
        up, down = (
            round(size * (densities or {}).get(path, 1))
            for path, size in (("up", 1000), ("down", 200))
        )
        return 50 + up + down + self.joint * max(up, down)


def test_a_cost_is_asked_for_the_whole_program():
    losses = {"up": [0.0, 1.0, 2.0, 9.0], "down": [0.0, 5.0, 6.0, 7.0]}
    found = exact(losses, Program(), 550, levels=LEVELS)
    assert found.sparsities == {"up": 0.75, "down": 0.0}
    assert found.about == {"by": "exact", "loss": 2.0, "cost": 500, "budget": 550,
                           "unit": "MACs", "proved": True}  # fmt: skip
    assert exact(losses, Program(), 1250, levels=LEVELS).about["loss"] == 0
    with pytest.raises(ValueError, match=r"budget=169 is out of reach: .* 170 is left"):
        exact(losses, Program(), 169, levels=LEVELS)


def test_a_cost_that_does_not_add_up_is_held_and_proves_nothing():
    losses = {"up": [0.0, 1.0, 2.0, 9.0], "down": [0.0, 5.0, 6.0, 7.0]}
    for budget in range(280, 2250, 77):
        found = exact(losses, Program(joint=1), budget, levels=LEVELS)
        shares = {path: 1 - share for path, share in found.sparsities.items()}
        assert Program(joint=1).total(densities=shares) == found.about["cost"] <= budget
        assert not found.about["proved"]


def test_levels_may_differ_and_infinite_losses_forbid_some():
    losses = {"up": [0.0, math.inf], "down": [0.0, 3.0, 4.0]}
    costs = {"up": [4, 1], "down": [4, 2, 1]}
    found = exact(losses, costs, 6, levels={"up": [0.0, 0.9], "down": [0.0, 0.5, 0.75]})
    assert found.sparsities == {"up": 0.0, "down": 0.5}
    with pytest.raises(ValueError, match=r"budget=4 is out of reach: .* 5 is left"):
        exact(losses, costs, 4, levels={"up": [0.0, 0.9], "down": [0.0, 0.5, 0.75]})


def test_factors_weigh_the_losses_of_leaves():
    problem = table({"a": [0, 1.0], "b": [0, 2.0]}, {"a": [2, 1], "b": [2, 1]}, 3, [0.0, 0.5])
    assert problem.solve().chosen == (1, 0)
    assert problem.solve([1.0, 0.1]).chosen == (0, 1)


GOOD = {"losses": {"a": [0.0, 1.0]}, "costs": {"a": [2, 1]}, "budget": 2, "levels": [0.0, 0.5]}


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"losses": {}}, ValueError, "losses is {}"),
        ({"losses": {"a": [0.0, math.nan]}}, ValueError, r"losses\['a'\] = .* has NaN"),
        ({"losses": {"a": [0.0]}}, ValueError, r"losses\['a'\] of shape \(1,\)"),
        ({"losses": {"a": ["0", "1"]}}, ValueError, r"losses\['a'\] .* dtype <U1"),
        ({"losses": {"a": [math.inf] * 2}}, ValueError, r"losses\['a'\] are infinite at every"),
        ({"costs": {"b": [2, 1]}}, ValueError, "costs of 'b', but no losses; known: 'a'"),
        ({"costs": {}}, ValueError, "losses of 'a', but no costs"),
        ({"costs": {"a": [2, math.inf]}}, ValueError, r"costs\['a'\] = .* finite"),
        ({"costs": [2, 1]}, TypeError, "costs is list"),
        ({"levels": [0.0, 1.0]}, ValueError, "levels of 'a': sparsity 1.0 is not in"),
        ({"levels": [0.5, 0.5]}, ValueError, "each once"),
        ({"levels": {"b": [0.0, 0.5]}}, ValueError, "no levels of 'a'; known: 'b'"),
        ({"budget": 0.5}, ValueError, "budget=0.5 is out of reach"),
        ({"budget": math.nan}, ValueError, "budget is nan"),
        ({"budget": "2"}, TypeError, "budget is '2'"),
        ({"buckets": 0}, ValueError, "buckets=0"),
        ({"buckets": 4, "costs": Program(), "losses": {"up": [0, 1]}}, ValueError, "need a table"),
    ],
)
def test_what_is_no_problem_is_refused(change, kind, words):
    with pytest.raises(kind, match=words):
        exact(**(GOOD | change))
