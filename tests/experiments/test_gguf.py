"""GGUF files that the package gguf writes, read back into a Llama."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.gguf import load, load_gguf
from experiments.gguf.reading import TENSORS
from experiments.models.llama import Llama
from experiments.models.sizes import LlamaSizes

gguf = pytest.importorskip("gguf", reason="writes the files")
# Rows are multiples of 32, a block of Q8_0.
SIZES = LlamaSizes(
    width=32,
    head_dim=8,
    heads=(4,),
    hidden=(64,),
    epsilon=1e-5,
    activation="silu",
    vocabulary=40,
    longest=16,
    key_heads=(2,),
    theta=500.0,
    tied=False,
)
KINDS = gguf.GGMLQuantizationType
# Every byte of a text must be some token, those of the special one, too.
WORDS = ["<|end|>", "hi", *"hi0123456789<|end>"]
TOKENS = np.arange(12).reshape(2, 6)


def name_of(path):
    *module, last = path
    name = TENSORS["/".join("{}" if type(part) is int else part for part in module)]
    layer = next((part for part in module if type(part) is int), None)
    return f"{name.format(layer)}.{'bias' if last == 'bias' else 'weight'}"


def paired(array, heads):
    """Rows i and i + head_dim / 2 of each head next to each other, as llama.cpp turns them."""
    rows = []
    for head in np.split(array, heads):
        half = len(head) // 2
        for i in range(half):
            rows += [head[i], head[i + half]]
    return np.stack(rows)


def tensors_of(sizes=SIZES):
    """Random numbers by the name and in the axes of a file, rotary pairs not yet side by side."""
    rng = np.random.default_rng(0)
    shapes = nnx.state(nnx.eval_shape(lambda: Llama(sizes, rngs=nnx.Rngs(0))))
    tensors = {}
    for path, x in nnx.to_flat_state(shapes):
        shape = x.shape[::-1] if path[-1] == "kernel" else x.shape
        tensors[name_of(path)] = rng.standard_normal(shape).astype(np.float32)
    return tensors


def write(file, tensors, kind=KINDS.F32, architecture="llama", **metadata):
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(SIZES.longest)
    writer.add_embedding_length(SIZES.width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(SIZES.hidden[0])
    writer.add_head_count(SIZES.heads[0])
    writer.add_head_count_kv(SIZES.key_heads[0])
    writer.add_layer_norm_rms_eps(SIZES.epsilon)
    writer.add_rope_freq_base(SIZES.theta)
    for key, value in metadata.items():
        writer.add_string(f"llama.{key.replace('__', '.')}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3 if word == "<|end|>" else 1 for word in WORDS])
    writer.add_token_merges(["h i"])
    writer.add_eos_token_id(WORDS.index("<|end|>"))
    for name, array in tensors.items():
        for part, heads in (("attn_q", SIZES.heads[0]), ("attn_k", SIZES.key_heads[0])):
            array = paired(array, heads) if part in name else array
        # Norms stay in float32, as llama.cpp has them.
        stored = kind if array.ndim > 1 else KINDS.F32
        writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.Q8_0, KINDS.Q4_1])
@pytest.mark.parametrize("tied", [False, True])
def test_a_file_is_read_back_exactly(tmp_path, kind, tied):
    tensors = tensors_of(dataclasses.replace(SIZES, tied=tied))
    model = load(write(tmp_path / "tiny.gguf", tensors, kind))
    assert (model.head is None) == tied
    assert (model.theta, model.longest) == (500.0, 16) and model.norm.epsilon == pytest.approx(1e-5)
    found = {name_of(path): x.get_value() for path, x in nnx.to_flat_state(nnx.state(model))}
    assert found.keys() == tensors.keys()
    for name, x in found.items():
        # The rows of a matrix are stored apart, so their order changes none of their numbers.
        stored = kind if x.ndim > 1 else KINDS.F32
        expected = gguf.quants.dequantize(gguf.quants.quantize(tensors[name], stored), stored)
        expected = expected if name == "token_embd.weight" or x.ndim == 1 else expected.T
        np.testing.assert_array_equal(x, expected, err_msg=name)


def test_pairs_side_by_side_are_those_that_llama_cpp_turns(tmp_path):
    """A query and key as llama.cpp turns them give the scores that the model's layout gives."""
    rng = np.random.default_rng(1)
    query, key = rng.standard_normal((2, 8))

    def side_by_side(x, position):
        turned = np.empty(8)
        for i in range(4):
            angle = position * 500.0 ** (-2 * i / 8)
            a, b = paired(x, 1)[2 * i : 2 * i + 2]
            turned[2 * i] = a * np.cos(angle) - b * np.sin(angle)
            turned[2 * i + 1] = a * np.sin(angle) + b * np.cos(angle)
        return turned

    tensors = tensors_of()
    # The first input alone makes queries and keys, of the first head.
    for name, rows in (("attn_q", query), ("attn_k", key)):
        weight = np.zeros_like(tensors[f"blk.0.{name}.weight"])
        weight[:8, 0] = rows
        tensors[f"blk.0.{name}.weight"] = weight
    tensors["blk.0.attn_output.weight"] = np.eye(32, dtype=np.float32)
    model = load(write(tmp_path / "tiny.gguf", tensors))
    x = np.zeros((1, 3, 32), np.float32)
    x[..., 0], x[0, :, 1] = 1, [1.0, -2.0, 3.0]
    mixed, _ = model.layers[0].attention(jnp.asarray(x), model.places(3), None)
    scores = [side_by_side(query, 2) @ side_by_side(key, at) / np.sqrt(8) for at in range(3)]
    values = x[0] @ tensors["blk.0.attn_v.weight"][:8].T
    np.testing.assert_allclose(mixed[0, 2, :8], jax.nn.softmax(np.array(scores)) @ values, 1e-4)


def test_the_tokenizer_comes_along(tmp_path):
    model, tokenizer = load_gguf(write(tmp_path / "tiny.gguf", tensors_of()), jnp.bfloat16)
    assert model.layers[0].attention.query.kernel.dtype == jnp.bfloat16
    assert model(jnp.asarray(TOKENS)).shape == (2, 6, 40)
    ids = tokenizer.encode("hi42<|end|>")
    assert [WORDS[i] for i in ids] == ["hi", "4", "2", "<|end|>"]
    assert tokenizer.decode(ids[:3]) == "hi42" and tokenizer.stop == (WORDS.index("<|end|>"),)


def test_a_file_that_ends_anywhere_is_refused(tmp_path):
    file = write(tmp_path / "tiny.gguf", tensors_of())
    whole = file.read_bytes()
    size, head = len(whole), whole.index(b"token_embd.weight")
    for end in (0, 3, 4, 7, 20, 24, 40, head // 2, head, head + 9, size // 2, size - 32):
        file.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"tiny\.gguf"):
            load_gguf(file)
    file.write_bytes(whole[: size // 2])
    with pytest.raises(ValueError, match=r"tensor '.*the file ends at .* truncated or damaged"):
        load(file)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="is not there"):
        load(file)


def changed(**changes):
    tensors = tensors_of() | {name.replace("__", "."): x for name, x in changes.items()}
    return {name: x for name, x in tensors.items() if x is not None}


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ({}, {"architecture": "gpt2"}, "general.architecture = 'gpt2'; only 'llama'"),
        ({}, {"rope__scaling__type": "yarn"}, "rope.scaling.type = 'yarn'; only 'none' can"),
        ({"output_norm__weight": None}, {}, "has no tensor 'output_norm.weight'"),
        (
            {"output_norm__weight": np.ones(16, np.float32)},
            {},
            r"'output_norm.weight' has shape \(16,\); .* \(32,\)",
        ),
        ({"blk__0__more": np.ones(4, np.float32)}, {}, "'blk.0.more'"),
        (
            {"output_norm__weight": np.full(32, np.nan, np.float32)},
            {},
            "'output_norm.weight' has numbers that are not finite",
        ),
    ],
)
def test_a_file_that_is_no_such_llama_is_refused(tmp_path, tensors, options, message):
    file = write(tmp_path / "tiny.gguf", changed(**tensors), **options)
    with pytest.raises(ValueError, match=message):
        load(file)
