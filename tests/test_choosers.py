"""Choosers: those that come along, and one of a user's own; the battery has both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from members import CHOOSERS, END, REFUSED, AboveMean, rules_for, small_params, step_of

import jaxsparse as js

W = {"w": jnp.arange(1.0, 17.0).reshape(4, 4)}
ANY = [js.Rule("w", js.Unstructured())]


@pytest.mark.parametrize("pattern,chooser", REFUSED)
def test_pairs_that_cannot_work_say_why(pattern, chooser):
    tx = js.prune(rules_for(pattern), **CHOOSERS[chooser])
    cure = r"a count schedule such as cubic" if chooser == "user" else r"straight_through\(\)"
    with pytest.raises(ValueError, match=rf"on 'dense/kernel' fixes how many.*{cure}"):
        tx.init(small_params())


def test_nm_takes_no_threshold():
    threshold = js.importance_threshold(begin=1, end=5)
    tx = js.prune(rules_for("nm"), score=js.movement(), schedule=threshold)
    with pytest.raises(ValueError, match=r"fixes how many; a count schedule"):
        tx.init(small_params())


def test_a_users_own_keeps_what_it_says():
    for make in (js.prune, optax.inject_hyperparams(js.prune)):
        tx = js.pruned(optax.sgd(0.0), make(ANY, schedule=AboveMean(END)))
        _, state = jax.jit(step_of(tx))(W, tx.init(W))
        np.testing.assert_array_equal(js.masks(state)["w"], np.asarray(W["w"]) >= 8.5)


@dataclasses.dataclass(frozen=True)
class Patient(js.Chooser):
    """Keeps what was above `bar` at `patience` steps at least; remembers how often."""

    bar: float
    patience: int
    raw = True

    def init(self, weights):
        return {path: jnp.zeros(w.shape, jnp.int32) for path, w in weights.items()}

    def updates_at(self, step):
        return step >= 0

    def ramp(self, step):
        return jnp.where(step < 2, 0.25, 0.5)

    def choose(self, scores, state, context):
        seen = {path: state[path] + (score > self.bar) for path, score in scores.items()}
        return {path: times >= self.patience for path, times in seen.items()}, seen


def test_a_users_own_remembers_and_says_how_strong():
    ramps = []

    def look(grads, state, weights, context):
        ramps.append(context.ramp)
        return weights, state

    pruner = js.prune(ANY, score=js.Score(lambda w, s: (), look), schedule=Patient(4.0, 2))
    state, seen = pruner.init(W), []
    for _ in range(3):
        _, state = pruner.update(W, state, js.mask_params(W, js.masks(state)))
        seen.append(int(js.masks(state)["w"].sum()))
    assert seen == [0, 0, 0] and state.threshold["w"].max() == 1  # nothing comes back, all are 0
    assert [float(r) for r in ramps] == [0.25, 0.25, 0.5]
    state = pruner.init(W)
    for kept in (0, 12):  # but from raw weights
        _, state = jax.jit(pruner.update)(W, state, W)
        assert js.masks(state)["w"].sum() == kept


def test_a_users_own_that_needs_raw_weights_is_refused_by_pruned():
    with pytest.raises(ValueError, match="needs the raw weights"):
        js.pruned(optax.sgd(1.0), js.prune(ANY, schedule=Patient(1.0, 1)))


@pytest.mark.parametrize(
    "answer,message",
    [
        ({}, "the chooser returned nothing for leaf 'w'"),
        ({"w": jnp.ones(4, bool)}, r"returned bool\[4\] for leaf 'w'; .*bool\[4, 4\], would work"),
        ({"w": jnp.ones((4, 4))}, r"returned float32\[4, 4\] for leaf 'w'; one bool a group"),
    ],
)
def test_an_answer_that_is_no_mask_is_named(answer, message):
    class Wrong(js.Chooser):
        def updates_at(self, step):
            return step == 0

        def choose(self, scores, state, context):
            return answer, state

    pruner = js.prune(ANY, schedule=Wrong())
    with pytest.raises(ValueError, match=message):
        pruner.update(W, pruner.init(W), W)


FALLS = js.cubic(0.75, begin=0, end=2)


def test_a_schedule_that_begins_above_its_target_is_refused_where_nothing_comes_back():
    rules = [js.Rule("w", js.Unstructured(), 0.5)]
    with pytest.raises(ValueError, match=r"initial=0\.75, above the 0\.5 that 'w' is to reach"):
        js.prune(rules, schedule=FALLS).init(W)
    for regrowth in (js.straight_through(), js.regrow_gradient()):
        pruner = js.prune(rules, schedule=FALLS, regrowth=regrowth)
        state, kept = pruner.init(W), []
        for _ in range(3):
            _, state = jax.jit(pruner.update)(W, state, W)
            kept.append(int(js.masks(state)["w"].sum()))
        assert kept[0] == 4 and kept[-1] == 8


class Half(js.Chooser):
    """Half of an answer."""

    def updates_at(self, step):
        return step == 0

    def choose(self, scores, state, context):
        return {path: score > 0 for path, score in scores.items()}


def test_half_of_an_answer_and_a_sparsity_that_nobody_asks_for_are_refused():
    params = {"w": jnp.ones((2, 2))}
    tx = js.prune([js.Rule("w", js.Unstructured())], schedule=Half())
    with pytest.raises(ValueError, match="choose returned dict; the masks by path and the state"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"the rule of .w. says sparsity=0\.5; a rule without"):
        js.prune([js.Rule("w", js.Unstructured(), 0.5)], schedule=Half()).init(params)
