"""`python -m experiments.huggingface`: runs and directories into directories."""

import json

import numpy as np
import pytest
from flax import nnx
from test_huggingface import CASES, case

from experiments import huggingface
from experiments.huggingface import __main__ as command
from experiments.models.encoders import Classifier
from jaxsparse.trees import leaves_by_path


def finished(folder, name="bert"):
    """The folder of a run whose masks empty a head of layer 0 and 9 neurons of layer 1."""
    model = Classifier(huggingface.load(CASES / "bert"), 2, rngs=nnx.Rngs(1))
    heads, neurons = np.arange(16) >= 4, np.arange(24) >= 9
    masks = {
        "encoder/layers/1/intermediate/kernel": np.tile(neurons, (16, 1)),
        "encoder/layers/1/intermediate/bias": neurons,
    }
    for part in ("query", "key", "value"):
        masks[f"encoder/layers/0/attention/{part}/kernel"] = np.tile(heads, (16, 1))
        masks[f"encoder/layers/0/attention/{part}/bias"] = heads
    weights = {path: np.array(x) for path, x in leaves_by_path(nnx.state(model)).items()}
    for path, mask in masks.items():
        weights[path] *= mask
    folder.mkdir()
    np.savez(folder / "weights.npz", allow_pickle=False, **weights)
    np.savez(folder / "masks.npz", allow_pickle=False, **masks)
    config = {"model": {"name": name, "weights": str(CASES / "bert")}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "report.json").write_text("{}")
    nnx.update(model, nnx.from_flat_state(masked(model, weights)))
    return model


def masked(model, weights):
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        yield path, leaf.replace(weights["/".join(map(str, path))])


def test_a_run_becomes_a_directory_without_what_its_masks_emptied(tmp_path, capsys):
    (ids, mask, _), _, _ = case("bert")
    model = finished(tmp_path / "run")
    command.main([str(tmp_path / "run"), str(tmp_path / "out"), "--form=exact"])
    assert "layer 0: 3 heads, 24 neurons" in capsys.readouterr().out
    small = huggingface.load_classifier(tmp_path / "out")
    assert small.encoder.layers[1].intermediate.kernel.shape == (16, 15)
    np.testing.assert_allclose(small(ids, mask), model(ids, mask), atol=1e-5)


def test_a_directory_changes_its_form_and_keeps_its_head(tmp_path, capsys):
    command.main([str(CASES / "vit"), str(tmp_path / "out")])
    assert capsys.readouterr().out.endswith("MiB of weights, dense\n")
    (images,), _, expected = case("vit")
    logits = huggingface.load_classifier(tmp_path / "out")(images)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)


def test_a_mistake_is_one_line(tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit, match=r"^error: \S+none/config.json is not there"):
        command.main([str(tmp_path / "none"), out])
    finished(tmp_path / "run", name="mlp")
    with pytest.raises(SystemExit, match=r"^error: \S+ is a run of the model 'mlp', not 'bert'"):
        command.main([str(tmp_path / "run"), out])
