"""Perplexity: how well a language model foretells the next token of texts."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def perplexity(
    apply: Callable[[Any, jax.Array], jax.Array], params: Any, batches: Iterable[Any]
) -> float:
    """exp of the mean of -log p(token | the tokens before it in its row).

    Every token but the first of a row counts, each the same, whatever the batches. The mean is
    taken in float64 of losses in float32. `apply` is compiled once for a function and a shape of
    batches: give the same function to compare parameters.

    Args:
      apply: ``(params, tokens) -> logits`` of (batch, length, vocabulary), those at i for the
        token at i + 1.
      params: of the model, packed ones too where `apply` takes them.
      batches: integer tokens (batch, length), length at least 2.

    Returns:
      From 1 to infinity; NaN where the model gives NaN.

    Raises:
      ValueError: no batches; one that is no integers of (batch, length), that is empty, that has
        rows of one token, or tokens that are no id of the vocabulary.

    Example:
      >>> def apply(params, tokens):  # always the same four logits
      ...     return jnp.broadcast_to(params, (*tokens.shape, 4))
      >>> round(perplexity(apply, jnp.zeros(4), [np.array([[0, 1, 2], [3, 3, 3]])]), 6)
      4.0
    """
    total, count, vocabulary = 0.0, 0, None
    for number, batch in enumerate(batches):
        tokens = np.asarray(batch)
        if tokens.ndim != 2 or tokens.shape[1] < 2 or not tokens.size:
            raise ValueError(
                f"batch {number} of tokens has shape {tokens.shape}; it would be (batch, length), "
                "with at least 2 tokens a row"
            )
        if not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"batch {number} of tokens is {tokens.dtype}; integers would work")
        if vocabulary is None:
            vocabulary = jax.eval_shape(apply, params, jnp.asarray(tokens)).shape[-1]
        for token in (tokens.min(), tokens.max()):
            if not 0 <= token < vocabulary:
                raise ValueError(
                    f"batch {number} has the token {token}; the model's logits are of ids 0 to "
                    f"{vocabulary - 1}"
                )
        losses = np.asarray(_losses(apply, params, jnp.asarray(tokens)))
        total, count = total + losses.sum(dtype=np.float64), count + losses.size
    if not count:
        raise ValueError("no batches of tokens; one of (batch, length) would work")
    mean = float(total / count)
    return math.exp(mean) if mean < math.log(np.finfo(np.float64).max) else mean + math.inf


@functools.partial(jax.jit, static_argnums=0)
def _losses(apply: Any, params: Any, tokens: jax.Array) -> jax.Array:
    """(batch, length - 1) of -log p, in float32."""
    logits = apply(params, tokens)[:, :-1].astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
