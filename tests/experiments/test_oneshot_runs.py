"""`python -m experiments.oneshot`: a run end to end, killed and gone on with, and mistakes."""

import dataclasses
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from experiments import figures
from experiments.oneshot import __main__ as command
from experiments.oneshot import config as own
from experiments.oneshot import methods, models, page, run, summary
from experiments.registry import near_misses
from jaxsparse.calibration.criteria import measured_by
from jaxsparse.trees import leaves_by_path

CONFIGS = sorted(pathlib.Path("experiments/configs").glob("smollm_*.py"))
SIZES = dataclasses.replace(
    models.TINY_SIZES, width=16, head_dim=8, heads=(2,), key_heads=(1,), hidden=(32,)
)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """One small block, a text file, and nothing to write."""
    monkeypatch.setattr(models, "TINY_SIZES", SIZES)
    notes = tmp_path / "notes.txt"
    notes.write_text("\n\n".join(f"{n} is what the number {n} says." for n in range(2000)))
    found = own.load("experiments/configs/smollm_tiny.py:2:4")
    found.calibration.update(corpora=(str(notes),), sequences=4, length=16)
    found.test.update(corpora=(str(notes),), sequences=4)
    found.generation.tokens = 0
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("pattern", own.PATTERNS)
def test_every_config_loads_with_every_pattern(path, pattern):
    config = own.load(f"{path}:{pattern}")
    assert config.pattern == pattern and config.sparsity == own.PATTERNS[pattern]
    assert (own.rule(config).sparsity is None) == (":" in pattern)
    wanda = config.criterion == "wanda" and pattern == "unstructured"
    assert own.competing(config) == ("output" if wanda else "layer")


def test_the_last_stage_fits_parts_of_blocks_under_the_masks(config, tmp_path, monkeypatch):
    config.stages = ("fit",)
    config.fit.update(steps=8, rate=1e-3)
    folder, tested = tmp_path / "run", run._tested

    def kept():
        return (folder / "layers" / "fit" / "fitted.npz").exists()

    def killed(*arguments):
        raise KeyboardInterrupt

    # Before the row is there, and after it.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "_tested", lambda *a: killed() if kept() else tested(*a))
        run.run(config, str(folder))
    assert kept() and not (folder / "rows" / "2.json").exists()
    monkeypatch.setattr(run, "fit_parts", None)  # what it fitted is on disk
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.outcome, "environment", killed)
        run.run(config, str(folder))
    report = run.run(config, str(folder))
    rows = report["rows"]
    assert [row["stage"] for row in rows] == ["dense", "wanda", "wanda + fit"]
    before, after = rows[2]["part_loss"]
    assert 0 < after < before and rows[2]["sparsity"] == rows[1]["sparsity"] == 0.5
    packed = leaves_by_path(js.load_safetensors(folder / run.PACKED), js.is_packed)
    with np.load(folder / run.MASKS) as masks:
        for path in masks.files:
            assert not np.asarray(js.unpack(packed[path]))[~masks[path]].any()


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(config, tmp_path, monkeypatch):
    config.stages = ("reconstruction",)
    folder, prune, asked = tmp_path / "run", run.prune_oneshot, []

    def killed(*arguments, **options):
        asked.append(options["per"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return prune(*arguments, **options)

    monkeypatch.setattr(run, "prune_oneshot", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run(config, str(folder))
    kept = {file.name: file.read_bytes() for file in (folder / "rows").iterdir()}
    assert sorted(kept) == ["0.json", "1.json"]

    report = run.run(config, str(folder))
    assert len(asked) == 3  # the first stage is not pruned again
    assert all((folder / "rows" / name).read_bytes() == kept[name] for name in kept)
    stages = [row["stage"] for row in report["rows"]]
    assert stages == ["dense", "wanda", "wanda + reconstruction"]
    assert [row["sparsity"] for row in report["rows"]] == [0, 0.5, 0.5]
    assert all(150 < row["perplexity"][config.test.corpora[0]] < 600 for row in report["rows"])
    assert report == json.loads((folder / "report.json").read_text())
    masks = np.load(folder / run.MASKS)
    assert len(masks.files) == report["pruned_leaves"] == 7
    packed = leaves_by_path(js.load_safetensors(folder / run.PACKED), js.is_packed)
    path = "layers/0/feed_forward/up/kernel"
    np.testing.assert_array_equal(np.asarray(packed[path].todense()) != 0, masks[path])
    html = (folder / "report.html").read_text()
    assert "wanda + reconstruction on tiny, 2:4" in html and html.count("<img") == 1
    # What is finished is only read.
    monkeypatch.setattr(run, "_prepare", None)
    assert run.run(config, str(folder)) == report
    config.seed = 1
    with pytest.raises(ValueError, match=r"another config.*\n  seed: 0 -> 1"):
        run.run(config, str(folder))


def test_a_last_row_that_is_there_is_pruned_again_for_its_weights(config, tmp_path, monkeypatch):
    write = run._written
    monkeypatch.setattr(run, "_written", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run(config, str(tmp_path / "run"), html=False)
    monkeypatch.setattr(run, "_written", write)
    report = run.run(config, str(tmp_path / "run"), html=False)
    assert len(report["rows"]) == 2 and report["pruned_leaves"] == 7


def test_minutes_are_those_of_killed_runs_too(config, tmp_path, monkeypatch):
    prune, told = run.prune_oneshot, []

    def killed(*arguments, on_pruned, **options):
        def tell(done):
            on_pruned(done._replace(seconds=1000.0))
            told.append(done.path)
            if len(told) == 3:
                raise KeyboardInterrupt

        return prune(*arguments, on_pruned=tell, **options)

    monkeypatch.setattr(run, "prune_oneshot", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run(config, str(tmp_path / "run"), html=False)
    monkeypatch.setattr(run, "prune_oneshot", prune)
    _, row = run.run(config, str(tmp_path / "run"), html=False)["rows"]
    assert 3000 < row["prune_seconds"] < 4000
    assert row["prune_cpu_seconds"] > 0 and row["layer_loss"] > 0


@pytest.mark.usefixtures("config")
def test_the_tiny_model_reads_and_writes_bytes():
    model = models.load("tiny")
    written = np.asarray(model.encode("a word"), np.int32)  # as a model hands them over
    assert model.decode(written) == "a word"


def test_a_pattern_of_n_of_m_brings_its_sparsity():
    assert own.load("experiments/configs/smollm_tiny.py:3:4").sparsity == 0.25
    assert own.load("experiments/configs/smollm_tiny.py:1:3").pattern == "1:3"


@pytest.mark.slow
def test_what_is_written_dense_and_packed(config, tmp_path):
    config.generation.update(tokens=4, rounds=1)
    report = run.run(config, str(tmp_path / "run"))
    forms = ["dense float32", "dense bfloat16", "packed bfloat16", "packed int8"]
    assert [row["model"] for row in report["speed"]] == forms
    assert list(report["samples"]) == ["prompt", *forms]
    sizes = [row["bytes"] for row in report["speed"]]
    assert sizes == sorted(sizes, reverse=True)
    assert all(row["speedup"]["dense float32"] > 0 for row in report["speed"])
    assert len(summary.speeds(report)) == 5


def test_a_model_in_a_directory_of_hugging_face(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="reads tokenizer.json")
    folder = tmp_path / "llama"
    shutil.copytree("tests/cases/huggingface/llama", folder)
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json is not there"):
        models.load(str(folder))
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 7, "b": 39}, []))
    bpe.save(str(folder / "tokenizer.json"))
    models.check_name(str(folder))
    model = models.load(str(folder))
    assert list(model.encode("abba")) == [7, 39, 39, 7] and model.source == "llama"
    expected = json.loads((folder / "expected.json").read_text())
    found = model.apply(model.params, jnp.asarray(expected["tokens"]))
    np.testing.assert_allclose(found, expected["logits"], atol=1e-4, rtol=1e-5)
    with pytest.raises(ValueError, match="model_type 'bert' is no decoder"):
        models.load("tests/cases/huggingface/bert")


def test_a_figure_of_several_runs():
    def report(pattern, *rows):
        found = [{"stage": s, "sparsity": p, "perplexity": {"a": x}} for s, p, x in rows]
        return {"pattern": pattern, "rows": [{"perplexity": {"a": 9.0}}, *found]}

    found = page.points(report("2:4", ("w", 0.5, 20.0), ("w + x", 0.5, None)))
    assert found == {"a": {"w, 2:4": [(0.0, 9.0), (0.5, 20.0)]}}


def test_a_figure_labels_perplexity_as_the_tables_do():
    (axes,) = figures.perplexities({"a": {"w": [(0.0, 50.8), (0.5, 88.8)]}}).axes
    labels = {text.get_text() for text in axes.get_yticklabels(minor=True)}
    assert {"60", "80"} <= labels and not any("times" in label for label in labels)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("criterion", "wonda", r"unknown criterion 'wonda'; did you mean 'wanda'"),
        ("stages", ("swap",), r"unknown stage 'swap'; did you mean 'swaps'"),
        ("stages", ("swaps", "swaps"), r"each once"),
        ("stages", ("fit", "swaps"), r"'fit' as the last stage"),
        ("fit.rate", 0.0, r"config\.fit\.rate must be above 0"),
        ("pattern", "2of4", r"unknown pattern '2of4'"),
        ("sparsity", 0.7, r"config.sparsity = 0.7, but the pattern 2:4 has 0.5"),
        ("sparsity", 1.0, r"config.sparsity is a share in \(0, 1\), not 1.0"),
        ("per", "row", r"config.per is 'row'; known: auto, layer, output"),
        ("per", "output", r"not for 2:4; auto would work"),
        ("model", "smollm3", r"config.model is 'smollm3'; smollm2, tiny, a GGUF file or"),
        ("batch_size", 0, r"config.batch_size must be at least 1, not 0"),
        ("calibration.sequences", 6, r"config.calibration.sequences = 6 is no multiple of"),
        ("calibration.corpora", ("revews",), r"'revews' is no corpus and no text file"),
        ("calibration.corpora", (), r"config.calibration.corpora = \(\): one or more"),
        ("test.corpora", ("reviews", "reviews"), r"each once"),
    ],
)
def test_mistakes_are_named_before_any_work(config, key, value, message, tmp_path):
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        run.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pattern", "3:6", r"layers/0/.*kernel' of shape \(16, \d+\).*6"),
        ("calibration.sequences", 100000, r"calibration on .*notes.txt needs 100000 windows"),
        ("calibration.length", 600, r"config.calibration.length: 600 tokens .* 512 at most"),
        ("generation.tokens", 600, r"config.generation.tokens: 6\d\d tokens .* 512 at most"),
    ],
)
def test_what_the_model_or_the_texts_cannot_do(config, key, value, message, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "perplexity", None)  # the first of the long work
    config.update_from_flattened_dict({key: value})
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        run.run(config, str(folder))
    assert not list(folder.iterdir())  # it began no run
    (folder / "config.json").write_text("{}")
    (folder / "report.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match=message):
        run.run(config, str(folder), overwrite=True)
    assert json.loads((folder / "report.json").read_text()) == {"rows": []}  # and deleted none


def test_a_key_that_there_is_not(config):
    del config.seed
    with pytest.raises(ValueError, match="the config lacks seed"):
        own.check(config)
    config.sed = 1
    with pytest.raises(ValueError, match=r"key 'sed'" + near_misses("sed", ["seed"]).rstrip("?")):
        own.check(config)


def test_the_command_says_a_mistake_in_a_line():
    with pytest.raises(SystemExit, match="error: unknown config key 'sed'; did you mean 'seed'"):
        command.main(
            ["--config=experiments/configs/smollm_tiny.py", "--workdir=x", "--config.sed=1"]
        )


def test_all_rows_of_a_run_measure_the_loss_alike():
    norms = methods.measured(methods.chain("wanda", ()))
    assert [measured_by(criterion) for criterion in norms.values()] == ["squares"]
    alike = methods.measured(methods.chain("wanda", ("swaps", "reconstruction")))
    assert [measured_by(criterion) for criterion in alike.values()] == ["products"] * 3
    params, x = {"w": jnp.eye(8) + 0.1}, jnp.arange(64.0).reshape(8, 8) % 7
    told, masks = [], []
    for criterion in (norms["wanda"], alike["wanda"]):
        found = js.calibration.prune_oneshot(
            lambda params, x: x @ params["w"],
            params,
            [x],
            [js.Rule("w", js.NM(2, 4))],
            criterion=criterion,
            on_pruned=told.append,
        )
        masks.append(found.masks["w"])
    np.testing.assert_array_equal(*masks)
    whole, change = x @ params["w"], x @ (params["w"] - found.params["w"])
    expected = jnp.sum(change**2) / jnp.sum(whole**2)
    np.testing.assert_allclose(told[1].error, expected, rtol=1e-4)
    assert abs(told[0].error - told[1].error) > 0.01
    rows = [
        {"stage": "dense", "perplexity": {"a": 9.0}, "sparsity": 0},
        {"stage": "w", "perplexity": {"a": 9.0}, "sparsity": 0.5, "layer_loss_by": "squares"},
    ]
    assert summary.stages({"rows": rows})[0][3] == "layer loss by norms"
    rows[1]["layer_loss_by"] = "products"
    assert summary.stages({"rows": rows})[0][3] == "layer loss"


def test_stages_follow_each_other():
    labels = list(methods.chain("alps", ("swaps", "reconstruction")))
    assert labels == ["alps", "alps + swaps", "alps + swaps + reconstruction"]


@pytest.mark.slow
def test_layers_get_the_sparsities_by_which_they_lose_least(config, tmp_path):
    config.update(
        pattern="unstructured", sparsity=0.6, distribution="exact", levels=(0.4, 0.6, 0.8)
    )
    report = run.run(config, str(tmp_path / "exact"), html=False)
    file = tmp_path / "exact" / run.ALLOCATION
    found = js.allocation.Allocation.load(file)
    assert report["allocation"] == found.to_dict() and found.about["proved"]
    assert len(set(found.sparsities.values())) > 1
    sparsity = report["rows"][1]["sparsity"]
    assert sparsity >= 0.6 - 1e-3
    kept = found.about["cost"] / report["pruned_parameters"]
    assert sparsity == pytest.approx(1 - kept, abs=1e-6)
    # Its file is a distribution by itself.
    config.update(distribution=str(file), criterion="magnitude")
    again = run.run(config, str(tmp_path / "again"), html=False)
    assert again["allocation"] == found.to_dict()
    assert again["rows"][1]["sparsity"] == pytest.approx(1 - kept, abs=0.02)  # per layer here


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"distribution": "exactly"}, "no such file is there; uniform, exact, or a file"),
        ({"distribution": "exact", "pattern": "2:4"}, "has the same sparsity everywhere"),
        ({"distribution": "exact", "levels": (0.1, 0.4)}, "0.5 is above all config.levels, of whi"),
        ({"distribution": "exact", "levels": (0.1, 1.0)}, r"sparsities in \[0, 1\)"),
    ],
)
def test_distributions_that_are_none_are_named(config, change, words):
    config.update({"pattern": "unstructured", **change})
    with pytest.raises(ValueError, match=words):
        own.check(config)


def test_a_file_of_other_layers_is_refused_before_the_work(config, tmp_path):
    file = tmp_path / "found.json"
    js.allocation.Allocation({"layers/0/attention/quer/kernel": 0.5}).save(file)
    config.update(pattern="unstructured", distribution=str(file))
    with pytest.raises(ValueError, match="did you mean 'layers/0/attention/query/kernel'"):
        run.run(config, str(tmp_path / "run"))
