"""Searches by what a whole model loses: SPDY's coefficients, EvoPress' switches."""

import itertools
import json
import math

import numpy as np
import pytest

from jaxsparse.allocation import Allocation, evolve, exact, search

LEVELS = [0.0, 0.25, 0.5, 0.75]
DRAW = np.random.default_rng(0)
PATHS = [f"layer{i}" for i in range(5)]
COSTS = {path: np.round((1 - np.array(LEVELS)) * n).astype(int)
         for path, n in zip(PATHS, (40, 100, 60, 24, 80), strict=True)}  # fmt: skip
TABLE = {path: np.sort(DRAW.random(4)) * [0, 1, 1, 1] for path in PATHS}
WEIGHTS = DRAW.random(5) * 4
BUDGET = 170


def true_loss(shares):
    """Some layers matter more than the table has it, and two of them together."""
    one = sum(w * TABLE[p][LEVELS.index(s)] for w, (p, s) in zip(WEIGHTS, shares, strict=True))
    return one + 3 * shares[0][1] * shares[1][1]


def evaluate(allocation):
    return true_loss(list(allocation.sparsities.items()))


def cost(allocation):
    return sum(int(COSTS[p][LEVELS.index(s)]) for p, s in allocation.sparsities.items())


def best():
    found = math.inf
    for shares in itertools.product(LEVELS, repeat=5):
        pairs = list(zip(PATHS, shares, strict=True))
        if sum(COSTS[p][LEVELS.index(s)] for p, s in pairs) <= BUDGET:
            found = min(found, true_loss(pairs))
    return found


def run(method, evaluate=evaluate, **options):
    return method(TABLE, COSTS, BUDGET, evaluate, levels=LEVELS, **options)


@pytest.mark.parametrize("method", [search, evolve])
def test_a_search_finds_what_the_table_does_not_know(method):
    start = exact(TABLE, COSTS, BUDGET, levels=LEVELS)
    found = run(method, seed=1)
    assert best() <= found.measured < evaluate(start)
    assert found.measured == evaluate(found.allocation) == found.allocation.about["measured"]
    assert cost(found.allocation) <= BUDGET
    # 1,024 assignments there are: it is near the best of all.
    assert found.measured <= best() + 0.1 * (evaluate(start) - best())
    tried = found.history
    assert tried[0].measured == evaluate(start) and tried[0].predicted == start.about["loss"]
    assert [each.best for each in tried] == list(np.minimum.accumulate([t.measured for t in tried]))
    assert json.loads(json.dumps(found.to_dict()))["measured"] == found.measured
    assert run(method, seed=1) == found != run(method, seed=2)


@pytest.mark.parametrize("method", [search, evolve])
def test_every_assignment_is_measured_once_also_over_a_kill(method, tmp_path):
    whole, seen = run(method), []

    def killed(allocation):
        if len(seen) == 9:
            raise KeyboardInterrupt
        seen.append(tuple(allocation.sparsities.values()))
        return evaluate(allocation)

    def counted(allocation):
        seen.append(tuple(allocation.sparsities.values()))
        return evaluate(allocation)

    file = tmp_path / "run" / "search.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(method, killed, file=file)
    with file.open("a") as torn:
        torn.write('{"chosen": [0, ')
    assert run(method, counted, file=file) == whole
    assert len(seen) == len(set(seen)) == whole.evaluations
    assert run(method, None, file=file) == whole  # all of it is there


def test_a_file_of_other_leaves_is_refused(tmp_path):
    file = tmp_path / "search.jsonl"
    run(search, file=file, random=1, patience=1)
    losses, costs = {"other": [0, 1]}, {"other": [2, 1]}
    with pytest.raises(ValueError, match=r"search\.jsonl: it is of other leaves or levels"):
        search(losses, costs, 2, evaluate, levels=[0.0, 0.5], file=file)
    file.write_text(file.read_text().replace("loss", "los"))
    with pytest.raises(ValueError, match=r"search\.jsonl: line 2: .* 'chosen' and 'loss'"):
        run(search, file=file, random=1, patience=1)


PAIR = {"up": [0, 1.0], "down": [0, 2.0]}, {"up": [2, 1], "down": [2, 1]}


def test_a_file_of_the_same_leaves_in_another_order_is_refused(tmp_path):
    """Its choices are by place: by another order they would be those of other leaves."""
    file, turned = tmp_path / "search.jsonl", [dict(reversed(each.items())) for each in PAIR]
    up = lambda found: found.sparsities["up"]  # noqa: E731
    assert search(*PAIR, 3, up, levels=[0.0, 0.5], random=3, patience=2, file=file).measured == 0
    with pytest.raises(ValueError, match=r"search\.jsonl: .* another order of them"):
        search(*turned, 3, up, levels=[0.0, 0.5], random=3, patience=2, file=file)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"chosen": [1, 0], "loss": NaN}', "line 2: 'loss' is nan"),
        ('{"chosen": [1, 0], "loss": -Infinity}', "line 2: 'loss' is -inf"),
        ('{"chosen": [1, 0], "loss": "1"}', "line 2: 'loss' is '1'"),
        ('{"chosen": [1], "loss": 1}', "line 2: 'chosen' is no list of 2"),
        ('{"chosen": [2, 0], "loss": 1}', "'line 2: chosen': 2 is no whole number from 0 to 1"),
        ('{"chosen": [1, 0], "loss": 1' + "0" * 400 + "}", "has 401 digits"),
        ("[1, 0]", "has not just 'chosen' and 'loss'"),
        ("[" * 100_000, "nested too deeply"),
        ("\ufeff\xff", "line 1 column"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, line, words):
    file = tmp_path / "search.jsonl"
    search(*PAIR, 3, lambda _: 0.0, levels=[0.0, 0.5], random=0, patience=1, file=file)
    file.write_bytes(file.read_bytes().splitlines(True)[0] + line.encode() + b"\n")
    with pytest.raises(ValueError, match=f"search.jsonl: .*{words}"):
        search(*PAIR, 3, lambda _: 0.0, levels=[0.0, 0.5], random=0, patience=1, file=file)


def test_evolution_goes_on_from_another_answer():
    start = run(search, random=5, patience=5).allocation
    found = run(evolve, start=start, generations=3)
    assert found.history[0].measured == evaluate(start) >= found.measured
    assert cost(found.allocation) <= BUDGET


def test_one_leaf_has_nothing_to_switch_with():
    losses, costs = {"a": [0.0, 1.0, 2.0]}, {"a": [4, 2, 1]}
    found = evolve(losses, costs, 2, lambda a: a.sparsities["a"], levels=LEVELS[:3], generations=2)
    assert found.allocation.sparsities == {"a": 0.25} and found.evaluations == 1


@pytest.mark.parametrize(
    ("method", "options", "kind", "words"),
    [
        (search, {"random": -1}, ValueError, "random=-1"),
        (search, {"share": 0.0}, ValueError, r"share=0\.0"),
        (evolve, {"offspring": 0}, ValueError, "offspring=0"),
        (search, {"evaluate": lambda a: math.nan}, ValueError, r"returned nan for {'layer0'"),
        (search, {"evaluate": lambda a: "0.5"}, TypeError, "returned '0.5'"),
        (search, {"evaluate": lambda a: np.ones(2)}, TypeError, "a loss, one number"),
        (evolve, {"start": Allocation({"layr0": 0.5})}, ValueError, "did you mean 'layer0'"),
        (evolve, {"start": Allocation({"layer0": 0.5})}, ValueError, "None of 'layer1'"),
        (evolve, {"start": Allocation(dict.fromkeys(PATHS, 0.6))}, ValueError, r"sparsity 0\.6 of"),
        (evolve, {"start": Allocation(dict.fromkeys(PATHS, 0.0))}, ValueError, "costs 304, over"),
    ],
)
def test_what_cannot_be_searched_is_refused(method, options, kind, words):
    with pytest.raises(kind, match=words):
        run(method, **options)


def test_models_that_break_are_the_worst_and_no_error():
    broken = lambda a: math.inf if a.sparsities["layer4"] else evaluate(a)  # noqa: E731
    found = run(evolve, broken, seed=3)
    assert found.allocation.sparsities["layer4"] == 0.0 and math.isfinite(found.measured)
