"""Texts and weights that a loaded model cannot hold are refused, not cut."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.filling import fill
from experiments.gguf.tokens import _unwritten
from experiments.tokenizer import Tokenizer


class Letters:
    """What the package tokenizers does where a byte has no token: nothing."""

    known = "abd "

    def get_vocab(self):
        return {letter: number for number, letter in enumerate(self.known)}

    def encode(self, text):
        ids = [self.known.index(letter) for letter in text if letter in self.known]
        return types.SimpleNamespace(ids=ids)


def test_a_character_that_no_token_has_is_named():
    tokenizer = Tokenizer(Letters(), (), frozenset(range(256)) - set(b"abd "))
    assert tokenizer.encode("a bad dab").tolist() == [0, 3, 1, 0, 2, 3, 2, 0, 1]
    with pytest.raises(ValueError, match=r"'a cab': no token has \['c'\]"):
        tokenizer.encode("a cab")
    with pytest.raises(ValueError, match=r"no token has \['é'\]"):
        tokenizer.encode("é")


def test_bytes_without_a_token_as_gpt2_writes_them():
    # Byte 0 is Ā, the space Ġ, and 0xAD the last of those that cannot be printed.
    everything = {chr(code): code for code in range(33, 0x144)}
    assert not _unwritten(everything)
    assert _unwritten({k: v for k, v in everything.items() if k not in "ĀĠŃa"}) == {0, 32, 97, 0xAD}


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (jnp.int32, r"weights in int32; float32, bfloat16, float16 would work"),
        (np.float64, r"weights in float64; float32"),
        (jnp.float16, r"'scale' is too large for .*float16.*; float32 would work"),
    ],
)
def test_weights_go_into_no_dtype_that_does_not_hold_them(dtype, message):
    module = nnx.RMSNorm(2, rngs=nnx.Rngs(0))
    [(path, _)] = nnx.to_flat_state(nnx.state(module))
    for kind in (dtype, jnp.bfloat16):
        arguments = (module, {path: "scale"}, {"scale": (2,)}, lambda name: [1.0, 1e6], "file.gguf")
        if kind == jnp.bfloat16:
            assert fill(*arguments, by="its metadata", dtype=kind).scale[...].dtype == kind
            continue
        with pytest.raises(ValueError, match="^file.gguf: " + message):
            fill(*arguments, by="its metadata", dtype=kind)
