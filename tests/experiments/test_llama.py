"""The decoder: what its cache and its loop compute is what it computes without them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsparse as js
from experiments.models.generation import generate
from experiments.models.llama import Llama
from experiments.models.sizes import LlamaSizes

SIZES = LlamaSizes(
    width=16,
    head_dim=8,
    heads=(4, 4),
    hidden=(24, 24),
    epsilon=1e-5,
    activation="silu",
    vocabulary=40,
    longest=32,
    key_heads=(2, 2),
    theta=1e4,
    tied=True,
)


@functools.cache
def parts(**changes):
    """A model split; every parameter is random, norms too, and attention is no mean."""
    graph, state = nnx.split(Llama(dataclasses.replace(SIZES, **changes), rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    shaken = jax.tree.map(
        lambda x: jnp.asarray(x + 0.3 * rng.standard_normal(x.shape).astype(np.float32)), state
    )
    return graph, shaken


@functools.partial(jax.jit, static_argnums=0)
def forward(graph, params, tokens, padding=None):
    return nnx.merge(graph, params)(tokens, padding)


@functools.partial(jax.jit, static_argnums=(0, 3), static_argnames=("stop", "temperature"))
def write(graph, params, tokens, new, **options):
    return generate(nnx.merge(graph, params), tokens, new, **options)


TOKENS = np.random.default_rng(0).integers(1, 40, (3, 9)).astype(np.int32)
PADDING = np.array([0, 2, 8], np.int32)
NEW = 12


def one_by_one(graph, params, tokens):
    """What greedy generation means: the whole text again for every token."""
    rows, length = tokens.shape
    text = np.zeros((rows, 9 + NEW), np.int32)  # what follows changes nothing before
    text[:, :length] = tokens
    for at in range(length, length + NEW):
        logits = forward(graph, params, text)
        text[:, at] = np.argmax(logits[:, at - 1], axis=-1)
    return text[:, length : length + NEW]


@pytest.mark.parametrize("changes", [{}, {"tied": False, "attention_bias": True, "mlp_bias": True}])
def test_steps_with_a_cache_are_the_whole_text_at_once(changes):
    graph, params = parts(**changes)
    whole = forward(graph, params, TOKENS)
    assert whole.shape == (3, 9, 40) and whole.dtype == jnp.float32

    @jax.jit
    def begin(params, tokens):
        return nnx.merge(graph, params).prefill(tokens, capacity=9)

    @jax.jit
    def step(params, token, cache):
        return nnx.merge(graph, params).step(token, cache)

    logits, cache = begin(params, TOKENS[:, :4])
    np.testing.assert_allclose(logits, whole[:, 3], atol=1e-5)
    for i in range(4, 9):
        logits, cache = step(params, TOKENS[:, i], cache)
        np.testing.assert_allclose(logits, whole[:, i], atol=1e-5)
    assert int(cache.length) == cache.capacity == 9
    with pytest.raises(ValueError, match="all 9 places of the cache are taken"):
        nnx.merge(graph, params).step(TOKENS[:, 0], cache)
    with pytest.raises(ValueError, match=r"a token of shape \(3, 9\) for a cache of 3 rows"):
        nnx.merge(graph, params).step(TOKENS, cache)


def test_later_tokens_change_nothing_before():
    other = TOKENS.copy()
    other[:, 6:] = (other[:, 6:] + 1) % 40
    before, after = (forward(*parts(), tokens) for tokens in (TOKENS, other))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert not np.allclose(before[:, 6:], after[:, 6:], atol=1e-2)


def test_padding_at_the_front_is_not_there():
    padded = np.where(np.arange(9) < PADDING[:, None], -5, TOKENS)  # no ids at all
    logits = forward(*parts(), padded, PADDING)
    found = write(*parts(), padded, NEW, padding=PADDING)
    assert np.isfinite(logits).all()
    for row, count in enumerate(PADDING):
        text = np.zeros((1, 9 + NEW), np.int32)
        text[:, : 9 - count] = TOKENS[row, count:]
        alone = forward(*parts(), text)[0, : 9 - count]
        np.testing.assert_allclose(logits[row, count:], alone, atol=1e-5)
        expected = one_by_one(*parts(), TOKENS[row : row + 1, count:])
        np.testing.assert_array_equal(found[row], expected[0])


def test_a_loop_writes_what_the_whole_text_at_each_step_does():
    expected = one_by_one(*parts(), TOKENS)
    found = write(*parts(), TOKENS, NEW)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) > 6  # or a model that says one word would pass
    graph, params = parts()
    text = str(jax.make_jaxpr(lambda params: write(graph, params, TOKENS, NEW))(params))
    assert text.count("while[") == 1 and "scan[" not in text


def test_a_row_ends_with_its_stop():
    free = np.asarray(write(*parts(), TOKENS, NEW))
    stop = int(free[0, 3])
    other = int(free[1, 5])
    found = np.asarray(write(*parts(), TOKENS, NEW, stop=(stop, other)))
    for row, expected in zip(found, free, strict=True):
        ends = np.flatnonzero(np.isin(expected, [stop, other]))
        end = ends[0] + 1 if len(ends) else NEW
        np.testing.assert_array_equal(row[:end], expected[:end])
        assert (row[end:] == stop).all()


def test_a_temperature_draws_by_the_softmax():
    prompt = np.repeat(TOKENS[:1], 4000, axis=0)
    first, again, other = (
        np.asarray(write(*parts(), prompt, 1, temperature=2.0, key=jax.random.key(seed)))
        for seed in (0, 0, 1)
    )
    drawn = np.bincount(first[:, 0], minlength=40) / 4000
    logits = np.asarray(forward(*parts(), TOKENS)[0, -1], np.float64) / 2.0
    expected = np.exp(logits) / np.exp(logits).sum()
    assert np.abs(drawn - expected).max() < 4 * np.sqrt(expected.max() / 4000)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_bfloat16_is_computed_in_bfloat16():
    graph, params = parts()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logits, cache = jax.eval_shape(
        lambda params: nnx.merge(graph, params).prefill(TOKENS, capacity=9), half
    )
    assert logits.dtype == jnp.float32
    assert cache.keys[0].dtype == cache.values[1].dtype == jnp.bfloat16
    found = forward(graph, half, TOKENS)
    exact = forward(graph, jax.tree.map(lambda x: x.astype(jnp.float32), half), TOKENS)
    error = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
    assert found.dtype == jnp.float32 and 1e-5 < error < 3e-2


def test_the_graph_finds_groups_of_queries_and_neurons():
    graph, params = parts()
    structure = js.graph.structure(functools.partial(forward, graph), params, TOKENS)
    assert [(group.kind, group.units) for group in structure.groups] == [
        ("heads", 2),
        ("neurons", 24),
    ] * 2


@pytest.mark.slow
def test_a_shrunk_model_computes_what_the_masked_one_does():
    graph, params = parts()
    rows = {
        "layers/0/attention/output/kernel": np.arange(32) >= 16,
        "layers/1/feed_forward/down/kernel": np.arange(24) % 3 > 0,
    }
    masks = {path: np.broadcast_to(row[:, None], (len(row), 16)) for path, row in rows.items()}
    masked = js.mask_params(params, masks)
    small, report = js.graph.shrink_model(nnx.merge(graph, params), masks, TOKENS)
    assert small.layers[0].attention.query.kernel.shape == (16, 16)
    assert small.layers[0].attention.key.kernel.shape == (16, 8)
    assert small.layers[1].feed_forward.gate.kernel.shape == (16, 16)
    assert report.after < report.before
    split = nnx.split(small)
    expected = forward(graph, masked, TOKENS)
    np.testing.assert_allclose(forward(*split, TOKENS), expected, atol=1e-5)
    written = write(*split, TOKENS, NEW)
    np.testing.assert_array_equal(written, write(graph, masked, TOKENS, NEW))


@pytest.mark.slow
def test_packed_weights_write_what_masked_ones_do():
    graph, params = parts()
    rules = [js.Rule(r"layers/1/.*kernel", js.NM(2, 4))]
    masks = js.compute_masks(params, rules)
    masked = js.mask_params(params, masks)
    packed = js.pack_params(params, masks, rules)
    ours = jax.jit(js.sparsify(functools.partial(forward, graph)))
    expected = forward(graph, masked, TOKENS)
    np.testing.assert_allclose(ours(packed, TOKENS), expected, atol=1e-5)
    ours = jax.jit(js.sparsify(lambda params: write(graph, params, TOKENS, NEW)))
    np.testing.assert_array_equal(ours(packed), write(graph, masked, TOKENS, NEW))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(TOKENS[0]), r"tokens of shape \(9,\) must be \(batch, length\)"),
        (lambda m: m(TOKENS[:, :0]), r"tokens of shape \(3, 0\)"),
        (lambda m: m(TOKENS * 1.0), "tokens are float64; integers would work"),
        (lambda m: m(np.tile(TOKENS, 4)), r"36 a row; the model is for 32 at most"),
        (lambda m: m(TOKENS % 2 * 40), "tokens from 0 to 40; the embeddings have rows 0 to 39"),
        (lambda m: m(TOKENS, PADDING[:2]), r"padding of shape \(2,\), int32, for tokens"),
        (lambda m: m(TOKENS, PADDING + 1), "padding from 1 to 9 of rows of 9; each needs a token"),
        (lambda m: m(TOKENS, PADDING - 1), "padding from -1 to 7"),
        (lambda m: m.prefill(TOKENS, capacity=8), r"capacity = 8 .* from their number to 32"),
        (lambda m: m.prefill(TOKENS, capacity=33), "capacity = 33"),
        (lambda m: generate(m, TOKENS, 0), "new = 0 .* from 1 to 23 would work"),
        (lambda m: generate(m, TOKENS, 24), "new = 24"),
        (lambda m: generate(m, TOKENS, 2, stop=40), "stop = 40 must be ids from 0 to 39"),
        (lambda m: generate(m, TOKENS, 2, temperature=1.0), "temperature = 1.0 with key = None"),
        (lambda m: generate(m, TOKENS, 2, temperature=-1.0), "temperature = -1.0"),
        (lambda m: generate(m, TOKENS, 2, key=jax.random.key(0)), "temperature = 0.0 with key"),
    ],
)
def test_what_cannot_be_read_is_refused(call, message):
    model = Llama(SIZES, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        call(model)
