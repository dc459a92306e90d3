import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import jaxsparse as js
from experiments import data, experiment, figures, smaller, summary, train
from experiments.metrics import read

RULES = ((r"layers_0/kernel", "channel:1"), (r"layers_1/kernel", "channel:0"))


def structured(**options):
    config = toys.config(recipe__name="structured_movement", rules=RULES)
    config.recipe.update({"begin": 6, "end": 16, "factors": ((".*", 6.0),), **options})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structured")
    return folder, train.run(structured(), str(folder))


def test_whole_neurons_go_at_the_end_and_the_rest_is_dense(finished):
    folder, report = finished
    (group,) = report["structure"]
    assert group["kind"] == "neurons" and group["units"] == 32 and not group["lacking"]
    assert 0 < len(group["kept"]) < 32
    with np.load(folder / "masks.npz") as masks:
        np.testing.assert_array_equal(
            np.flatnonzero(masks["layers_0/kernel"].all(0)), group["kept"]
        )
        np.testing.assert_array_equal(
            masks["layers_0/kernel"].any(0), masks["layers_1/kernel"].any(1)
        )
    assert report["linear_left"] == len(group["kept"]) / 32
    assert report["linear_bytes"]["smallest"] == 4 * len(group["kept"]) * (16 + 4)
    assert report["linear_bytes_16"]["dense"] == 2 * 32 * (16 + 4)
    assert report["model_bytes"]["dense"] == 4 * (32 * (16 + 4) + 32 + 4)
    for batch in ("1", "32"):
        found = report["forms"][batch]
        assert found["max_abs_difference"] < 1e-5 and found["speedup"]["dense"] == 1.0
        assert set(found["ms"]) == {"dense", "shrunk"}
    # From the last step of sparsification on the masks are those that were resolved.
    records = {record["step"]: record for record in read(folder / "metrics.jsonl")}
    assert records[20]["sparsity"] == records[24]["sparsity"] == 1 - report["linear_left"]


def test_what_is_refilled_starts_from_zero():
    built = experiment.build(structured())
    state, split = built.init(), built.dataset.test
    assert built.recipe.structure_at == 16 and built.resolve is not None
    for number in range(1, 17):
        inputs, targets = built.batches(number)
        state, _ = built.step(state, inputs, targets, number)
    before = {path: np.asarray(mask) for path, mask in built.masks(state).items()}
    said = built.outputs(state, split)
    state, _ = built.resolve(state)
    # Masks alone change, so far, and not what the model says.
    assert any((built.masks(state)[path] & ~mask).any() for path, mask in before.items())
    np.testing.assert_array_equal(built.outputs(state, split), said)


def test_magnitudes_of_whole_neurons(tmp_path):
    config = toys.config(recipe__name="structured_magnitude", rules=RULES, sparsity=0.75)
    config.recipe.update({"begin": 6, "end": 16, "every": 1, "refill": False})
    report = train.run(config, str(tmp_path), html=False)
    # As many columns as rows go, and the same ones.
    assert report["linear_left"] == 0.25 and len(report["structure"][0]["kept"]) == 8
    with np.load(tmp_path / "masks.npz") as masks:
        one, two = masks["layers_0/kernel"], masks["layers_1/kernel"]
    np.testing.assert_array_equal(one.all(axis=0), two.all(axis=1))
    assert one.all(axis=0).sum() == 8


def test_the_page_shows_phases_forms_and_neurons(finished):
    folder, report = finished
    page = (folder / "report.html").read_text()
    for title in ("Lifecycle", "Forms of the model", "Heads and neurons"):
        assert f"<h2>{title}</h2>" in page
    history = read(folder / "metrics.jsonl")
    figure = figures.lifecycle(
        history, "accuracy", report["leaves"], report["config"]["rules"], [("all", 0, 24)]
    )
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    drawn = lines["layers_0/kernel: channel:1"].get_ydata()
    assert list(drawn) == [record["sparsity/layers_0/kernel"] for record in history]
    rows = {row[0]: row[1:] for row in summary.rows(report)}
    assert rows["linear weights stored"][1] == f"{report['linear_left']:.2%}"
    assert len(summary.forms(report)) == 3 and "times as fast" in " ".join(summary.notes(report))


class Killed(BaseException):
    pass


def test_a_run_killed_after_its_masks_were_resolved(finished, tmp_path, monkeypatch):
    reference, _ = finished
    original = data.Batches.__call__

    def fatal(self, step):
        if step == 22:
            raise Killed
        return original(self, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(data.Batches, "__call__", fatal)
        train.run(structured(), str(tmp_path))
    monkeypatch.setattr(experiment.structure, "resolve", None)
    train.run(structured(), str(tmp_path), html=False)
    with np.load(tmp_path / "weights.npz") as found, np.load(reference / "weights.npz") as expected:
        for path in expected:
            np.testing.assert_array_equal(found[path], expected[path], strict=True)
    assert (tmp_path / "structure.json").read_text() == (reference / "structure.json").read_text()


def test_zeros_that_stay_are_stored_in_blocks():
    def forward(params, extra, x):
        return jax.nn.relu(x @ params["up"]) @ params["down"] + extra["bias"]

    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=(64, 64)), jnp.float32) for name in ("up", "down")}
    blocks = rng.random((8, 8)) < 0.3
    blocks[:, 0], blocks[0] = True, False  # the first neurons go: nothing reads them
    masks = {
        "up": jnp.ones((64, 64), bool),
        "down": jnp.asarray(blocks.repeat(8, axis=0).repeat(8, axis=1)),
    }
    rules = [js.Rule(".*", js.Block(8, 8))]
    x = jnp.asarray(rng.normal(size=(5, 64)), jnp.float32)
    extra = {"bias": jnp.ones(64)}
    model = smaller.smaller(forward, params, extra, masks, rules, x)
    assert set(model.forms) == {"dense", "shrunk", "packed"}
    outputs = [form(tree, x) for form, tree in model.forms.values()]
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=1e-4, atol=1e-4)
    counted = smaller.sizes(model, ["up", "down"])
    stored = 64 * 56 + 64 * int(blocks.sum())
    assert counted["linear_left"] == stored / (2 * 64 * 64)
    assert (
        counted["linear_bytes"]["smallest"] > 4 * stored > 0.9 * counted["linear_bytes"]["smallest"]
    )
    with_bias = counted["model_bytes"]["smallest"] - counted["linear_bytes"]["smallest"]
    assert with_bias == 4 * 64


def test_what_is_reported_is_json(finished):
    folder, report = finished
    assert json.loads((folder / "report.json").read_text()) == report
    assert not re.search(r"NaN|Infinity", (folder / "report.json").read_text())
