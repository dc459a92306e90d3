"""One compiled evaluation tells what every layer loses, and which ratios follow."""

import itertools
import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import jaxsparse as js
from jaxsparse.allocation import Sensitivity, scan
from jaxsparse.allocation.sensitivity.cells import Cells
from tests.members import PATTERNS

(CASE,) = json.loads((pathlib.Path(__file__).parents[1] / "cases/sensitivity.json").read_text())[
    "cases"
]
RULES = [js.Rule(".*", js.Unstructured())]
RATIOS = (0.25, 0.5, 0.75)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


PARAMS = {"down": normal(0, 8, 3), "up": normal(1, 4, 8)}


def mlp(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


DENSE = PARAMS  # by which the labels go
BATCHES = [(x, jnp.argmax(mlp(DENSE, x), -1)) for x in (normal(2, 16, 4), normal(3, 16, 4))]


def correct(params, batch):
    x, labels = batch
    return jnp.argmax(mlp(params, x), -1) == labels


def loss(params, batch):
    x, labels = batch
    return -jnp.mean(jax.nn.log_softmax(mlp(params, x))[jnp.arange(len(labels)), labels])


def scanned(evaluate=correct, params=PARAMS, rules=RULES, ratios=RATIOS, **options):
    return scan(
        evaluate, params, rules, ratios, **{"batches": BATCHES, "better": "higher"} | options
    )


def test_the_case():
    given, expected = CASE["inputs"], CASE["expected"]
    with jax.enable_x64():
        r = np.random.RandomState(11)
        sizes = [20, 40, 30, 8]
        layers = [r.randn(o, i) / np.sqrt(i) for i, o in itertools.pairwise(sizes)]
        x = r.randn(512, sizes[0])

        def predict(params, x):
            *hidden, last = params.values()
            for w in hidden:
                x = jnp.maximum(x @ w.T, 0)
            return jnp.argmax(x @ last.T, axis=1)

        params = {f"w{i}": jnp.asarray(w) for i, w in enumerate(layers)}
        batches = [(x, predict(params, x))]
        found = scan(
            lambda params, batch: predict(params, batch[0]) == batch[1],
            *(params, RULES, given["ratios"]),
            batches=batches,
            better="higher",
        )
        names = list(params)
        counts = [[round(c.metric * 512) for c in found.curves[name].changes] for name in names]
        assert counts == expected["agreement_counts"] and found.samples == expected["samples"]
        worst = [found.curves[name].worst for name in names]
        np.testing.assert_allclose(worst, expected["running_max_drop"], atol=1e-6)
        for drop, ratios in expected["chosen_for_tolerance"].items():
            assert list(found.tolerated(float(drop)).values()) == ratios
            assert found.allocation(drop=float(drop)).sparsities == dict(
                zip(names, ratios, strict=True)
            )
        chosen = found.allocation(sparsity=given["budget_sparsity"])
        assert list(chosen.sparsities.values()) == expected["budget_ratios"]
        assert found.tolerated(expected["budget_tolerance"] + 1e-6) == chosen.sparsities
        assert found.tolerated(expected["budget_tolerance"] - 1e-6) != chosen.sparsities
        joint = found.joint(chosen)
        assert round(joint.change.metric * 512) == expected["joint_agreement"]
        assert joint.change.drop == pytest.approx(expected["joint_drop"], abs=1e-6)
        assert joint.sum == pytest.approx(expected["sum_of_single_drops"], abs=1e-6)


@pytest.mark.parametrize("name", PATTERNS)
def test_what_is_pruned_is_what_compute_masks_prunes(name):
    pattern = PATTERNS[name]
    params = {"drawn": normal(0, 8, 16), "tied": jnp.round(normal(1, 8, 16)), "other": jnp.ones(3)}
    cells = Cells(params, [js.Rule("drawn|tied", pattern)], None, None, None, "l2", None)
    paths = ("drawn", "tied")
    for share in (0.0, 0.3, 0.9, 1.0):
        ratio = min(share * pattern.max_sparsity, 0.95)
        masks = js.compute_masks(params, [js.Rule("drawn|tied", pattern, ratio)])
        counts = {p: cells.targets[p].units - cells.targets[p].kept(ratio) for p in paths}
        found = cells.prune(params, counts)
        assert set(found) == set(paths)
        for path in paths:
            np.testing.assert_array_equal(found[path], jnp.where(masks[path], params[path], 0))
            # Tiles at the edge are smaller, and greedy ones may keep fewer.
            density = cells.targets[path].density(ratio)
            if name not in ("block_padded", "nm_greedy"):
                assert density == pytest.approx(float(masks[path].mean()))
            assert density >= float(masks[path].mean()) - 1e-6


def test_one_program_has_all_cells(caplog):
    traces = []

    def counted(params, batch):
        traces.append(1)
        return correct(params, batch)

    with caplog.at_level(logging.WARNING), jax.log_compiles():
        found = scanned(counted, ratios=np.linspace(0.05, 0.95, 19).tolist())
        found.joint(dict.fromkeys(PARAMS, found.ratios[7]))
    text = "Finished XLA compilation of jit(evaluate_pruned)"
    assert sum(text in record.getMessage() for record in caplog.records) == len(traces) == 1


def test_bands_are_those_of_paired_differences():
    found = scanned()
    bands = found.bands(0.9)
    for path in PARAMS:
        for at, ratio in enumerate(RATIOS):
            masks = js.compute_masks(PARAMS, [js.Rule(path, js.Unstructured(), ratio)])
            pruned = js.mask_params(PARAMS, masks)
            dense, cell = (
                np.concatenate([correct(params, batch) for batch in BATCHES]).astype(float)
                for params in (PARAMS, pruned)
            )
            interval = stats.ttest_rel(dense, cell).confidence_interval(0.9)
            np.testing.assert_allclose(bands[path][at], [interval.low, interval.high], rtol=1e-6)
            assert found.curves[path].changes[at].metric == pytest.approx(cell.mean())
            apart = np.sqrt(dense.var(ddof=1) / dense.size + cell.var(ddof=1) / cell.size)
            assert found.curves[path].changes[at].error <= apart + 1e-12
    assert (found.over, found.samples, found.dense) == ("examples", 32, 1.0)


def test_a_loss_drops_upwards_and_batches_count_as_samples():
    found = scanned(loss, better="lower")
    assert (found.over, found.samples) == ("batches", 2)
    pruned = js.mask_params(
        PARAMS, js.compute_masks(PARAMS, [js.Rule("up", js.Unstructured(), 0.75)])
    )
    lost = [float(loss(pruned, batch) - loss(PARAMS, batch)) for batch in BATCHES]
    change = found.curves["up"].changes[-1]
    assert change.drop == pytest.approx(np.mean(lost), rel=1e-4) and change.drop > 0
    assert change.error == pytest.approx(abs(lost[0] - lost[1]) / 2, rel=1e-3)
    other = scanned(loss, better="higher")
    assert other.curves["up"].changes[-1].drop == -change.drop
    alone = scanned(loss, better="lower", batches=BATCHES[:1])
    assert np.isnan(alone.bands()["up"]).all() and not np.isnan(found.bands()["up"]).any()


def test_examples_of_uneven_batches_count_alike():
    x, y = (jnp.concatenate(each) for each in zip(*BATCHES, strict=True))
    uneven = scanned(batches=[(x[:5], y[:5]), (x[5:], y[5:])])
    assert uneven.losses == scanned().losses
    with pytest.raises(ValueError, match=r"batch 1 has shapes .* the metric of every example"):
        scanned(loss, better="lower", batches=[(x[:5], y[:5]), (x[5:], y[5:])])


FLOPS = js.allocation.Flops(mlp, PARAMS, jnp.ones((1, 4)))  # one a weight


def test_the_smallest_drop_that_reaches_a_budget():
    found = scanned(loss, better="lower")
    chosen = found.allocation(FLOPS, 30)
    assert FLOPS.total(densities={p: 1 - r for p, r in chosen.sparsities.items()}) <= 30
    best = min(
        drop
        for curve in found.curves.values()
        for drop in curve.worst
        if sum(PARAMS[n].size * (1 - r) for n, r in found.tolerated(drop).items()) <= 30
    )
    assert chosen.sparsities == found.tolerated(best) and chosen.widths == {}
    assert found.tolerated(best - 1e-9) != chosen.sparsities
    assert found.allocation(FLOPS, 56).sparsities == {"down": 0.0, "up": 0.0}
    with pytest.raises(ValueError, match=r"budget=13.9 MACs .* dense .* 56.*the least is 14"):
        found.allocation(FLOPS, 13.9)
    assert found.allocation(FLOPS, 14).sparsities == {"down": 0.75, "up": 0.75}
    masks = js.compute_masks(PARAMS, RULES, distribution=chosen)
    assert sum(int(mask.sum()) for mask in masks.values()) <= 30


def test_units_go_as_narrow_has_it():
    structure = js.graph.structure(mlp, PARAMS, BATCHES[0][0])
    (group,) = structure.groups
    found = scan(
        correct,
        PARAMS,
        structure=structure,
        ratios=(0.25, 0.6, 0.75),
        batches=BATCHES,
        better="higher",
    )
    for change, width in zip(found.curves[group.name].changes, (6, 3, 2), strict=True):
        pruned = js.mask_params(
            PARAMS, js.allocation.narrow(structure, PARAMS, {group.name: width})
        )
        metric = np.mean([correct(pruned, batch) for batch in BATCHES])
        assert change.metric == pytest.approx(metric)
    chosen = found.allocation(FLOPS, 42)
    assert chosen.widths == {group.name: 6} and chosen.sparsities == {}
    assert found.joint(chosen).change == found.curves[group.name].changes[0]
    both = scanned(structure=structure, groups=[group.name])
    assert list(both.curves) == ["down", "up", group.name]
    assert both.curves[group.name].changes[0] == found.curves[group.name].changes[0]
    with pytest.raises(ValueError, match="'up, down' is a group of units; cost= and budget="):
        both.allocation(sparsity=0.5)
    with pytest.raises(ValueError, match=r"ratio 0.95 leaves none of the 8 units of 'up, down'"):
        scanned(structure=structure, ratios=(0.5, 0.95))


STACK = {"layers": normal(5, 3, 4, 4)}
STACKED = [js.Rule("layers", js.Unstructured(), batch_axis=0)]


def stack(params, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"])[0]


def far(params, x):
    return jnp.abs(stack(params, x) - stack(STACK, x)).sum(-1)


def test_kernels_of_a_stack_apart_or_together():
    options = {"batches": [normal(2, 16, 4)], "better": "lower"}
    with pytest.raises(ValueError, match=r"'layers' of shape \(3, 4, 4\) is a stack of 3.*'apart'"):
        scanned(far, STACK, STACKED, **options)
    apart = scanned(far, STACK, STACKED, stacked="apart", **options)
    together = scanned(far, STACK, STACKED, stacked="together", **options)
    masks = js.compute_masks(STACK, [js.Rule("layers", js.Unstructured(), 0.5, batch_axis=0)])
    pruned = js.mask_params(STACK, masks)["layers"]
    for layer in range(3):
        one = {"layers": STACK["layers"].at[layer].set(pruned[layer])}
        drop = float(far(one, options["batches"][0]).mean())
        assert apart.curves[f"layers[{layer}]"].changes[1].drop == pytest.approx(drop, rel=1e-5)
    drop = float(far({"layers": pruned}, options["batches"][0]).mean())
    assert together.curves["layers"].changes[1].drop == pytest.approx(drop, rel=1e-5)
    joint = apart.joint(dict.fromkeys(apart.curves, 0.5))
    assert joint.change.drop == pytest.approx(drop, rel=1e-5) and len(joint.alone) == 3
    assert together.allocation(drop=1e9).sparsities == {"layers": 0.75}
    with pytest.raises(ValueError, match=r"'layers\[0\]' is one kernel .* stacked='together'"):
        apart.allocation(drop=1.0)


def test_a_killed_scan_goes_on(tmp_path):
    class Killed(Exception):
        pass

    told, file = [], tmp_path / "new" / "scan.json"

    def kill(cell):
        told.append(cell)
        if len(told) == 4:
            raise Killed

    with pytest.raises(Killed):
        scanned(path=file, on_cell=kill)
    assert [cell.number for cell in told] == [1, 2, 3, 4] and told[0].total == 6
    with pytest.raises(ValueError, match=r"scan.json: the scan was killed: 2 of 6 cells"):
        Sensitivity.load(file)
    rest = []
    found = scanned(path=file, on_cell=rest.append)
    assert [cell.number for cell in rest] == [5, 6]
    assert found == scanned() == Sensitivity.load(file)
    assert scanned(path=file, on_cell=rest.append) == found and len(rest) == 2
    found.save(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_text() == file.read_text()
    with pytest.raises(ValueError, match=r"read from a file .* scan\(\.\.\., path=\)"):
        Sensitivity.load(file).joint({"up": 0.5})


def test_the_file_of_another_scan_is_refused(tmp_path):
    file = tmp_path / "scan.json"
    scanned(path=file)
    changes = {
        "weights": {"params": jax.tree.map(lambda w: -w, PARAMS)},
        "program": {"evaluate": lambda p, b: correct(p, (b[0] * 2, b[1]))},
        "batches": {"batches": BATCHES[::-1]},
        "rules": {"rules": [js.Rule(".*", js.Block(2, 1))]},
        "order": {"score": js.random()},
        "ratios": {"ratios": (0.5,)},
        "better": {"better": "lower"},
    }
    for name, change in changes.items():
        with pytest.raises(ValueError, match=f"holds another scan, with another .*{name}"):
            scanned(path=file, **change)
    assert scanned(path=file).ratios == RATIOS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "'format': 2; 1 would work"),
        ({"better": "best"}, "'better': 'best' is none of"),
        ({"dense": None}, "'dense': None is no finite number"),
        ({"samples": 0}, "'samples': 0 is no whole number"),
        ({"rations": [0.5]}, "unknown field 'rations'; did you mean 'ratios'"),
        ({"curves": {"up": {}}}, "curves: up: field 'drop' is not there"),
        ({"ratios": [0.5]}, "curves: down: metric': not 1 numbers"),
        ({"ratios": [7.0]}, "field 'ratios': .* do not rise between 0 and 1"),
        ({"run": ["a"]}, "'run'"),
    ],
)
def test_a_file_that_is_no_table_is_refused(change, message, tmp_path):
    file = tmp_path / "scan.json"
    file.write_text(json.dumps(scanned().to_dict() | change))
    with pytest.raises(ValueError, match=f"scan.json: .*{message}"):
        Sensitivity.load(file)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"scan.json: Expecting"):
        scanned(path=file)


def test_scores_by_path_and_by_group():
    scores = {path: -jnp.abs(leaf) for path, leaf in PARAMS.items()}
    smallest = Cells(PARAMS, RULES, scores, None, None, "l2", None)
    found = smallest.prune(PARAMS, {"up": 8})["up"]
    largest = jnp.sort(jnp.abs(PARAMS["up"]).ravel())[-8]
    np.testing.assert_array_equal(found == 0, jnp.abs(PARAMS["up"]) >= largest)
    columns = [js.Rule("up", js.Channel(-1))]
    cells = Cells(PARAMS, columns, {"up": jnp.arange(8.0)}, None, None, "l2", None)
    found = cells.prune(PARAMS, {"up": 3})["up"]
    np.testing.assert_array_equal((found == 0).all(0), np.arange(8) < 3)


def test_a_state_of_nnx_is_evaluated_as_it_came():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model, nnx.Param)

    def evaluate(state, x):
        return jnp.abs(nnx.merge(graph, state)(x) - model(x)).sum(-1)

    options = {"batches": [normal(0, 16, 4)], "better": "lower"}
    found = scan(evaluate, state, [js.Rule("kernel", js.Unstructured())], (0.5,), **options)
    assert list(found.curves) == ["kernel"] and found.curves["kernel"].changes[0].drop > 0


NAN = {"down": PARAMS["down"], "up": PARAMS["up"].at[0, 0].set(jnp.nan)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"better": "up"}, "better='up'; 'higher' for an accuracy"),
        ({"ratios": ()}, r"ratios=\[\]; fractions to prune that rise"),
        ({"ratios": (0.5, 0.3)}, "fractions to prune that rise"),
        ({"ratios": (0, 0.3)}, "0 is the dense model"),
        ({"ratios": (0.5, 1.0)}, "fractions to prune that rise"),
        ({"ratios": (0.5, float("nan"))}, "fractions to prune that rise"),
        ({"rules": [js.Rule("up", js.NM(2, 4))]}, "ratios of 'up': sparsity 0.75 is above 0.5"),
        ({"rules": [js.Rule("up", js.Unstructured(), 0.5)]}, "rule says sparsity=0.5"),
        ({"rules": None}, "no rules"),
        ({"batches": []}, "no batches"),
        ({"params": NAN}, "1 of the weights of 'up'.* NaN"),
        ({"params": {"up": jnp.zeros((4, 0))}}, r"'up' of shape \(4, 0\) has no entries"),
        ({"score": js.gradient()}, "looks at gradients, and scan was given none"),
        ({"score": {"up": PARAMS["up"]}}, "no scores for leaf 'down'"),
        ({"score": NAN}, "1 scores of 'up', .* are NaN"),
        ({"groups": ["up"]}, "of no structure"),
        ({"stacked": "both"}, "neither 'apart' nor 'together'"),
        ({"evaluate": lambda p, b: mlp(p, b[0])}, "the metric of every example, a vector"),
        ({"evaluate": lambda p, b: {"accuracy": 0.0}}, "the metric of every example, a vector"),
        ({"evaluate": lambda p, b: jnp.zeros(0)}, "the metric of every example, a vector"),
        ({"evaluate": lambda p, b: jnp.log(-loss(p, b))}, "of the dense model, .* not finite"),
        (
            {"evaluate": lambda p, b: 1 / jnp.sum(p["up"] != 0)[None].clip(8) / (p["up"][0] != 0)},
            r"of 'up' pruned by 0.25, .* not finite for batch 0",
        ),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        scanned(**change)


def test_groups_that_may_not_go_are_refused_by_name():
    def residual(params, x):
        return x + jnp.tanh(x @ params["up"]) @ params["out"]

    params = {"up": PARAMS["up"], "out": normal(4, 8, 4)}
    structure = js.graph.structure(residual, params, BATCHES[0][0])
    with pytest.raises(ValueError, match="groups: 'stream' is no group of units that can go"):
        scanned(params=params, structure=structure, groups=["stream"])
    shapes = jax.eval_shape(lambda: params)
    with pytest.raises(TypeError, match=r"'out' is ShapeDtypeStruct.* arrays would work"):
        scanned(params=shapes)
    with pytest.raises(TypeError, match="dict is no function"):
        scanned(params, correct)
    with pytest.raises(TypeError, match=r"groups='stream' is no list"):
        scanned(params=params, structure=structure, groups="stream")
    with pytest.raises(TypeError, match=r"ratios=0.5 is no sequence; \(0.5,\) would work"):
        scanned(ratios=0.5)


def test_what_the_table_does_not_have_is_refused():
    found = scanned()
    for options in ({}, {"drop": 0.1, "sparsity": 0.5}, {"budget": 3}, {"cost": FLOPS}):
        with pytest.raises(ValueError, match="one of drop=, sparsity=, and cost= with budget="):
            found.allocation(**options)
    with pytest.raises(ValueError, match=r"sparsity=0.8 is out of reach: .* reach 0.75"):
        found.allocation(sparsity=0.8)
    with pytest.raises(ValueError, match="no 'uq'; did you mean 'up'"):
        found.joint({"uq": 0.5})
    with pytest.raises(ValueError, match=r"no ratio 0.4 of 'up'"):
        found.joint({"up": 0.4})
    with pytest.raises(ValueError, match="drop=nan"):
        found.tolerated(float("nan"))
    with pytest.raises(ValueError, match="level=95"):
        found.bands(95)


def test_the_table_is_printed():
    lines = str(scanned()).splitlines()
    assert "1 dense, higher is better" in lines[0] and "32 examples" in lines[0]
    assert lines[1].split() == ["units", "0.25", "0.5", "0.75"]
    assert [line.split()[:2] for line in lines[2:]] == [["down", "24"], ["up", "32"]]
