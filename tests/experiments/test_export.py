"""`python -m experiments.export`: runs and directories into files."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
from test_huggingface import CASES
from test_huggingface_command import finished

import jaxsparse as js
from experiments import export, huggingface


def test_a_run_is_exported_without_what_its_masks_emptied(tmp_path, capsys):
    model, out = finished(tmp_path / "run"), tmp_path / "model.bin"
    command = [str(tmp_path / "run"), "--to=stablehlo", f"--out={out}", "--tokens=6"]
    export.main(command)
    assert "inputs: int32[batch, 6], bool[batch, 6]" in capsys.readouterr().out
    whole = tmp_path / "whole.bin"
    ids, mask = export.example(model, 3, 6)
    js.export_stablehlo(model, ids, mask, path=whole)
    assert out.stat().st_size < whole.stat().st_size
    run = js.load_stablehlo(out)
    np.testing.assert_allclose(run(ids, mask), model(ids, mask), atol=1e-5)


def test_images_and_a_batch_of_ones_own(tmp_path, capsys):
    out = tmp_path / "model.bin"
    export.main([str(CASES / "vit"), "--to=stablehlo", f"--out={out}", "--batch=3"])
    assert "inputs: float32[3, " in capsys.readouterr().out
    model = huggingface.load_classifier(CASES / "vit")
    (images,) = export.example(model, 3, 1)
    np.testing.assert_allclose(js.load_stablehlo(out)(images), model(images), atol=1e-5)
    with pytest.raises(ValueError, match="Shape mismatch"):
        js.load_stablehlo(out)(jnp.concatenate([images, images]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "--to=stablehlo"], r"none/config\.json is not there, for none is no folder"),
        ([str(CASES / "bert"), "--to=stablehlo", "--tokens=4000"], r"--tokens 4000: the model"),
        ([str(CASES / "bert"), "--to=stablehlo", "--batch=0"], r"--batch 0 .* at least 1"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        export.main([*arguments, f"--out={tmp_path / 'model.bin'}"])


def test_onnx_without_its_packages_is_one_line_too(tmp_path):
    if importlib.util.find_spec("jax2onnx") is not None:
        pytest.skip("jax2onnx is installed: tests/export/test_onnx.py converts")
    command = [str(CASES / "bert"), "--to=onnx", "--tokens=6", f"--out={tmp_path / 'model.onnx'}"]
    with pytest.raises(SystemExit, match=r"^error: .* pip install 'jaxsparse\[onnx\]'"):
        export.main(command)
