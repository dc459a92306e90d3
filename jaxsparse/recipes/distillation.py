"""Distillation: losses that tie a sparse student to the dense teacher that it was.

Plain functions of arrays, to be added to the task's loss. The teacher gets no gradient. Hinton,
Vinyals and Dean 2015, arXiv 1503.02531; with movement pruning: Sanh et al. 2020, arXiv
2005.07683, and Lagunas et al. 2021, arXiv 2109.04838.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Shaped

from jaxsparse.patterns.base import widen
from jaxsparse.patterns.rules import is_real

Mask = Shaped[Array | np.ndarray, "..."]
"""Booleans or integers: True, or what is not 0, is counted, False or 0 left out."""


def distill_logits(
    student: Float[Array, "... classes"],
    teacher: Float[Array, "... classes"],
    temperature: float | Shaped[Array | np.ndarray | np.generic, ""] = 1.0,
    *,
    mask: Mask | None = None,
    binary: bool = False,
) -> Float[Array, ""]:
    """T^2 KL(p || q), p = softmax(teacher / T), q = softmax(student / T), mean over examples.

    The factor T^2 keeps gradients as large as those of the task's loss at any temperature. A
    class with p = 0 adds nothing, so logits of -inf, or of the smallest float, may exclude
    classes; where the student alone excludes one the loss is infinite, with a finite gradient.

    Args:
      student, teacher: logits of one shape; computed in at least float32.
      temperature: T > 0 and finite; inside `jit` it may be traced, and is then not checked.
      mask: in the shape of the examples (without classes), booleans or integers: which of
        them count; default all. What is left out has no part in the loss or in its gradient,
        whatever it holds. Floats are refused, since a mask of 0 and -1e9, which is added to
        logits, means the opposite, and weights would be cut to yes and no: `mask > 0.5`.
      binary: every entry is the one logit of a yes or no, so p = sigmoid(teacher / T), and
        examples have the whole shape.

    Returns:
      A scalar, 0 where the mask leaves nothing and of an empty batch.

    Raises:
      TypeError: on a temperature that is no number.
      ValueError: on shapes that differ, T <= 0, a mask of floats, and one class alone, whose
        softmax is always 1.

    >>> round(float(distill_logits(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, jnp.log(3.0)]]))), 4)
    0.1308
    >>> round(float(distill_logits(jnp.array([0.0]), jnp.array([jnp.log(3.0)]), binary=True)), 4)
    0.1308
    """
    _check_shapes("logits", student, teacher)
    _check_temperature(temperature)
    if not binary and (student.ndim == 0 or student.shape[-1] < 2):
        raise ValueError(
            f"distill_logits: logits of shape {student.shape} have no two classes, so every "
            "softmax is 1; binary=True, for the one logit of a yes or no, would work"
        )
    counted = _counted(mask, student.shape if binary else student.shape[:-1], "examples")
    q = _left(widen(jnp.asarray(student)), counted)
    p = _left(jax.lax.stop_gradient(widen(jnp.asarray(teacher))), counted)
    scale = jnp.asarray(temperature, q.dtype)
    q, p = q / scale, p / scale
    log_q, log_p = (_log_yes_no(x) if binary else jax.nn.log_softmax(x) for x in (q, p))
    # 0 log 0 is 0, and chosen before the product: 0 times infinity is NaN, in gradients, too.
    terms = jnp.exp(log_p) * jnp.where(jnp.exp(log_p) > 0, log_p - log_q, 0)
    return scale**2 * _mean(jnp.sum(terms, axis=-1), counted)


def distill_hidden(
    student: Sequence[Float[Array, "... width"]],
    teacher: Sequence[Float[Array, "... width"]],
    mask: Mask | None = None,
) -> Float[Array, ""]:
    """Mean over layers of the mean squared difference of hidden states, over tokens that count.

    The loss of TinyBERT (Jiao et al. 2020, arXiv 1909.10351) for a student as wide as its teacher,
    which masks leave it. Which layers go together is the caller's choice: `teacher[::2]` for a
    student of half the layers.

    Args:
      student, teacher: hidden states by layer, as many of one as of the other and of the same
        shapes, such as (batch, tokens, width); computed in at least float32.
      mask: in the shape of the tokens (without width), such as the attention mask, booleans or
        integers as in `distill_logits`; default all.

    Returns:
      A scalar, 0 where the mask leaves nothing and of an empty batch.

    Raises:
      ValueError: on counts or shapes that differ, a mask of floats, and without layers.

    >>> states = [jnp.zeros((1, 2, 4)), jnp.ones((1, 2, 4))]
    >>> float(distill_hidden(states, states[::-1], mask=jnp.array([[True, False]])))
    1.0
    """
    if len(student) != len(teacher) or not len(student):
        raise ValueError(
            f"distill_hidden: {len(student)} layers of the student, {len(teacher)} of the teacher; "
            "as many of one as of the other, and at least one, would work"
        )
    total = jnp.zeros(())
    for index, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        _check_shapes(f"hidden states of layer {index}", ours, theirs)
        counted = _counted(mask, ours.shape[:-1], "tokens")
        ours, theirs = (_left(widen(jnp.asarray(x)), counted) for x in (ours, theirs))
        gap = ours - jax.lax.stop_gradient(theirs)
        total += _mean(jnp.mean(jnp.square(gap), axis=-1), counted)
    return total / len(student)


def _counted(mask: Mask | None, shape: tuple[int, ...], what: str) -> Bool[Array, "..."] | None:
    if mask is None:
        return None
    if jnp.shape(mask) != shape:
        raise ValueError(
            f"the mask has shape {jnp.shape(mask)}, the {what} have {shape}; one entry for each "
            "would work"
        )
    mask = jnp.asarray(mask)
    if not (jnp.issubdtype(mask.dtype, jnp.bool_) or jnp.issubdtype(mask.dtype, jnp.integer)):
        raise ValueError(
            f"the mask of shape {shape} is of {mask.dtype}; bool or integers would work: mask > "
            "0.5 for ones and zeros, mask == 0 for what is added to logits"
        )
    return mask.astype(bool)


def _left(rows: Float[Array, "..."], counted: Bool[Array, "..."] | None) -> Float[Array, "..."]:
    """Zeros in what does not count, before anything is made of it: NaN times 0 is NaN."""
    if counted is None:
        return rows
    return jnp.where(counted.reshape(counted.shape + (1,) * (rows.ndim - counted.ndim)), rows, 0)


def _log_yes_no(logits: Float[Array, "..."]) -> Float[Array, "... 2"]:
    return jnp.stack([jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)], axis=-1)


def _mean(values: Float[Array, "..."], counted: Bool[Array, "..."] | None) -> Float[Array, ""]:
    """Over what counts; the values of the rest are 0."""
    count = values.size if counted is None else jnp.sum(counted)
    return jnp.sum(values) / jnp.maximum(count, 1)


def _check_temperature(temperature: Any) -> None:
    if not is_real(temperature):
        raise TypeError(
            f"distill_logits: temperature {temperature!r} is no number; one above 0 would work"
        )
    if not isinstance(temperature, Tracer) and not 0 < float(temperature) < math.inf:
        raise ValueError(f"distill_logits: temperature {temperature}; one above 0 would work")


def _check_shapes(what: str, student: Array, teacher: Array) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's {what} have shape {student.shape}, the teacher's {teacher.shape}; one "
            "shape would work"
        )
