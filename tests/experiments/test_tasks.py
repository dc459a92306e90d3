import math

import numpy as np
import pytest
from sklearn import metrics

from experiments import tasks


def test_classification():
    outputs = np.log([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.5, 0.3, 0.2]])
    found = tasks.evaluate("classification", outputs, np.array([0, 2, 1]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["loss"] == pytest.approx(-np.log([0.7, 0.8, 0.3]).mean(), rel=1e-5)


def test_binary():
    outputs, labels = np.array([2.0, -1.0, 0.5, -3.0]), np.array([1.0, 0.0, 0.0, 0.0])
    found = tasks.evaluate("binary", outputs, labels)
    assert found["accuracy"] == 0.75 and found["auc"] == 1.0
    assert math.isnan(tasks.evaluate("binary", outputs, np.zeros(4))["auc"])


def test_regression():
    found = tasks.evaluate("regression", np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    assert found == {"loss": 1.0, "rmse": pytest.approx(2**0.5), "mae": 1.0}
    name, measure = tasks.progress_metric("regression")
    assert name == "rmse" and float(measure(np.array([1.0]), np.array([3.0]))) == 2.0


def test_the_threshold_is_the_best_of_all_cuts():
    rng = np.random.default_rng(0)
    labels = (rng.random(60) < 0.8).astype(np.float32)
    # Rounded, so that many outputs are equal and no cut lies between them.
    outputs = np.round(rng.normal(size=60) + labels, 1)
    found = tasks.best_threshold(outputs, labels)

    def score(threshold):
        return metrics.f1_score(labels > 0, outputs > threshold, average="macro")

    assert score(found) == pytest.approx(max(map(score, np.linspace(-5, 5, 2001))))


def test_metrics_at_the_threshold_of_the_validation_part():
    outputs, labels = np.array([2.0, 1.0, 0.5, -3.0]), np.array([1.0, 1.0, 0.0, 0.0])
    plain = tasks.evaluate("binary", outputs, labels)
    found = tasks.evaluate("binary", outputs, labels, validation=(outputs, labels))
    assert plain["accuracy"] == 0.75 and "f1" not in plain
    assert found["threshold"] == 0.75 and found["accuracy"] == found["f1"] == 1.0
    logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.5, 0.3, 0.2]])
    classes = np.array([0, 2, 1])
    found = tasks.evaluate("classification", logits, classes, validation=(logits, classes))
    expected = metrics.f1_score(classes, logits.argmax(axis=1), average="macro")
    assert found["f1"] == pytest.approx(expected)


def test_classes_weigh_as_they_are_told():
    outputs, labels = np.array([2.0, -1.0], np.float32), np.array([1.0, 0.0], np.float32)
    each = [float(tasks.loss_fn("binary")(outputs[i : i + 1], labels[i : i + 1])) for i in (0, 1)]
    found = float(tasks.loss_fn("binary", (3.0, 0.5))(outputs, labels))
    assert found == pytest.approx((0.5 * each[0] + 3.0 * each[1]) / 2)
