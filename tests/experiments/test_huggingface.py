"""Hugging Face's directories: what they compute there is what they compute here."""

import json
import pathlib
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsparse as js
from experiments import huggingface, pretrained
from experiments.data.download import DownloadError
from experiments.models.encoders import Classifier

CASES = pathlib.Path(__file__).parents[1] / "cases" / "huggingface"
NAMES = ("bert", "distilbert", "roberta", "vit")


def case(name):
    """Inputs of the encoder, its output and hidden states, as transformers computed them."""
    expected = json.loads((CASES / name / "expected.json").read_text())
    dtypes = {"images": np.float32, "mask": bool}
    inputs = [np.array(x, dtypes.get(key, np.int32)) for key, x in expected["inputs"].items()]
    real = inputs[1] if name != "vit" else np.ones(np.shape(expected["output"])[:2], bool)
    return inputs, real, expected


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_computes_what_transformers_does(name):
    inputs, real, expected = case(name)
    model = huggingface.load(CASES / name)
    output, hidden = nnx.jit(lambda *inputs: model(*inputs, return_hidden=True))(*inputs)
    np.testing.assert_allclose(output[real], np.array(expected["output"])[real], atol=1e-5)
    assert len(hidden) == len(expected["hidden"]) == 3
    for ours, theirs in zip(hidden, expected["hidden"], strict=True):
        np.testing.assert_allclose(ours[real], np.array(theirs)[real], atol=1e-5)


def test_what_padding_holds_changes_nothing():
    (ids, mask, types), real, _ = case("bert")
    model = huggingface.load(CASES / "bert")
    other = np.where(mask, ids, 7)
    assert not np.array_equal(ids, other)
    np.testing.assert_allclose(model(ids, mask, types)[real], model(other, mask, types)[real])


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_a_classifier_pools_what_is_no_padding(pool):
    (ids, mask, _), _, _ = case("bert")
    encoder = huggingface.load(CASES / "bert")
    model = Classifier(encoder, 2, pool=pool, rngs=nnx.Rngs(0))
    logits, hidden = model(ids, mask, return_hidden=True)
    assert logits.shape == (3, 2) and len(hidden) == 3
    row = np.asarray(hidden[-1])[1]
    pooled = row[:4].mean(axis=0) if pool == "mean" else row[0]
    head = np.asarray(pooled @ model.head.kernel[...] + model.head.bias[...])
    np.testing.assert_allclose(logits[1], head, atol=1e-6)


# The vocabulary of the tokenizer that tests write: 40 ids, as the models have.
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *map(str, range(10))]


def directory(tmp_path, name="bert", padding="[PAD]", words=WORDS):
    """A copy of a case that a test may spoil, and a tokenizer beside it."""
    tokenizers = pytest.importorskip("tokenizers", reason="reads tokenizer.json")
    folder = tmp_path / name
    shutil.copytree(CASES / name, folder)
    vocabulary = {word: index for index, word in enumerate(words)}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(pad_id=vocabulary[padding], pad_token=padding)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_texts_become_rows_of_ids(tmp_path):
    tokenizer = huggingface.Tokenizer(directory(tmp_path))
    ids, mask = tokenizer.encode(["a b", "a b c d e", ""], 5)
    assert ids.tolist() == [[2, 4, 5, 3, 0], [2, 4, 5, 6, 3], [2, 3, 0, 0, 0]]
    assert ids.dtype == np.int32 and mask.dtype == bool
    assert mask.sum(axis=1).tolist() == [4, 5, 2]
    assert tokenizer.encode([], 5)[0].shape == (0, 5)
    for length in (2, 17):
        with pytest.raises(ValueError, match=rf"length = {length} does not fit 3 to 16 positions"):
            tokenizer.encode(["a"], length)


def edit(folder, **changes):
    """Changes keys of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bart"}, r"config.json: model_type 'bart' is no .* did you mean 'bert'"),
        ({"model_type": None}, r"config.json: model_type None .* bert, distilbert, llama, robert"),
        ({"hidden_size": None}, r"config.json has no hidden_size"),
        ({"hidden_size": "16"}, r"config.json: hidden_size = '16' is no int"),
        ({"hidden_size": 18}, r"num_attention_heads = 4 does not divide hidden_size = 18"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers = 0 must be from 1 to 1000"),
        ({"num_hidden_layers": 3}, r"model.safetensors has no tensor 'encoder.layer.2"),
        ({"num_hidden_layers": 1}, r"'encoder.layer.1.\S+, one of 16, is no tensor of a bert"),
        ({"hidden_act": "gelu_"}, r"hidden_act = 'gelu_'; did you mean 'gelu'"),
        ({"position_embedding_type": "relative_key"}, r"only 'absolute' can be loaded"),
        (
            {"intermediate_size": 25},
            r"'encoder.layer.0.intermediate.dense.\S+ has shape .* would have \(25,",
        ),
        ({"pruned_heads": {"0": [0, 1, 2, 3]}}, r"pruned_heads = \{'0': \[0, 1, 2, 3\]\} must"),
        ({"pruned_heads": {"2": [0]}}, r"by number of one of 2 layers"),
        ({"pruned_heads": [0]}, r"pruned_heads = \[0\] must be lists of some, not all, of 4 heads"),
        (
            {"jaxsparse": {"form": "exact", "heads": [4]}},
            r"heads = \[4\] must be 2 numbers",
        ),
        (
            {"jaxsparse": {"form": "exact", "heads": [-1, 4], "hidden": [1, 1]}},
            r"heads = \[-1, 4\] must be 2 numbers from 1 to 4",
        ),
        (
            {"jaxsparse": {"form": "exact", "heads": [1, 1], "hidden": [1, 25]}},
            r"hidden = \[1, 25\] must be 2 numbers from 1 to 24",
        ),
        ({"pruned_heads": [1]}, r"config.json: pruned_heads = \[1\] must"),
        ({"pruned_heads": {"0": 1}}, r"config.json: pruned_heads = \{'0': 1\} must"),
        ({"pruned_heads": {"0": [[1]]}}, r"pruned_heads = \{'0': \[\[1\]\]\} must"),
        ({"pruned_heads": {"a": [1]}}, r"pruned_heads = \{'a': \[1\]\} must"),
        ({"architectures": 5}, r"config.json: architectures = 5 must be a list of names"),
        ({"id2label": [1]}, r"config.json: id2label = \[1\] must be an object"),
        ({"layer_norm_eps": float("nan")}, r"config.json: layer_norm_eps = nan must be above 0"),
        ({"layer_norm_eps": float("inf")}, r"layer_norm_eps = inf must be above 0, and finite"),
        ({"layer_norm_eps": -1}, r"layer_norm_eps = -1.0 must be above 0"),
        ({"layer_norm_eps": True}, r"layer_norm_eps = True is no float"),
        ({"layer_norm_eps": 10**400}, r"layer_norm_eps = 1\d+\.\.\.\d+ is no float"),
        ({"type_vocab_size": 0}, r"type_vocab_size = 0 must be from 1"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers = 1000000000 must be from 1 to 1000"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused_by_file_and_key(tmp_path, changes, message):
    folder = directory(tmp_path)
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        huggingface.load(folder)


@pytest.mark.parametrize(
    ("padding", "message"),
    [
        (-5, r"config.json: pad_token_id = -5 must be an id from 0 to 39, by vocab_size"),
        (40, r"pad_token_id = 40 must be an id from 0 to 39"),
        (15, r"max_position_embeddings = 16 leaves no position: .* behind pad_token_id = 15"),
        (True, r"pad_token_id = True must be an id"),
    ],
)
def test_roberta_counts_positions_from_an_id(tmp_path, padding, message):
    folder = directory(tmp_path, "roberta")
    edit(folder, pad_token_id=padding)
    with pytest.raises(ValueError, match=message):
        huggingface.load(folder)


def test_a_config_that_is_no_object_is_refused_and_a_byte_order_mark_read_over(tmp_path):
    folder = directory(tmp_path)
    file, text = folder / "config.json", (folder / "config.json").read_text()
    for broken, message in [
        ("[" * 100_000, r"config.json is nested too deeply"),
        ("{", r"config.json is not JSON"),
        ("[1]", r"config.json is \[1\], not an object"),
        (text.replace('"hidden_size": 16', '"hidden_size": null'), r"hidden_size = null is no int"),
    ]:
        file.write_text(broken)
        with pytest.raises(ValueError, match=message):
            huggingface.load(folder)
    file.write_text(text, encoding="utf-8-sig")
    assert huggingface.load(folder).norm.num_features == 16


def changed(folder, change):
    """Writes the tensors of a directory again, after a function changed them in place."""
    file = folder / "model.safetensors"
    tensors = dict(js.load_safetensors(file))
    change(tensors)
    js.save_safetensors(file, tensors)


def test_heads_are_left_out(tmp_path):
    folder = directory(tmp_path)
    changed(folder, lambda tensors: tensors.update({"qa_outputs.weight": jnp.ones((2, 16))}))
    assert len(huggingface.load(folder).layers) == 2


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.weight"),
        ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"),
        ("embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.beta"),
    ],
)
def test_a_tensor_that_comes_twice_is_refused(tmp_path, name, again):
    folder = directory(tmp_path)
    changed(folder, lambda tensors: tensors.update({again: tensors[name] + 1}))
    with pytest.raises(
        ValueError, match=rf"'{again}' .*are both the tensor|both the tensor '{name}"
    ):
        huggingface.load(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_directory_without_a_file_is_refused_by_its_name(tmp_path, file):
    folder = directory(tmp_path)
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is not there"):
        huggingface.load(folder)


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path):
    folder = directory(tmp_path, words=[*WORDS, "more"])
    with pytest.raises(ValueError, match=r"token 'more' has id 40; \S+config.json has vocab_size"):
        huggingface.Tokenizer(folder)
    edit(folder, vocab_size=41, pad_token_id=1)
    with pytest.raises(ValueError, match=r"pad_token_id = 1; \S+tokenizer.json pads with 0"):
        huggingface.Tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer"):
        huggingface.Tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json is not there"):
        huggingface.Tokenizer(folder)


def test_a_missing_package_says_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"tokenizer.json is read by .* -m pip install tokenizers"):
        huggingface.Tokenizer(CASES / "bert")


@pytest.mark.parametrize("padding", [-1, 2**40, "0", True, 40])
def test_an_id_of_padding_that_is_none_is_refused_by_file_and_key(tmp_path, padding):
    folder = directory(tmp_path)
    edit(folder, pad_token_id=padding)
    with pytest.raises(ValueError, match=r"config.json: pad_token_id = \S+ must be an id from 0"):
        huggingface.Tokenizer(folder)


def test_no_id_of_padding(tmp_path):
    words = ["[UNK]", "[PAD]", *WORDS[2:]]
    folder = directory(tmp_path, "roberta", words=words)
    edit(folder, pad_token_id=None)
    ids, _ = huggingface.Tokenizer(folder).encode(["a"], 5)
    assert ids.tolist() == [[2, 4, 3, 1, 1]] and huggingface.load(folder).padding == 1
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": None}))
    for read in (huggingface.load, huggingface.Tokenizer):
        with pytest.raises(ValueError, match=r"config.json: pad_token_id = null must be an id"):
            read(folder)


def test_texts_that_are_none_are_refused_by_row(tmp_path):
    tokenizer = huggingface.Tokenizer(directory(tmp_path))
    for texts, error, message in [
        ("a b", TypeError, r"texts = 'a b' is one text; \[texts\] would work"),
        (b"a b", TypeError, r"texts = b'a b' is one text"),
        (["a", None], TypeError, r"texts\[1\] = None is no string"),
        ([3], TypeError, r"texts\[0\] = 3 is no string"),
        ([b"a"], TypeError, r"texts\[0\] = b'a' is no string"),
        (["a", "b", "c\ud800"], ValueError, r"texts\[2\] = .* is no text: .*surrogates"),
    ]:
        with pytest.raises(error, match=message):
            tokenizer.encode(texts, 4)


def test_a_text_without_tokens_is_padding(tmp_path):
    folder = directory(tmp_path)
    spoil(folder, post_processor=None)
    ids, mask = huggingface.Tokenizer(folder).encode(["", "a"], 2)
    assert ids.tolist() == [[0, 0], [4, 0]] and mask.tolist() == [[False] * 2, [True, False]]


def spoil(folder, **changes):
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_tokenizer_without_words_or_with_other_ids_is_refused(tmp_path):
    folder = directory(tmp_path)
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [90]
    spoil(folder, post_processor=tokens["post_processor"])
    with pytest.raises(
        ValueError, match=r"tokenizer.json gives the id 90; \S+ has vocab_size = 40"
    ):
        huggingface.Tokenizer(folder).encode(["a"], 4)
    spoil(folder, model=tokens["model"] | {"vocab": {}})
    with pytest.raises(ValueError, match=r"tokenizer.json has an empty vocabulary"):
        huggingface.Tokenizer(folder)


def test_ids_and_masks_that_do_not_fit_are_refused():
    model = huggingface.load(CASES / "bert")
    ids = jnp.zeros((2, 3), int)
    for inputs, message in [
        ((ids - 1, ids), r"ids from -1 to -1; the embeddings have rows 0 to 39"),
        ((ids.at[0, 0].set(40), ids), r"ids from 0 to 40; .* rows 0 to 39"),
        ((ids, ids, ids + 2), r"token types from 2 to 2; .* rows 0 to 1"),
        ((ids, ids[:, :2]), r"a mask of shape \(2, 2\) for ids of shape \(2, 3\)"),
        ((ids, ids[:1]), r"a mask of shape \(1, 3\) for ids of shape \(2, 3\)"),
        ((ids, ids, ids[:1]), r"token types of shape \(1, 3\) for ids of shape \(2, 3\)"),
        ((ids[:, :0], ids[:, :0]), r"ids of shape \(2, 0\) must be \(batch, length\)"),
        ((ids[0], ids[0]), r"ids of shape \(3,\) must be \(batch, length\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(*inputs)


def test_inputs_that_do_not_fit_are_refused():
    model = huggingface.load(CASES / "roberta")
    with pytest.raises(ValueError, match=r"15 tokens each; the position embeddings are for 14"):
        model(jnp.ones((1, 15), int), jnp.ones((1, 15), bool))
    model = huggingface.load(CASES / "distilbert")
    with pytest.raises(ValueError, match=r"no embeddings of token types"):
        model(*[jnp.ones((1, 4), int)] * 3)
    model = huggingface.load(CASES / "vit")
    with pytest.raises(ValueError, match=r"\(1, 3, 12, 12\); the model takes .*, 12, 12, 3\)"):
        model(jnp.ones((1, 3, 12, 12)))
    classifier = Classifier(model, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"of images takes no mask"):
        classifier(jnp.ones((1, 12, 12, 3)), jnp.ones((1, 10)))
    classifier = Classifier(huggingface.load(CASES / "bert"), 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"takes ids and a mask; mask is None"):
        classifier(jnp.ones((1, 4), int))


def test_a_tokenizer_may_pad_with_another_id(tmp_path):
    words = ["[UNK]", "[PAD]", *WORDS[2:]]
    folder = directory(tmp_path, "roberta", words=words)
    ids, mask = huggingface.Tokenizer(folder).encode(["a b", "c d e f"], 6)
    assert ids.tolist() == [[2, 4, 5, 3, 1, 1], [2, 6, 7, 8, 9, 3]]
    model = huggingface.load(folder)
    longer = huggingface.Tokenizer(folder).encode(["a b"], 9)
    np.testing.assert_allclose(model(ids, mask)[0, :4], model(*longer)[0, :4], atol=1e-5)


def test_older_names_and_half_precision_are_read(tmp_path):
    file = directory(tmp_path) / "model.safetensors"
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for name, tensor in js.load_safetensors(file).items():
        for new, old in older.items():
            name = name.replace(new, old)
        tensors[f"bert.{name}"] = tensor.astype(jnp.float16)
    tensors["bert.embeddings.position_ids"] = jnp.arange(16)[None]
    js.save_safetensors(file, tensors)
    model, whole = huggingface.load(file.parent), huggingface.load(CASES / "bert")
    for scale, expected in [
        (model.norm.scale, whole.norm.scale),
        (model.layers[1].output_norm.bias, whole.layers[1].output_norm.bias),
    ]:
        assert scale.dtype == jnp.float32
        np.testing.assert_allclose(scale[...], expected[...], rtol=1e-3)


@pytest.mark.slow
def test_minilm_computes_what_transformers_does():
    pytest.importorskip("tokenizers", reason="reads tokenizer.json")
    try:
        folder = pretrained.minilm()
    except DownloadError as error:
        pytest.skip(f"needs the weights once: {error}")
    expected = json.loads((CASES / "minilm.json").read_text())
    ids, mask = huggingface.Tokenizer(folder).encode(expected["texts"], 24)
    assert ids.tolist() == expected["ids"]
    assert mask.astype(int).tolist() == expected["mask"]
    hidden = np.asarray(huggingface.load(folder)(ids, mask)) * mask[..., None]
    mean = hidden.sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(mean, expected["mean"], atol=1e-5)
