import shutil

import numpy as np
import pytest
import toys

from experiments import data, distillation, experiment, models, starting, train
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


def test_weights_without_a_place_and_places_without_weights(finished, tmp_path):
    model = models.create("mlp", data.load("toy", task="binary"), hidden=(32,))
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with np.load(finished / "weights.npz") as weights:
        leaves = dict(weights)
    np.savez(tmp_path / "weights.npz", **leaves, **{"layers_2/bias": np.zeros(1)})
    with pytest.raises(ValueError, match=r"has no weight 'layers_2/bias' of .*; did you mean"):
        starting.weights_of("init_from", str(tmp_path), model)
    del leaves["layers_1/bias"]
    np.savez(tmp_path / "weights.npz", **leaves)
    with pytest.raises(ValueError, match=r"weights\.npz lacks 'layers_1/bias' of the model"):
        starting.weights_of("init_from", str(tmp_path), model)


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
    np.testing.assert_allclose(targets.teacher.outputs, expected[:, 0], rtol=1e-4, atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "predict_all", None)
        again = experiment.build(toys.config(**options))
    np.testing.assert_array_equal(again.batches(0)[1].teacher.outputs, targets.teacher.outputs)
    report = train.run(toys.config(**options, steps=8), str(tmp_path), html=False)
    assert report["steps"] == 8
    with pytest.raises(ValueError, match="this model shows no hidden states"):
        experiment.build(toys.config(**options, distillation__states=1.0))


def test_the_loss_of_a_taught_model():
    def hard(outputs, labels):
        return 7.0

    student = np.array([0.5, -2.0], np.float32)
    teacher = np.array([1.0, -1.0], np.float32)
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
    # What the teacher said is longer than the batch.
    longer = np.concatenate([theirs, theirs], axis=1)
    targets = distillation.Taught(np.zeros(2), distillation.Said(teacher, longer))
    options = {"weight": 0.25, "temperature": 2.0, "states": 3.0}
    loss = distillation.loss_fn(hard, "binary", options)
    found = loss(distillation.Said(student, ours), targets, mask)
    p, q = 1 / (1 + np.exp(-teacher / 2)), 1 / (1 + np.exp(-student / 2))
    soft = 4 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    relative = np.mean((ours - theirs)[mask] ** 2) / np.mean(theirs[mask] ** 2)
    np.testing.assert_allclose(found, 0.75 * 7 + 0.25 * soft + 3 * relative, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("regression", {}, "a regression has no logits"),
        ("binary", {"weight": 1.5}, r"weight is a share in \[0, 1\], not 1.5"),
        ("binary", {"temperature": 0.0}, "temperature = 0.0 must be above 0"),
        ("binary", {"states": -1.0}, "states = -1.0 must be at least 0"),
    ],
)
def test_distillation_without_meaning(task, options, message):
    with pytest.raises(ValueError, match=message):
        distillation.loss_fn(
            None, task, {"weight": 0.5, "temperature": 1.0, "states": 0.0, **options}
        )


def test_answers_are_in_the_order_of_the_examples():
    lengths = np.array([3, 8, 1, 5, 8, 2])
    mask = np.arange(8) < lengths[:, None]
    split = data.Split({"ids": np.where(mask, lengths[:, None], 0), "mask": mask}, lengths)
    found = data.predict_all(lambda inputs: inputs["ids"].max(axis=1), split, (4, 8))
    np.testing.assert_array_equal(found, lengths)
