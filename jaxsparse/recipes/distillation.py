"""Distillation: losses that tie a sparse student to the dense teacher that it was.

Plain functions of arrays, to be added to the task's loss. The teacher gets no gradient. Hinton,
Vinyals and Dean 2015, arXiv 1503.02531; with movement pruning: Sanh et al. 2020, arXiv
2005.07683, and Lagunas et al. 2021, arXiv 2109.04838.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxsparse.patterns.base import widen

Mask = Shaped[Array | np.ndarray, "..."]
"""True or 1 is counted, False or 0 left out."""


def distill_logits(
    student: Float[Array, "... classes"],
    teacher: Float[Array, "... classes"],
    temperature: float = 1.0,
    *,
    mask: Mask | None = None,
    binary: bool = False,
) -> Float[Array, ""]:
    """T^2 KL(p || q), p = softmax(teacher / T), q = softmax(student / T), mean over examples.

    The factor T^2 keeps gradients as large as those of the task's loss at any temperature.

    Args:
      student, teacher: logits of one shape; computed in at least float32.
      temperature: T > 0.
      mask: in the shape of the examples (without classes), which of them count; default all.
      binary: every entry is the one logit of a yes or no, so p = sigmoid(teacher / T), and
        examples have the whole shape.

    Returns:
      A scalar, 0 where the mask leaves nothing.

    Raises:
      ValueError: on shapes that differ, T <= 0, and one class alone, whose softmax is always 1.

    >>> round(float(distill_logits(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, jnp.log(3.0)]]))), 4)
    0.1308
    >>> round(float(distill_logits(jnp.array([0.0]), jnp.array([jnp.log(3.0)]), binary=True)), 4)
    0.1308
    """
    _check_shapes("logits", student, teacher)
    if not temperature > 0:
        raise ValueError(f"distill_logits: temperature {temperature}; one above 0 would work")
    if not binary and (student.ndim == 0 or student.shape[-1] < 2):
        raise ValueError(
            f"distill_logits: logits of shape {student.shape} have no two classes, so every "
            "softmax is 1; binary=True, for the one logit of a yes or no, would work"
        )
    q, p = widen(student) / temperature, jax.lax.stop_gradient(widen(teacher)) / temperature
    if binary:  # a yes or no is two classes, with logits x and 0
        q, p = (jnp.stack([x, jnp.zeros_like(x)], axis=-1) for x in (q, p))
    log_q, log_p = jax.nn.log_softmax(q), jax.nn.log_softmax(p)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return temperature**2 * _mean(divergence, mask, "examples")


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
      mask: in the shape of the tokens (without width), such as the attention mask; default all.

    Returns:
      A scalar, 0 where the mask leaves nothing.

    Raises:
      ValueError: on counts or shapes that differ, and without layers.

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
        gap = widen(ours) - jax.lax.stop_gradient(widen(theirs))
        total += _mean(jnp.mean(jnp.square(gap), axis=-1), mask, "tokens")
    return total / len(student)


def _mean(values: Array, mask: Mask | None, what: str) -> Float[Array, ""]:
    if mask is None:
        return jnp.mean(values)
    if jnp.shape(mask) != values.shape:
        raise ValueError(
            f"the mask has shape {jnp.shape(mask)}, the {what} have {values.shape}; one entry for "
            "each would work"
        )
    counted = jnp.asarray(mask, bool)
    return jnp.sum(jnp.where(counted, values, 0)) / jnp.maximum(jnp.sum(counted), 1)


def _check_shapes(what: str, student: Array, teacher: Array) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's {what} have shape {student.shape}, the teacher's {teacher.shape}; one "
            "shape would work"
        )
