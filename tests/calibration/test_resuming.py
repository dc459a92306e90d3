"""Whose folder it is: what a result follows from, and files that are not what was written."""

import functools
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.calibration import Criterion, alps, given, prune_oneshot, reconstructed, square_norms

W = {"v": jax.random.normal(jax.random.key(0), (8, 8)), "w": jnp.eye(8) + 0.1}
X = [(jax.random.normal(jax.random.key(1), (32, 8)),)]
RULES = [js.Rule("v|w", js.Unstructured(), 0.5)]
CHESS = np.indices((8, 8)).sum(0) % 2 == 0
OTHER = {"v": ~CHESS, "w": CHESS}


def model(params, x):
    return jnp.tanh(x @ params["v"]) @ params["w"]


def before(change, how):
    """The model, on what a closed-over array or function makes of its inputs."""
    ways = {
        "as it is": lambda x: x @ change,
        "jit": jax.jit(lambda x: x @ change),
        "scan": lambda x: jax.lax.scan(lambda x, _: (x @ change, None), x, length=2)[0],
        "host": lambda x: jax.pure_callback(lambda x: x @ np.asarray(change), x, x),
    }
    return lambda params, x: model(params, ways[how](x))


@pytest.mark.parametrize("how", ["as it is", "jit", "scan", "host"])
def test_arrays_that_the_model_closes_over_are_of_the_program(tmp_path, how):
    prune_oneshot(before(jnp.eye(8), how), W, X, RULES, folder=tmp_path)
    prune_oneshot(before(jnp.eye(8), how), W, X, RULES, folder=tmp_path)
    with pytest.raises(ValueError, match="with another program;"):
        prune_oneshot(before(2 * jnp.eye(8), how), W, X, RULES, folder=tmp_path)


def test_a_folder_in_use_is_refused(tmp_path):
    refused = []

    def again(pruned):
        del pruned
        with pytest.raises(ValueError, match="is in use by") as error:
            prune_oneshot(model, W, X, RULES, folder=tmp_path)
        refused.append(str(error.value))

    prune_oneshot(model, W, X, RULES, folder=tmp_path, on_pruned=again)
    who = rf"{re.escape(str(tmp_path))} is in use by process {os.getpid()} on .+, since .+; its end"
    assert len(refused) == 2 and all(re.match(who, text) for text in refused)
    assert not (tmp_path / ".lock").exists()
    prune_oneshot(model, W, X, RULES, folder=tmp_path)


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, weight, state, target):
        return target.mask(jnp.abs(weight) * self.scale), None

    prune = __call__


def scaled(weight, state, target, scale):
    return Scaled(scale)(weight, state, target)


def closed(scale):
    return jax.jit(lambda *a: Scaled(scale)(*a), static_argnums=2)


WAYS = {
    "object": Scaled,
    "method": lambda scale: Scaled(scale).prune,
    "partial": lambda scale: functools.partial(scaled, scale=scale),
    "jit": closed,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_criterion_holds_is_of_it(tmp_path, way):
    ones = np.ones((8, 8), np.float32)
    one, same, other = (
        Criterion(square_norms(), WAYS[way](scale)) for scale in (ones, ones.copy(), ones + CHESS)
    )
    prune_oneshot(model, W, X, RULES, criterion=one, folder=tmp_path)
    prune_oneshot(model, W, X, RULES, criterion=same, folder=tmp_path)
    with pytest.raises(ValueError, match="with another criterion;"):
        prune_oneshot(model, W, X, RULES, criterion=other, folder=tmp_path)


def test_given_masks_are_of_the_criterion(tmp_path):
    masks = {"v": CHESS, "w": CHESS}
    options = {"folder": tmp_path}
    prune_oneshot(model, W, X, RULES, criterion=reconstructed(given(masks)), **options)
    with pytest.raises(ValueError, match="with another criterion;"):
        prune_oneshot(model, W, X, RULES, criterion=reconstructed(given(OTHER)), **options)


LEVEL = 1.0


def level(weight, state, target):
    return target.mask(jnp.abs(weight) * LEVEL), None


def test_numbers_of_a_module_are_of_the_criterion(tmp_path, monkeypatch):
    criterion = Criterion(square_norms(), level)
    prune_oneshot(model, W, X, RULES, criterion=criterion, folder=tmp_path)
    monkeypatch.setitem(globals(), "LEVEL", 2.0)
    with pytest.raises(ValueError, match="with another criterion;"):
        prune_oneshot(model, W, X, RULES, criterion=criterion, folder=tmp_path)


def test_damaged_files_are_named(tmp_path):
    options = {"criterion": alps(), "folder": tmp_path}
    found = prune_oneshot(model, W, X, RULES, **options)
    one, two = sorted(tmp_path.glob("*.npz"))
    whole = one.read_bytes()

    def refused():
        with pytest.raises(ValueError, match=f"{one.name} of .* cannot be read"):
            prune_oneshot(model, W, X, RULES, **options)

    shutil.copy(two, one)  # of the same shape
    refused()
    method, encrypted = (whole.rindex(b"PK\x01\x02") + at for at in (10, 8))
    for damaged in (
        b"",
        whole[:-30],
        whole.replace(b"weights", b"weighty"),
        whole[:method] + b"\x63" + whole[method + 1 :],
        whole[:encrypted] + b"\x01" + whole[encrypted + 1 :],
    ):
        one.write_bytes(damaged)
        refused()
    one.unlink()
    again = prune_oneshot(model, W, X, RULES, **options)
    for path in W:
        np.testing.assert_array_equal(again.masks[path], found.masks[path])
