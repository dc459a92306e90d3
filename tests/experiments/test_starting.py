import numpy as np
import pytest
import toys

from experiments import distillation, experiment, starting, train
from experiments.data import Split
from jaxsparse.trees import leaves_by_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    train.run(toys.config(data__task="binary"), str(folder), html=False)
    return folder


def test_a_run_starts_from_another(finished):
    started = experiment.build(toys.config(data__task="binary", init_from=str(finished), seed=3))
    found = leaves_by_path(started.init().params)
    with np.load(finished / "weights.npz") as weights:
        assert sorted(weights) == sorted(found)
        for path, weight in weights.items():
            np.testing.assert_array_equal(found[path], weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__hidden": (33,)}, r"init_from: 'layers_0/bias' has shape \(32,\) in .*npz, in"),
        ({"model__hidden": (32, 4)}, "'layers_1/bias' has shape"),
        ({"init_from": "nowhere"}, "init_from = 'nowhere' is no folder of a finished run"),
    ],
)
def test_what_does_not_fit_is_refused(finished, changes, message):
    config = toys.config(**{"data__task": "binary", "init_from": str(finished), **changes})
    with pytest.raises(ValueError, match=message):
        experiment.build(config)


def test_weights_without_a_place_and_places_without_weights(finished):
    with np.load(finished / "weights.npz") as weights:
        leaves = dict(weights)
    changed = {name: leaf for name, leaf in leaves.items() if name != "layers_1/bias"}
    with pytest.raises(ValueError, match=r"has no weight 'layers_1/bias' of .*; did you mean"):
        starting.weights_of("init_from", str(finished), changed)
    with pytest.raises(ValueError, match=r"weights\.npz lacks 'layers_2/bias' of the model"):
        starting.weights_of("init_from", str(finished), {**leaves, "layers_2/bias": 0})


def test_a_damaged_file_is_named(finished, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "weights.npz").write_bytes((finished / "weights.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"weights.npz is damaged"):
        experiment.build(toys.config(init_from=str(tmp_path)))


def test_a_teacher_is_asked_once(finished, tmp_path, monkeypatch):
    options = {"data__task": "binary", "distillation__teacher": str(finished)}
    built = experiment.build(toys.config(**options, distillation__weight=1.0))
    inputs, targets = built.batches(0)
    with np.load(finished / "weights.npz") as w:
        hidden = np.maximum(inputs @ w["layers_0/kernel"] + w["layers_0/bias"], 0)
        expected = hidden @ w["layers_1/kernel"] + w["layers_1/bias"]
    np.testing.assert_allclose(targets.logits, expected[:, 0], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(experiment, "outputs_of", None)
    again = experiment.build(toys.config(**options))
    np.testing.assert_array_equal(again.batches(0)[1].logits, targets.logits)
    monkeypatch.undo()
    report = train.run(toys.config(**options, steps=8), str(tmp_path), html=False)
    assert report["steps"] == 8


def test_the_loss_of_a_taught_model():

    def hard(outputs, labels):
        return 7.0

    student = np.array([0.5, -2.0], np.float32)
    teacher = np.array([1.0, -1.0], np.float32)
    targets = distillation.Taught(np.zeros(2, np.float32), teacher)
    options = {"weight": 0.25, "temperature": 2.0}
    found = distillation.loss_fn(hard, "binary", options)(student, targets)
    p, q = 1 / (1 + np.exp(-teacher / 2)), 1 / (1 + np.exp(-student / 2))
    soft = 4 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    np.testing.assert_allclose(found, 0.75 * 7 + 0.25 * soft, rtol=1e-6)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("regression", {}, "a regression has no logits"),
        ("binary", {"weight": 1.5}, r"weight is a share in \[0, 1\], not 1.5"),
        ("binary", {"temperature": 0.0}, "temperature = 0.0 must be above 0"),
    ],
)
def test_distillation_without_meaning(task, options, message):
    with pytest.raises(ValueError, match=message):
        distillation.loss_fn(None, task, {"weight": 0.5, "temperature": 1.0, **options})


def test_the_teacher_answers_in_the_order_of_the_examples():
    from experiments.experiment import outputs_of

    lengths = np.array([3, 8, 1, 5, 8, 2])
    mask = np.arange(8) < lengths[:, None]
    split = Split({"ids": np.where(mask, lengths[:, None], 0), "mask": mask}, lengths)
    found = outputs_of(lambda inputs: inputs["ids"].max(axis=1), split, (4, 8))
    np.testing.assert_array_equal(found, lengths)
