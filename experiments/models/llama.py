"""A decoder language model: the Llama architecture (Touvron et al., 2023).

RMS norms before each part, rotary positions, keys shared by groups of queries, gated
feed-forward parts. `experiments.gguf` and `experiments.huggingface` load it, and
`experiments.models.generation` writes with it. A module reads how many heads it has off its
weights, so that smaller weights run, too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.core import Tracer

from experiments.models.layers import check_rows
from experiments.models.sizes import ACTIVATIONS, LlamaSizes

# Kernels of all linear layers of all blocks.
LINEAR = r"layers/\d+/(attention|feed_forward)/\w+/kernel"


class Cache(NamedTuple):
    """Keys and values of the tokens that were seen, for those to come.

    Attributes:
      keys, values: (batch, key heads, capacity, head_dim) of every layer.
      length: () int32, how many places are taken, padding among them.
      padding: (batch,) int32, how many places at the front of each row hold no token.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array
    padding: jax.Array

    @property
    def capacity(self) -> int:
        """How many places there are."""
        return self.keys[0].shape[2]


class Places(NamedTuple):
    """Where the tokens of a call stand.

    Attributes:
      cos, sin: (batch or 1, tokens, head_dim / 2) of the angles of their positions.
      hidden: (batch or 1, tokens, places), what a token must not attend to.
      first: () place of the first of them.
    """

    cos: jax.Array
    sin: jax.Array
    hidden: jax.Array
    first: jax.Array


class Attention(nnx.Module):
    """Causal attention in which heads of queries share one of keys and values.

    softmax(q k^T / sqrt(head_dim)) v by head, q and k turned by their positions.

    Args:
      sizes: of the model.
      index: which of its layers this is.
      rngs: random streams for the initial weights.
    """

    def __init__(self, sizes: LlamaSizes, index: int, *, rngs: nnx.Rngs):
        self.head_dim = sizes.head_dim
        queries = sizes.heads[index] * sizes.head_dim
        keys = sizes.key_heads[index] * sizes.head_dim
        bias = sizes.attention_bias
        self.query = nnx.Linear(sizes.width, queries, use_bias=bias, rngs=rngs)
        self.key = nnx.Linear(sizes.width, keys, use_bias=bias, rngs=rngs)
        self.value = nnx.Linear(sizes.width, keys, use_bias=bias, rngs=rngs)
        self.output = nnx.Linear(queries, sizes.width, use_bias=bias, rngs=rngs)

    def __call__(
        self, x: jax.Array, places: Places, past: tuple[jax.Array, jax.Array] | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """(batch, tokens, width) to the same, and keys and values.

        Args:
          x: normed states.
          places: of the tokens.
          past: keys and values, (batch, key heads, capacity, head_dim), to which those of the
            tokens are added; None where the tokens are all that there is.
        """
        key, value = (self._by_head(part(x)) for part in (self.key, self.value))
        query = self.query(x)
        grouped = (*query.shape[:2], key.shape[1], -1, self.head_dim)
        query = _turned(query.reshape(grouped).transpose(0, 2, 3, 1, 4), places)
        key = _turned(key, places)
        if past is not None:
            key, value = (
                lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), places.first, axis=2)
                for old, new in zip(past, (key, value), strict=True)
            )
        scores = jnp.einsum("bngtd,bnsd->bngts", query * self.head_dim**-0.5, key)
        scores = scores.astype(jnp.float32)
        # Not -inf: rows of padding attend to nothing at all.
        least = jnp.finfo(jnp.float32).min
        scores = jnp.where(places.hidden[:, None, None], least, scores)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bngts,bnsd->btngd", weights, value)
        return self.output(mixed.reshape(*x.shape[:2], -1)), (key, value)

    def _by_head(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], -1, self.head_dim).swapaxes(1, 2)


class FeedForward(nnx.Module):
    """down(activation(gate(x)) * up(x)).

    Args:
      sizes: of the model.
      index: which of its layers this is.
      rngs: random streams for the initial weights.
    """

    def __init__(self, sizes: LlamaSizes, index: int, *, rngs: nnx.Rngs):
        width, hidden, bias = sizes.width, sizes.hidden[index], sizes.mlp_bias
        self.activation = ACTIVATIONS[sizes.activation]
        self.gate = nnx.Linear(width, hidden, use_bias=bias, rngs=rngs)
        self.up = nnx.Linear(width, hidden, use_bias=bias, rngs=rngs)
        self.down = nnx.Linear(hidden, width, use_bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(batch, tokens, width) to the same."""
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)).

    Args:
      sizes: of the model.
      index: which of its layers this is.
      rngs: random streams for the initial weights.
    """

    def __init__(self, sizes: LlamaSizes, index: int, *, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        self.attention = Attention(sizes, index, rngs=rngs)
        self.feed_forward_norm = nnx.RMSNorm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        self.feed_forward = FeedForward(sizes, index, rngs=rngs)

    def __call__(self, x: jax.Array, places: Places, past: Any) -> Any:
        """(batch, tokens, width) to the same, and keys and values of `Attention`."""
        x, seen = self.attended(x, places, past)
        return self.fed(x), seen

    def attended(self, x: jax.Array, places: Places, past: Any) -> Any:
        """What comes after the attention, and its keys and values."""
        mixed, seen = self.attention(self.attention_norm(x), places, past)
        return x + mixed, seen

    def fed(self, x: jax.Array) -> jax.Array:
        """What comes after the feed-forward part, of what comes after the attention."""
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nnx.Module):
    """Embeddings, `layers`, a norm, a head: LLaMA 1 to 3, SmolLM, TinyLlama.

    It computes in the dtype of its parameters, positions, norms and the softmax in float32.

    Args:
      sizes: of everything in it.
      rngs: random streams for the initial weights.

    Example:
      >>> sizes = LlamaSizes(8, 4, (2,), (16,), 1e-5, "silu", 30, 12, (1,), 1e4, True)
      >>> model = Llama(sizes, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((3, 5), int)).shape
      (3, 5, 30)
      >>> logits, cache = model.prefill(jnp.ones((3, 5), int), capacity=6)
      >>> logits, cache = model.step(jnp.argmax(logits, axis=-1), cache)
      >>> logits.shape, int(cache.length)
      ((3, 30), 6)
    """

    def __init__(self, sizes: LlamaSizes, *, rngs: nnx.Rngs):
        self.longest, self.head_dim, self.theta = sizes.longest, sizes.head_dim, sizes.theta
        small = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(sizes.vocabulary, sizes.width, embedding_init=small, rngs=rngs)
        self.layers = nnx.List([Block(sizes, i, rngs=rngs) for i in range(len(sizes.heads))])
        self.norm = nnx.RMSNorm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        self.head = (
            None
            if sizes.tied
            else nnx.Linear(sizes.width, sizes.vocabulary, use_bias=False, rngs=rngs)
        )

    def __call__(self, tokens: jax.Array, padding: jax.Array | None = None) -> jax.Array:
        """Logits of what follows every token.

        Args:
          tokens: (batch, length) ids, at least one a row. Under `jit` their values are not known:
            what is no id is then not refused, and gives NaN, or, below 0, a row counted from the
            end.
          padding: (batch,) of how many at the front of each row are no tokens of the text; what
            is given for these means nothing. None where all are.

        Returns:
          (batch, length, vocabulary) float32.

        Raises:
          ValueError: tokens of another shape or dtype, more than `longest`, or ids that are none;
            padding of another shape, or that leaves no token.
        """
        x, _ = self._states(tokens, padding, None)
        return self._logits(x)

    def prefill(
        self, tokens: jax.Array, padding: jax.Array | None = None, *, capacity: int
    ) -> tuple[jax.Array, Cache]:
        """Logits of what follows the last token of each row, and the cache to go on from.

        Args:
          tokens, padding: as for a call.
          capacity: places of the cache: length, and how many tokens are to be added.

        Returns:
          (batch, vocabulary) float32, and the cache.

        Raises:
          ValueError: as a call, and a capacity below the length or above `longest`.
        """
        if not np.ndim(tokens) == 2 or not tokens.shape[1] <= capacity <= self.longest:
            raise ValueError(
                f"capacity = {capacity} for tokens of shape {np.shape(tokens)}; it must be from "
                f"their number to {self.longest}, the longest text"
            )
        x, cache = self._states(tokens, padding, capacity)
        assert cache is not None
        return self._logits(x[:, -1:])[:, 0], cache

    def step(self, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Logits of what follows one more token of each row.

        Args:
          token: (batch,) ids.
          cache: that of the tokens before, with a place left. Under `jit` a full one is not
            seen, and the token takes the place of the last.

        Returns:
          (batch, vocabulary) float32, and the cache with the token in it.

        Raises:
          ValueError: a token of another shape, a full cache where its length is known.
        """
        if np.shape(token) != cache.padding.shape:
            raise ValueError(
                f"a token of shape {np.shape(token)} for a cache of {cache.padding.shape[0]} rows; "
                "one of each would work"
            )
        if not isinstance(cache.length, Tracer) and cache.length >= cache.capacity:
            raise ValueError(f"all {cache.capacity} places of the cache are taken; see prefill")
        position = (cache.length - cache.padding)[:, None]
        place = jnp.arange(cache.capacity)
        hidden = (place > cache.length) | (place < cache.padding[:, None])
        places = Places(*self._angles(position), hidden[:, None], cache.length)
        x, keys, values = self.embedded(token[:, None]), [], []
        for layer, *past in zip(self.layers, cache.keys, cache.values, strict=True):
            x, (key, value) = layer(x, places, past)
            keys, values = [*keys, key], [*values, value]
        new = cache._replace(keys=tuple(keys), values=tuple(values), length=cache.length + 1)
        return self._logits(x)[:, 0], new

    def _states(
        self, tokens: jax.Array, padding: jax.Array | None, capacity: int | None
    ) -> tuple[jax.Array, Cache | None]:
        """What comes out of the last layer; with a capacity, also the cache."""
        self._check(tokens, padding)
        batch, length = tokens.shape
        places = self.places(length, padding)
        if padding is not None:
            # Whatever stands there, it is an id.
            tokens = jnp.where(jnp.arange(length) < padding[:, None], 0, tokens)
        x, keys, values = self.embedded(tokens), [], []
        for layer in self.layers:
            x, (key, value) = layer(x, places, None)
            keys, values = [*keys, key], [*values, value]
        if capacity is None:
            return x, None
        room = ((0, 0), (0, 0), (0, capacity - length), (0, 0))
        keys, values = (tuple(jnp.pad(part, room) for part in parts) for parts in (keys, values))
        none = jnp.zeros(batch, jnp.int32) if padding is None else padding.astype(jnp.int32)
        return x, Cache(keys, values, jnp.int32(length), none)

    def places(self, length: int, padding: jax.Array | None = None) -> Places:
        """Those of texts from their first token on, see a call for `padding`."""
        place = jnp.arange(length)
        position, hidden = place[None], (place > place[:, None])[None]
        if padding is not None:
            position = position - padding[:, None]
            hidden = hidden | (place < padding[:, None])[:, None]
        return Places(*self._angles(position), hidden, jnp.int32(0))

    def embedded(self, tokens: jax.Array) -> jax.Array:
        """Rows of the embedding, what goes into the first layer."""
        # The module's own call is in the dtype that the table was made with.
        return jnp.take(self.embedding.embedding[...], tokens, axis=0)

    def _angles(self, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cosines and sines (..., head_dim / 2) of positions."""
        half = self.head_dim // 2
        speed = self.theta ** -(np.arange(half, dtype=np.float64) / half)
        angles = position[..., None] * speed.astype(np.float32)
        return jnp.cos(angles), jnp.sin(angles)

    def _logits(self, x: jax.Array) -> jax.Array:
        x = self.norm(x)
        head = self.embedding.embedding[...].T if self.head is None else self.head.kernel[...]
        return jnp.matmul(x, head, preferred_element_type=jnp.float32)

    def _check(self, tokens: jax.Array, padding: jax.Array | None) -> None:
        if np.ndim(tokens) != 2 or 0 in tokens.shape:
            raise ValueError(
                f"tokens of shape {np.shape(tokens)} must be (batch, length), neither of them 0"
            )
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens are {tokens.dtype}; integers would work")
        if tokens.shape[1] > self.longest:
            raise ValueError(
                f"tokens of shape {tokens.shape} are {tokens.shape[1]} a row; the model is for "
                f"{self.longest} at most"
            )
        if padding is None:
            check_rows("tokens", tokens, self.embedding)
            return
        if np.shape(padding) != tokens.shape[:1] or not jnp.issubdtype(padding.dtype, jnp.integer):
            raise ValueError(
                f"padding of shape {np.shape(padding)}, {padding.dtype}, for tokens of shape "
                f"{tokens.shape}; it is (batch,) of integers"
            )
        if isinstance(padding, Tracer):
            return
        counts = np.asarray(padding)
        if counts.min() < 0 or counts.max() >= tokens.shape[1]:
            raise ValueError(
                f"padding from {counts.min()} to {counts.max()} of rows of {tokens.shape[1]}; each "
                "needs a token"
            )
        if not isinstance(tokens, Tracer):
            real = np.arange(tokens.shape[1]) >= counts[:, None]
            check_rows("tokens", np.asarray(tokens)[real], self.embedding)


def _turned(x: jax.Array, places: Places) -> jax.Array:
    """Rotary positions (Su et al., 2021): channel i and i + head_dim / 2 turn together.

    Args:
      x: (batch, key heads, ..., tokens, head_dim).
      places: of the tokens.
    """
    ones = (1,) * (x.ndim - 3)
    cos, sin = (
        part.reshape(part.shape[0], *ones, *part.shape[1:]) for part in (places.cos, places.sin)
    )
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
