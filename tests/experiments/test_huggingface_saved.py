"""Directories that are written: read back exactly, and laid out as transformers reads them."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_huggingface import CASES, NAMES, case, changed, directory, edit

import jaxsparse as js
from experiments import huggingface
from experiments.huggingface.configuration import FORMS
from experiments.huggingface.layouts import LAYOUTS
from experiments.models.encoders import Classifier

# Of 4 heads of 4 in both layers, and 24 neurons.
HEADS, HIDDEN = (3, 1), (20, 7)


def cut(linear, rows, columns):
    linear.kernel = nnx.Param(linear.kernel[...][rows, columns])
    linear.bias = nnx.Param(linear.bias[...][columns])
    linear.in_features, linear.out_features = linear.kernel.shape


def smaller(name):
    """A case with sizes as `shrink_model` leaves them: 3 heads, and a head that is empty."""
    model, whole = huggingface.load(CASES / name), slice(None)
    for layer, width, hidden in zip(model.layers, (3 * 4, 1), HIDDEN, strict=True):
        for part in (layer.attention.query, layer.attention.key, layer.attention.value):
            cut(part, whole, slice(width))
        cut(layer.attention.output, slice(width), whole)
        cut(layer.intermediate, whole, slice(hidden))
        cut(layer.output, slice(hidden), whole)
    return model


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_a_shrunk_model_comes_back_from_every_form(tmp_path, name, form):
    inputs, real, _ = case(name)
    model = smaller(name)
    huggingface.save(model, tmp_path / "out", CASES / name, form)
    back = huggingface.load(tmp_path / "out")
    np.testing.assert_allclose(back(*inputs)[real], model(*inputs)[real], atol=1e-5)
    config = config_of(tmp_path / "out")
    assert config["jaxsparse"] == {"form": form, "heads": [*HEADS], "hidden": [*HIDDEN]}
    heads = [4, 4] if form == "dense" else HEADS
    hidden = HIDDEN if form == "exact" else [20, 20]
    for layer, count, neurons in zip(back.layers, heads, hidden, strict=True):
        assert layer.attention.query.kernel.shape == (16, 4 * count)
        assert layer.intermediate.kernel.shape == (16, neurons)
    gone = {"0": [3], "1": [1, 2, 3]}
    assert config.get("pruned_heads") == (gone if form == "pruned_heads" else None)
    assert config["hidden_dim" if name == "distilbert" else "intermediate_size"] == 20


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_model_comes_back_as_it_was(tmp_path, name):
    model = huggingface.load(CASES / name)
    huggingface.save(model, tmp_path, CASES / name)
    tensors = js.load_safetensors(tmp_path / "model.safetensors")
    source = js.load_safetensors(CASES / name / "model.safetensors")
    for key, tensor in tensors.items():
        theirs = source.get(key, source.get(f"{name}.{key}"))
        np.testing.assert_array_equal(tensor, theirs, key)
    assert ("pooler.dense.weight" in tensors) == (name == "bert")
    needed = {key.removeprefix(f"{name}.") for key in source}
    assert {key for key in needed if not LAYOUTS[name].ignores(key)} <= set(tensors)
    back = huggingface.load(tmp_path)
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        again = dict(nnx.to_flat_state(nnx.state(back)))[path]
        np.testing.assert_array_equal(leaf[...], again[...])


@pytest.mark.parametrize(("name", "pool"), [("bert", "mean"), ("vit", "mean"), ("vit", "first")])
def test_a_classifier_comes_back_with_its_head(tmp_path, name, pool):
    inputs = case(name)[0][:2]
    model = Classifier(huggingface.load(CASES / name), 5, pool=pool, rngs=nnx.Rngs(0))
    huggingface.save(model, tmp_path, CASES / name)
    back = huggingface.load_classifier(tmp_path)
    np.testing.assert_allclose(back(*inputs), model(*inputs), atol=1e-6)
    assert len(config_of(tmp_path)["id2label"]) == 5
    theirs = (name, pool) == ("vit", "first")
    tensors = js.load_safetensors(tmp_path / "model.safetensors")
    assert ("classifier.weight" in tensors) == ("vit.layernorm.bias" in tensors) == theirs
    assert ("head.weight" in tensors) == (not theirs)


def test_an_image_classifier_computes_what_transformers_does():
    (images,), _, expected = case("vit")
    logits = huggingface.load_classifier(CASES / "vit")(images)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)


def test_packed_weights_are_stored_dense(tmp_path):
    model = huggingface.load(CASES / "bert")
    rules = [js.Rule(r"layers/\d/output/kernel", js.Block(4, 8), 0.5)]
    params = nnx.state(model)
    masks = js.compute_masks(params, rules)
    masked = js.mask_params(params, masks)["layers"][0]["output"]["kernel"][...]
    nnx.update(model, js.pack_params(params, masks, rules))
    huggingface.save(model, tmp_path, CASES / "bert")
    found = huggingface.load(tmp_path).layers[0].output.kernel[...]
    assert 0.4 < (found == 0).mean() < 0.6
    np.testing.assert_array_equal(found, masked)


def test_what_stands_beside_the_weights_goes_along(tmp_path):
    source = directory(tmp_path)
    huggingface.save(huggingface.load(source), tmp_path / "out", source)
    ids, _ = huggingface.Tokenizer(tmp_path / "out").encode(["a b"], 4)
    assert ids.tolist() == [[2, 4, 5, 3]]


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    model, source = huggingface.load(CASES / "bert"), directory(tmp_path)
    with pytest.raises(ValueError, match=r"form = 'thin' is none of dense, pruned_heads, exact"):
        huggingface.save(model, tmp_path / "out", source, "thin")
    with pytest.raises(ValueError, match=r"bert is the source itself; another directory"):
        huggingface.save(model, source, source)
    for changes in ({"layer_norm_eps": 1.0}, {"hidden_act": "relu"}):
        edit(source, **changes)
        with pytest.raises(ValueError, match=r"of another model: it states .*, the model has"):
            huggingface.save(model, tmp_path / "out", source)
        edit(source, layer_norm_eps=1e-12, hidden_act="gelu")
    for other in ("vit", "distilbert"):
        with pytest.raises(ValueError, match=r"config.json is of another model: it states"):
            huggingface.save(huggingface.load(CASES / other), tmp_path / "out", source)
    assert not (tmp_path / "out").exists()


def both(tmp_path):
    """Two models with their directories, which differ in weights, config.json and files."""
    one = directory(tmp_path)
    other = directory(tmp_path / "b")
    edit(other, layer_norm_eps=1.0)
    changed(other, lambda tensors: tensors.update({k: x + 1 for k, x in tensors.items()}))
    (other / "tokenizer.json").rename(other / "vocab.txt")
    return one, other


def told(folder):
    """What tells the two apart: a number of config.json, and one of the weights."""
    model = huggingface.load(folder)
    return model.norm.epsilon, float(model.norm.scale[0])


def test_files_of_an_older_save_go(tmp_path):
    one, other = both(tmp_path)
    huggingface.save(huggingface.load(one), tmp_path / "out", one)
    huggingface.save(huggingface.load(other), tmp_path / "out", other)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "vocab.txt"}
    assert told(tmp_path / "out") == told(other)


def test_a_directory_in_the_way_leaves_what_was_there(tmp_path):
    one, other = both(tmp_path)
    huggingface.save(huggingface.load(one), tmp_path / "out", one)
    (tmp_path / "out" / "vocab.txt").mkdir()
    with pytest.raises(IsADirectoryError, match=r"out/vocab.txt"):
        huggingface.save(huggingface.load(other), tmp_path / "out", other)
    assert told(tmp_path / "out") == told(one)


def test_a_kill_never_leaves_the_files_of_two_models(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    one, other = both(tmp_path)
    first, second = huggingface.load(one), huggingface.load(other)
    old, new, out = told(one), told(other), tmp_path / "out"
    calls, last, after = 0, 0, []

    def killing(operation):
        def run(*args, **options):
            nonlocal calls
            calls += 1
            if calls == last:
                raise Killed
            return operation(*args, **options)

        return run

    for name in ("replace", "unlink", "remove"):
        monkeypatch.setattr(os, name, killing(getattr(os, name)))
    while not after or after[-1] != "saved":
        huggingface.save(first, out, one)
        calls, last = 0, len(after) + 1
        try:
            huggingface.save(second, out, other)
            after.append("saved")
        except Killed:
            last = 0
            try:
                found = told(out)
                assert found in (old, new)
                after.append("old" if found == old else "new")
            except FileNotFoundError as error:
                assert "config.json is not there" in str(error)
                after.append("refused")
    assert told(out) == new
    assert after[0] == "old" and "refused" in after and len(after) > 8


def test_a_head_without_a_bias_comes_back_and_one_of_two_layers_is_refused(tmp_path):
    inputs = case("bert")[0][:2]
    source = directory(tmp_path)
    file = source / "config.json"
    file.write_text(json.dumps(config_of(source) | {"id2label": None}))
    model = Classifier(huggingface.load(source), 5, rngs=nnx.Rngs(0))
    model.head = nnx.Linear(16, 5, use_bias=False, rngs=nnx.Rngs(1))
    huggingface.save(model, tmp_path / "out", source)
    assert len(config_of(tmp_path / "out")["id2label"]) == 5
    back = huggingface.load_classifier(tmp_path / "out")
    np.testing.assert_allclose(back(*inputs), model(*inputs), atol=1e-6)
    changed(tmp_path / "out", lambda tensors: tensors.update({"head.bias": jnp.zeros(())}))
    with pytest.raises(ValueError, match=r"safetensors: head.bias has shape \(\); .*\(outputs,\)"):
        huggingface.load_classifier(tmp_path / "out")
    model.head = nnx.Sequential(model.head, model.head)
    with pytest.raises(ValueError, match=r"a head of \[.*\]; one linear layer can be saved"):
        huggingface.save(model, tmp_path / "none", source)
    assert not (tmp_path / "none").exists()


def test_a_directory_without_a_head_of_ours_says_so():
    with pytest.raises(ValueError, match=r"roberta/config.json: jaxsparse.pool = None, and model"):
        huggingface.load_classifier(CASES / "roberta")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_was_shrunk_is_saved(tmp_path, name):
    """Rows of position embeddings that the example does not reach stay, empty layers are whole."""
    inputs = [jnp.asarray(x) for x in case(name)[0][:2]]
    model = huggingface.load(CASES / name)
    masks = {}
    for layer, kept in enumerate(((1, 1, 0, 1), (0, 0, 0, 0))):
        columns = np.repeat(np.array(kept, bool), 4)
        for part in ("query", "key", "value"):
            at = f"layers/{layer}/attention/{part}"
            masks |= {f"{at}/kernel": np.tile(columns, (16, 1)), f"{at}/bias": columns}
    small, _ = js.graph.shrink_model(model, masks, *inputs)
    assert small.layers[0].attention.query.kernel.shape == (16, 12)
    assert small.layers[1].attention.query.kernel.shape == (16, 1)
    if name != "vit":
        assert small.position.embedding.shape == (16, 16)
    huggingface.save(small, tmp_path, CASES / name, "exact")
    back = huggingface.load(tmp_path)
    assert back.layers[1].attention.query.kernel.shape == (16, 4)
    np.testing.assert_allclose(back(*inputs), small(*inputs), atol=1e-5)
