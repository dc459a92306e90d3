"""Tokens per second of generation, dense and packed, all in turn in one process."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxsparse as js
from experiments.bench import decoding
from experiments.oneshot.models import LanguageModel
from jaxsparse.packed.base import is_packed

Writer = Callable[[Any, jax.Array], jax.Array]


def forms(params: Any, pruned: Any, masks: Mapping[str, Any], rules: Sequence[js.Rule]) -> Any:
    """Name -> parameters: the dense model in two dtypes, the pruned one packed in two.

    Args:
      params: of the dense model.
      pruned, masks: what `prune_oneshot` found.
      rules: with axes.
    """
    half = _cast(pruned)
    return {
        "dense float32": params,
        "dense bfloat16": _cast(params),
        "packed bfloat16": js.pack_params(half, masks, rules),
        "packed int8": js.pack_params(half, masks, rules, dtype=jnp.int8),
    }


def writer(model: LanguageModel, new: int) -> Writer:
    """(params, tokens) to the `new` likeliest tokens after each row, of packed weights, too."""
    return jax.jit(js.sparsify(functools.partial(model.write, new=new)))


def measure(
    write: Writer, models: Mapping[str, Any], tokens: jax.Array, rounds: int
) -> tuple[list[dict[str, Any]], dict[str, jax.Array]]:
    """Every form of a model writes after a prompt, in turn with the others.

    Args:
      write: as `writer` makes it.
      models: name -> parameters, as `forms` gives them.
      tokens: (1, length), the prompt.
      rounds: how often each writes.

    Returns:
      The rows of `bench.decoding.measure` with the bytes of each form, and what each wrote.
    """
    calls = {name: functools.partial(write, params, tokens) for name, params in models.items()}
    written = {name: call() for name, call in calls.items()}
    new = next(iter(written.values())).shape[1]
    rows = decoding.measure(calls, new, rounds=rounds)
    return [row | {"bytes": _bytes(models[row["model"]])} for row in rows], written


def _cast(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)


def _bytes(params: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params, is_leaf=is_packed))
