"""Distillation against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.recipes.distillation import distill_hidden, distill_logits

RNG = np.random.default_rng(0)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.5])
@pytest.mark.parametrize("shape", [(6, 3), (2, 4, 5)])
def test_logits(shape, temperature):
    student, teacher = 3 * RNG.normal(size=(2, *shape))
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    divergence = (p * np.log(p / q)).sum(-1)
    found = distill_logits(jnp.float32(student), jnp.float32(teacher), temperature)
    np.testing.assert_allclose(found, temperature**2 * divergence.mean(), rtol=2e-5)
    mask = RNG.integers(0, 2, shape[:-1])
    mask.flat[0] = 1
    expected = temperature**2 * (divergence * mask).sum() / mask.sum()
    found = distill_logits(jnp.float32(student), jnp.float32(teacher), temperature, mask=mask)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("shape", [(7,), (3, 1)])
def test_one_logit_of_a_yes_or_no(shape):
    student, teacher = 3 * RNG.normal(size=(2, *shape))
    p, q = (1 / (1 + np.exp(-x / 2.0)) for x in (teacher, student))
    expected = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    found = distill_logits(jnp.float32(student), jnp.float32(teacher), 2.0, binary=True)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_gradients_are_those_of_the_definition_and_the_teacher_has_none():
    """d/ds T^2 KL = T (q - p) / n."""
    student, teacher = jnp.float32(RNG.normal(size=(2, 5, 3)))
    slopes = jax.grad(distill_logits, (0, 1))(student, teacher, 3.0)
    expected = 3.0 * (softmax(np.asarray(student) / 3) - softmax(np.asarray(teacher) / 3)) / 5
    np.testing.assert_allclose(slopes[0], expected, atol=1e-6)
    assert not slopes[1].any()
    ours, theirs = jax.grad(distill_hidden, (0, 1))([student], [teacher])
    np.testing.assert_allclose(ours[0], 2 * (student - teacher) / 15, atol=1e-6)
    assert not theirs[0].any()


def test_hidden_states():
    student, teacher = RNG.normal(size=(2, 4, 2, 3, 5))  # layers, batch, tokens, width
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    of = [jnp.float32(states) for states in (student, teacher)]
    np.testing.assert_allclose(
        distill_hidden(list(of[0]), list(of[1])), ((student - teacher) ** 2).mean(), rtol=1e-5
    )
    kept = ((student - teacher) ** 2)[:, mask.astype(bool)]
    np.testing.assert_allclose(distill_hidden(*map(list, of), mask), kept.mean(), rtol=1e-5)


def test_what_is_equal_loses_nothing_and_so_does_what_is_left_out():
    states = jnp.float32(RNG.normal(size=(2, 3, 4)))
    assert distill_logits(states, states, 2.0) == 0
    assert distill_hidden([states], [states]) == 0
    nothing = jnp.zeros((2, 3), bool)
    assert distill_logits(states, -states, mask=nothing) == 0
    assert distill_hidden([states], [-states], mask=nothing) == 0


def test_half_precision_is_computed_in_full():
    student, teacher = jnp.bfloat16(RNG.normal(size=(2, 5, 3)))
    expected = distill_logits(jnp.float32(student), jnp.float32(teacher))
    found = distill_logits(student, teacher)
    assert found.dtype == jnp.float32 and found == expected
    assert distill_hidden([student], [teacher]).dtype == jnp.float32


def finite_slopes(loss, *args):
    value, slope = jax.jit(jax.value_and_grad(loss))(*args)
    assert np.isfinite(slope).all()
    return float(value), slope


@pytest.mark.parametrize("excluded,temperature", [(-np.inf, 2.0), (np.finfo(np.float32).min, 0.5)])
def test_classes_that_both_exclude_add_nothing(excluded, temperature):
    student, teacher = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    expected, slopes = finite_slopes(distill_logits, student, teacher, temperature)
    wide = [np.insert(x, 1, np.float32(excluded), axis=-1) for x in (student, teacher)]
    found, wider = finite_slopes(distill_logits, *wide, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(np.delete(wider, 1, axis=-1), slopes, atol=1e-7)
    assert not wider[:, 1].any()


def test_classes_that_one_excludes():
    free, excluding = jnp.zeros((1, 2)), jnp.array([[0.0, -jnp.inf]])
    value, _ = finite_slopes(distill_logits, free, excluding)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert finite_slopes(distill_logits, excluding, free)[0] == np.inf


def test_a_yes_or_no_that_is_certain():
    certain = jnp.array([jnp.inf, -jnp.inf])
    binary = functools.partial(distill_logits, binary=True)
    assert finite_slopes(binary, certain, certain)[0] == 0
    assert finite_slopes(binary, certain, -certain)[0] == np.inf
    np.testing.assert_allclose(finite_slopes(binary, jnp.zeros(2), certain)[0], np.log(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_left_out_has_no_part_in_gradients(bad):
    student, teacher = RNG.normal(size=(2, 2, 3, 4)).astype(np.float32)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    dirty = [np.where(mask[..., None], x, np.float32(bad)) for x in (student, teacher)]
    losses = (
        lambda s, t: distill_logits(s, t, 2.0, mask=mask),
        lambda s, t: distill_logits(s, t, mask=mask[..., None].repeat(4, -1), binary=True),
        lambda s, t: distill_hidden([s], [t], mask),
    )
    for loss in losses:
        expected, slopes = finite_slopes(loss, student, teacher)
        found, same = finite_slopes(loss, *dirty)
        assert found == expected and found > 0
        np.testing.assert_array_equal(same, slopes)


def test_an_empty_batch_loses_nothing():
    assert distill_logits(jnp.ones((0, 3)), jnp.ones((0, 3))) == 0
    assert distill_hidden([jnp.ones((0, 3, 4))], [jnp.ones((0, 3, 4))]) == 0


def test_the_temperature_may_be_traced():
    student, teacher = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    expected = distill_logits(student, teacher, 2.0)
    for temperature in (2, np.float64(2), jnp.float32(2)):
        found = jax.jit(distill_logits)(student, teacher, temperature)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(distill_logits(student, teacher, temperature), expected)
    # What is at hand is checked inside `jit`, too.
    with pytest.raises(ValueError, match="one above 0"):
        jax.jit(lambda s: distill_logits(s, s, np.float32(-1)))(student)


@pytest.mark.parametrize("temperature", ["2", None, [2.0], True, np.ones(2), 1j])
def test_a_temperature_that_is_no_number_is_an_error(temperature):
    with pytest.raises(TypeError, match="is no number; one above 0 would work"):
        distill_logits(ONES, ONES, temperature)


ONES = jnp.ones((2, 3))


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: distill_logits(ONES, jnp.ones((3, 2))), r"\(2, 3\), the teacher's \(3, 2\)"),
        (lambda: distill_logits(ONES, ONES, 0.0), "temperature 0.0; one above 0"),
        (lambda: distill_logits(ONES[:, :1], ONES[:, :1]), r"\(2, 1\) have no two classes"),
        (lambda: distill_logits(ONES[0, 0], ONES[0, 0]), r"\(\) have no two classes"),
        (lambda: distill_logits(ONES, ONES, mask=ONES), r"\(2, 3\), the examples have \(2,\)"),
        (lambda: distill_logits(ONES, ONES, np.inf), "temperature inf; one above 0"),
        (lambda: distill_logits(ONES, ONES, mask=np.array([0.5, 0])), "float.*mask > 0.5"),
        (lambda: distill_hidden([ONES], [ONES], np.array([0, -1e9])), "float.*mask == 0 for what"),
        (lambda: distill_hidden([ONES], [ONES, ONES]), "1 layers of the student, 2 of the teacher"),
        (lambda: distill_hidden([], []), "0 layers of the student, 0"),
        (lambda: distill_hidden([ONES, ONES], [ONES, ONES[:1]]), "layer 1 have shape"),
        (lambda: distill_hidden([ONES], [ONES], ONES), r"\(2, 3\), the tokens have \(2,\)"),
    ],
)
def test_mistakes_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
