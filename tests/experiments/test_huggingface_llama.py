"""Llamas in Hugging Face's directories: logits are those that transformers computed."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import jaxsparse as js
from experiments import huggingface
from experiments.models.llama import Llama

CASES = pathlib.Path(__file__).parents[1] / "cases" / "huggingface"
NAMES = ("llama", "llama_tied")


@nnx.jit
def logits_of(model, tokens):
    return model(tokens)


def case(name):
    expected = json.loads((CASES / name / "expected.json").read_text())
    return np.array(expected["tokens"], np.int32), np.array(expected["logits"])


def copy(tmp_path, name="llama", **changes):
    folder = tmp_path / name
    shutil.copytree(CASES / name, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_llama_computes_what_transformers_does(name):
    tokens, expected = case(name)
    model = huggingface.load(CASES / name)
    assert isinstance(model, Llama) and (model.head is None) == (name == "llama_tied")
    np.testing.assert_allclose(logits_of(model, tokens), expected, atol=1e-4, rtol=1e-5)


def test_positions_may_be_stated_as_transformers_5_does(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 500.0}
    folder = copy(tmp_path, rope_theta=None, rope_parameters=rope)
    assert huggingface.load(folder).theta == 500.0


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_llama_is_what_it_was(tmp_path, name):
    model = huggingface.load(CASES / name)
    for form in ("dense", "exact"):
        huggingface.save(model, tmp_path / form, CASES / name, form)
        again = huggingface.load(tmp_path / form)
        jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(again))
    names = set(js.load_safetensors(tmp_path / "dense" / "model.safetensors"))
    stored = CASES / name / "model.safetensors"
    if stored.is_file():
        assert names == set(js.load_safetensors(stored))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dense", "exact"])
def test_a_shrunk_llama_is_saved_in_both_forms(tmp_path, form):
    tokens, _ = case("llama")
    model = huggingface.load(CASES / "llama")
    rows = {
        "layers/0/attention/output/kernel": np.arange(16) >= 8,
        "layers/1/feed_forward/down/kernel": np.arange(24) % 3 > 0,
    }
    masks = {path: np.broadcast_to(row[:, None], (len(row), 16)) for path, row in rows.items()}
    small, _ = js.graph.shrink_model(model, masks, tokens)
    huggingface.save(small, tmp_path / form, CASES / "llama", form)
    ours = json.loads((tmp_path / form / "config.json").read_text())["jaxsparse"]
    assert ours == {"form": form, "heads": [2, 4], "hidden": [24, 16]}
    again = huggingface.load(tmp_path / form)
    heads = 16 if form == "dense" else 8
    assert again.layers[0].attention.query.kernel.shape == (16, heads)
    assert again.layers[0].attention.key.kernel.shape == (16, heads // 2)
    np.testing.assert_allclose(logits_of(again, tokens), logits_of(small, tokens), atol=1e-5)
    with pytest.raises(ValueError, match="'pruned_heads' is none that transformers has"):
        huggingface.save(small, tmp_path / "no", CASES / "llama", "pruned_heads")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope_scaling = .*'default' can",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters = .*'default' can be loaded"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3 does not divide num_attention_heads"),
        ({"head_dim": 3}, "heads of 3 have no pairs to turn"),
        ({"head_dim": 8}, r"k_proj.bias' has shape \(8,\); by config.json it would have \(16,\)"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes' is no bool"),
        ({"attention_bias": False}, "_proj.bias', one of 8, is no tensor of a llama"),
        ({"mlp_bias": True}, "has no tensor 'layers.0.mlp.down_proj.bias'"),
        ({"vocab_size": 41}, r"'embed_tokens.weight' has shape \(40, 16\); .* \(41, 16\)"),
        ({"num_hidden_layers": 3}, "has no tensor 'layers.2"),
        ({"rope_theta": 0.0}, "rope_theta = 0.0 must be above 0"),
        ({"jaxsparse": {"form": "exact", "heads": [1, 4], "hidden": [24, 24]}}, "a layer of 1 hea"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        huggingface.load(copy(tmp_path, **changes))


def test_an_index_that_does_not_fit_is_refused(tmp_path):
    folder = copy(tmp_path, "llama_tied")
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    first = next(iter(whole["weight_map"]))
    for place, message in (
        ("../x.safetensors", "is no file beside it"),
        (5, "is no file beside it"),
        ("model-00000-of-00002.safetensors", "is not there, and .*index.json names"),
        ("model-00002-of-00002.safetensors", "00001-of-.* has the tensor .* says otherwise"),
    ):
        index.write_text(json.dumps({"weight_map": whole["weight_map"] | {first: place}}))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            huggingface.load(folder)
    index.write_text(json.dumps({"weight_map": []}))
    with pytest.raises(ValueError, match=r"weight_map = .* must be file names by tensor"):
        huggingface.load(folder)


def test_an_encoder_is_no_decoder(tmp_path):
    with pytest.raises(ValueError, match="model_type 'bert' is no decoder"):
        huggingface.read_tokenizer(CASES / "bert")
    with pytest.raises(ValueError, match="model_type 'llama' is no encoder of texts"):
        huggingface.Tokenizer(CASES / "llama")
    with pytest.raises(ValueError, match="no classifier that was saved here"):
        huggingface.load_classifier(CASES / "llama")
    with pytest.raises(ValueError, match="is of another model than Llama"):
        huggingface.save(huggingface.load(CASES / "llama"), tmp_path / "to", CASES / "bert")
