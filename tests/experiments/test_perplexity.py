"""Perplexity is the exponential of the mean loss over all tokens but the first of a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.perplexity import perplexity

TABLE = np.random.default_rng(0).standard_normal((7, 7)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 7, (6, 5))


def bigrams(params, tokens):
    return params[tokens]


def test_the_mean_is_over_tokens_however_they_are_batched():
    logits = TABLE.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.exp(-log_p[TOKENS[:, :-1], TOKENS[:, 1:]].mean())
    for batches in ([TOKENS], [TOKENS[:5], TOKENS[5:]], [TOKENS[:1], TOKENS[1:]]):
        assert perplexity(bigrams, TABLE, iter(batches)) == pytest.approx(expected, rel=1e-6)


def test_no_loss_is_one_and_no_hope_is_infinite():
    certain = jnp.zeros((7, 7)).at[:, 3].set(2000.0)
    assert perplexity(bigrams, certain, [np.full((2, 4), 3)]) == 1
    assert perplexity(bigrams, certain, [np.zeros((2, 4), int)]) == np.inf
    assert np.isnan(perplexity(bigrams, certain * np.nan, [TOKENS]))


def test_other_parameters_compile_nothing_anew():
    traced = []

    def apply(params, tokens):
        traced.append(tokens.shape)
        return params[tokens]

    perplexity(apply, TABLE, [TOKENS])
    begun = len(traced)
    perplexity(apply, jax.tree.map(lambda x: 2 * x, TABLE), [TOKENS, TOKENS])
    assert len(traced) == begun


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches of tokens"),
        ([TOKENS[0]], r"batch 0 of tokens has shape \(5,\)"),
        ([TOKENS, TOKENS[:, :1]], r"batch 1 of tokens has shape \(6, 1\)"),
        ([TOKENS[:0]], r"has shape \(0, 5\)"),
        ([TOKENS / 2], "is float64; integers would work"),
        ([TOKENS - 1], "the token -1; the model's logits are of ids 0 to 6"),
        ([TOKENS, TOKENS + 1], "batch 1 has the token 7;"),
    ],
)
def test_what_is_no_text_is_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        perplexity(bigrams, TABLE, batches)
