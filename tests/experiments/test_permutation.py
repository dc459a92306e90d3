"""ASP in a run: the function stays, moments move along, the report shows what happened."""

import json

import jax
import numpy as np
import pytest
import toys

from experiments import config as configs
from experiments import experiment as experiments
from experiments import train
from jaxsparse.trees import leaves_by_path


def config():
    made = configs.load("experiments/configs/digits_asp.py")
    made.model.widths, made.model.blocks = (16,), 1
    made.steps, made.batch_size, made.recipe.begin, made.recipe.escapes = 8, 16, 4, 2
    made.learning_rate.warmup = 1
    made.log_every = made.eval_every = made.checkpoint_every = 4
    return configs.check(made)


@pytest.mark.slow
def test_a_permuted_run_goes_on_as_the_plain_one_would():
    """Before any mask a step of the permuted state is the permuted step."""
    experiment = experiments.build(config())
    state = experiment.init()
    for number in range(3):
        state, _ = experiment.step(state, *experiment.batches(number), np.int32(number))
    moved, report = experiment.permute(state)
    assert report.permutations
    x = experiment.dataset.test.inputs[:8]
    before = experiment.predict(state, x)
    np.testing.assert_allclose(experiment.predict(moved, x), before, rtol=1e-4, atol=1e-5)

    def changed(a, b):
        a, b = leaves_by_path(a), leaves_by_path(b)
        return {path for path in a if not np.array_equal(a[path], b[path])}

    params = changed(state.params, moved.params)
    assert any("kernel" in path for path in params)
    assert changed(state.extra, moved.extra)
    moments = {p for p in changed(state.opt_state, moved.opt_state) if "/mu/" in f"/{p}"}
    assert {path.split("mu/")[1] for path in moments} == params
    number = np.int32(3)
    inputs = experiment.batches(3)
    # Steps consume their state: the prediction of each is taken before the next.
    after = [
        experiment.predict(experiment.step(start, *inputs, number)[0], x)
        for start in (jax.tree.map(jax.numpy.copy, state), moved)
    ]
    np.testing.assert_allclose(after[1], after[0], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_report_has_the_picture_and_the_table(tmp_path):
    report = train.run(config(), str(tmp_path / "run"))
    assert report["sparsity"] == 0.5
    groups = json.loads((tmp_path / "run/permutation.json").read_text())
    assert report["permutation"] == groups
    assert all(row["plain"] <= row["retained"] <= row["bound"] for row in groups)
    assert (tmp_path / "run/graph.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "run/report.html").read_text()
    assert "Magnitude that the permutation keeps" in page
    assert 'alt="Channels"' in page
    assert "of what could be recovered" in page


def test_recipes_without_a_permutation_leave_the_model():
    assert experiments.build(toys.config()).permute is None
