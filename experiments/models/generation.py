"""Texts that a decoder goes on with, token by token."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.models.llama import Llama


def generate(
    model: Llama,
    tokens: jax.Array,
    new: int,
    *,
    padding: jax.Array | None = None,
    stop: int | Sequence[int] = (),
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """The likeliest token after each text, and after that, up to `new` of them.

    All steps are one `lax.while_loop`, which ends early once every row has stopped. Under `jit`
    it is compiled once for a shape of prompts; without, anew for every call. Through
    `js.sparsify` it runs on packed weights.

    Args:
      model: what goes on.
      tokens: (batch, length) ids, the prompts.
      new: how many tokens to add at most.
      padding: (batch,) of how many at the front of each row are no tokens of the prompt.
      stop: the id, or ids, after which a row ends.
      temperature: 0 for the likeliest; above, tokens are drawn by softmax(logits / temperature).
      key: random key, for a temperature above 0.

    Returns:
      (batch, new) int32, without the prompts. What stands behind the first `stop` of a row is the
      first of `stop`.

    Raises:
      ValueError: as the model, `new` below 1 or beyond the longest text, a temperature without a
        key or below 0, a `stop` that is no id.

    Example:
      >>> from flax import nnx
      >>> from experiments.models.sizes import LlamaSizes
      >>> sizes = LlamaSizes(8, 4, (2,), (16,), 1e-5, "silu", 30, 12, (1,), 1e4, True)
      >>> graph, params = nnx.split(Llama(sizes, rngs=nnx.Rngs(0)))
      >>> @jax.jit
      ... def run(params, tokens):
      ...     return generate(nnx.merge(graph, params), tokens, 4)
      >>> run(params, jnp.ones((3, 5), int)).shape
      (3, 4)
    """
    if np.ndim(tokens) != 2:
        raise ValueError(f"tokens of shape {np.shape(tokens)} must be (batch, length)")
    batch, length = tokens.shape
    if not isinstance(new, int) or not 1 <= new <= model.longest - length:
        raise ValueError(
            f"new = {new!r} after tokens of shape {tokens.shape}; from 1 to "
            f"{model.longest - length} would work, since the model is for {model.longest} in all"
        )
    if temperature < 0 or (temperature > 0) != (key is not None):
        raise ValueError(
            f"temperature = {temperature} with key = {key}; a key is given where the temperature "
            "is above 0, and nowhere else"
        )
    vocabulary = model.embedding.num_embeddings
    ends = (stop,) if isinstance(stop, int) else tuple(stop)
    if not all(0 <= end < vocabulary for end in ends):
        raise ValueError(f"stop = {stop} must be ids from 0 to {vocabulary - 1}")
    last = ends[0] if ends else 0

    def pick(logits: jax.Array, number: Any) -> jax.Array:
        if key is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        drawn = jax.random.categorical(jax.random.fold_in(key, number), logits / temperature)
        return drawn.astype(jnp.int32)

    def ended(token: jax.Array) -> jax.Array:
        return jnp.isin(token, jnp.array(ends, jnp.int32))

    def goes_on(state):
        number, _, done, *_ = state
        return (number < new) & ~done.all()

    def add(state):
        number, token, done, out, cache = state
        logits, cache = model.step(token, cache)
        token = pick(logits, number)
        token = jnp.where(done, last, token)
        done = done | ended(token)
        out = lax.dynamic_update_slice_in_dim(out, token[:, None], number, axis=1)
        return number + 1, token, done, out, cache

    # The last token is written and not read: it needs no place in the cache.
    logits, cache = model.prefill(tokens, padding, capacity=length + new - 1)
    first = pick(logits, 0)
    done = ended(first)
    out = jnp.full((batch, new), last, jnp.int32).at[:, 0].set(first)
    return lax.while_loop(goes_on, add, (jnp.int32(1), first, done, out, cache))[3]
