"""What a search found as a distribution, and as a file."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.allocation import Allocation
from jaxsparse.calibration import prune_oneshot

PARAMS = {"up": jnp.arange(1.0, 33).reshape(4, 8), "down": jnp.arange(1.0, 33).reshape(8, 4)}
ALL = [js.Rule(".*", js.Unstructured())]
FOUND = Allocation({"up": 0.75, "down": 0.25}, {"up, down": 6}, {"method": "by hand", "loss": 1.5})


def model(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


def kept(masks):
    return {path: int(np.sum(mask)) for path, mask in masks.items()}


def test_masks_have_the_sparsities_of_the_allocation():
    assert js.targets(ALL, PARAMS, distribution=FOUND) == {"up": 0.75, "down": 0.25}
    wanted = {"up": 8, "down": 24}
    assert kept(js.compute_masks(PARAMS, ALL, distribution=FOUND)) == wanted
    x = jax.random.normal(jax.random.key(0), (16, 4))
    assert kept(prune_oneshot(model, PARAMS, [x], ALL, distribution=FOUND).masks) == wanted
    tx = js.prune(ALL, schedule=js.linear(begin=0, end=2, every=1), distribution=FOUND)
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(PARAMS, state, PARAMS)
    assert kept(js.masks(state)) == wanted


def test_a_sparsity_beside_it_has_to_be_its_own():
    assert js.targets(ALL, PARAMS, 0.5, FOUND) == {"up": 0.75, "down": 0.25}
    with pytest.raises(ValueError, match=r"sparsity=0\.6 .* together have 0\.5"):
        js.targets(ALL, PARAMS, 0.6, FOUND)
    with pytest.raises(ValueError, match="sparsity=nan"):
        js.targets(ALL, PARAMS, float("nan"), FOUND)


def test_rules_with_a_sparsity_of_their_own_come_first():
    rules = [js.Rule("up", js.NM(2, 4), in_axis=0), js.Rule("down", js.Unstructured(), 0.25)]
    assert js.targets(rules, PARAMS, distribution=Allocation()) == {"up": 0.5, "down": 0.25}
    agrees = Allocation({"down": 0.25, "up": 0.5})
    assert js.targets(rules, PARAMS, distribution=agrees) == {"up": 0.5, "down": 0.25}
    with pytest.raises(
        ValueError, match=r"'up': the allocation says sparsity 0\.75, its rule 0\.5"
    ):
        js.targets(rules, PARAMS, distribution=FOUND)


@pytest.mark.parametrize(
    ("allocation", "words"),
    [
        (Allocation({"up": 0.5}), "no sparsity for leaf 'down'; known: 'up'"),
        (Allocation({"up": 0.5, "down": 0.5, "dwn": 0.5}), "names 'dwn', which no rule does; did "),
        (Allocation(widths={"up, down": 3}), "has widths alone, for js.allocation.narrow"),
    ],
)
def test_leaves_that_only_one_side_knows_are_named(allocation, words):
    with pytest.raises(ValueError, match=words):
        js.compute_masks(PARAMS, ALL, distribution=allocation)


@pytest.mark.parametrize("schedule", [0.5, js.importance_threshold(begin=1, end=5), None])
def test_schedules_that_would_not_look_at_it_refuse_it(schedule):
    masks = js.compute_masks(PARAMS, ALL, sparsity=0.5) if schedule is None else None
    with pytest.raises(ValueError, match="does not go by it"):
        js.prune(ALL, schedule=schedule, distribution=FOUND, masks=masks)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Allocation({"up": float("nan")}), ValueError, r"sparsities\['up'\]: sparsity nan"),
        (lambda: Allocation({"up": 1.0}), ValueError, r"sparsities\['up'\]: sparsity 1.0 is not"),
        (lambda: Allocation({"up": 75}), ValueError, r"did you mean 0.75\?"),
        (lambda: Allocation({"up": True}), TypeError, r"sparsities\['up'\] is True"),
        (lambda: Allocation({"up": "0.5"}), TypeError, r"sparsities\['up'\] is '0.5'"),
        (lambda: Allocation({3: 0.5}), TypeError, "the key 3 is no name"),
        (lambda: Allocation([0.5]), TypeError, r"sparsities is \[0.5\]"),
        (lambda: Allocation(widths={"up": 0}), ValueError, r"widths\['up'\] is 0; every group"),
        (lambda: Allocation(widths={"up": 2.5}), TypeError, r"widths\['up'\] is 2.5"),
        (lambda: Allocation(about={"loss": jnp.inf}), TypeError, r"about\['loss'\] is inf"),
    ],
)
def test_values_that_are_none_are_named(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_a_file_is_read_back(tmp_path):
    FOUND.save(tmp_path / "found.json")
    again = Allocation.load(tmp_path / "found.json")
    assert again == FOUND and hash(again) == hash(FOUND) and again.about == FOUND.about
    assert pickle.loads(pickle.dumps(FOUND)) == FOUND
    assert Allocation({"up": 0.5}, about={"loss": 1}) == Allocation({"up": np.float32(0.5)})
    held = json.loads((tmp_path / "found.json").read_text())
    assert held["sparsities"] == {"up": 0.75, "down": 0.25} and held["widths"] == {"up, down": 6}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 1, "sparsites": {"up": 0.5}}', "unknown key 'sparsites'; did you mean 'spars"),
        ('{"format": 1, "sparsities": {"up": 0.5, "up": 0.6}}', "the key 'up' is there twice"),
        ('{"format": 1, "sparsities": {"up": NaN}}', r"sparsities\['up'\]: sparsity nan"),
        ('{"format": 1, "sparsities": {"up": null}}', r"sparsities\['up'\] is None"),
        ('{"format": 1, "sparsities": {"up": 0.5,}}', "line 1 column"),
        ('{"format": 1, "widths": {"up": 8.0}}', r"widths\['up'\] is 8.0"),
        ('{"format": 1, "widths": 8}', "widths is 8; a dictionary"),
        ('{"format": 2, "widths": {}}', "format is 2; 1 would work"),
        ('{"sparsities": {}}', "format is None"),
        ('{"format": 1}', "neither sparsities nor widths"),
        ("[0.5]", "list is no mapping"),
        ('{"format": 1, "sparsities": {"up": 1' + "0" * 400 + "}}", "has 401 digits"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_a_hand_got_wrong_is_named_with_its_file(tmp_path, text, words):
    file = tmp_path / "edited.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        Allocation.load(file)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match=r"none\.json"):
        Allocation.load(tmp_path / "none.json")


def test_groups_with_padding_are_paid_for_as_full_ones():
    """Masks keep the largest groups, so whatever was cut from an edge is the first to go."""
    key = jax.random.key(0)
    params = {"up": jax.random.normal(key, (6, 21)), "down": jax.random.normal(key, (21, 7))}
    x, rules = jnp.ones((8, 6)), [js.Rule(".*", js.Block(4, 4, pad=True))]
    model = lambda params, x: jnp.tanh(x @ params["up"]) @ params["down"]  # noqa: E731
    flops = js.allocation.Flops(model, params, x)

    def real(masks):
        return 8 * sum(int(mask.sum()) for mask in masks.values())

    def norms(params, x):
        return (model(params, x) ** 2).mean(-1)

    scan = js.allocation.scan(norms, params, rules, (0.3, 0.5, 0.8), batches=[x], better="higher")
    for share in (0.8, 0.6, 0.5, 0.4):
        budget = share * flops.total()
        found = scan.allocation(flops, budget)
        assert real(js.compute_masks(params, rules, distribution=found)) <= budget
    budget = flops.total() // 2
    found = js.allocation.amc(
        *(model, params, x, lambda params: jnp.tanh(jnp.mean(norms(params, x)))),
        *(flops, budget),
        rules=rules,
        episodes=4,
        settings=js.allocation.DDPG(hidden=4, warmup=4),
    )
    assert real(found.masks) <= found.cost <= budget
    again = js.compute_masks(params, rules, distribution=found.allocation)
    assert all(jnp.array_equal(again[path], found.masks[path]) for path in params)
