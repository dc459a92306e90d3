import math

import numpy as np
import pytest

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
