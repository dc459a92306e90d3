import functools
import itertools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import data, models, train
from experiments.search import __main__ as command
from experiments.search import config as own
from experiments.search import figures, methods, run, summary
from experiments.search.problem import Limits, budget_of
from experiments.search.tuning import settled
from jaxsparse.allocation import Allocation, LatencyTable

CONFIGS = sorted(pathlib.Path("experiments/configs").glob("mnist_*.py"))


def small(method="uniform", **keys):
    """MobileNet of one block on digits."""
    config = own.load(f"experiments/configs/mnist_{method}.py:digits")
    config.model.update(width=0.25, blocks=1)
    config.train.steps, config.tuning.steps = 12, 4
    config.update(divisor=4, examples=50)
    config.update_from_flattened_dict(keys)
    return own.check(config)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The folder of a dense run, which the searches start from."""
    folder = tmp_path_factory.mktemp("search") / "dense"
    train.run(run.dense_config(small()), str(folder), html=False)
    return str(folder)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_with_its_budgets(path):
    assert own.load(str(path)).method == path.stem.removeprefix("mnist_")
    assert own.load(f"{path}:0.3").budget.share == 0.3
    assert own.load(f"{path}:digits").data.name == "digits"
    with pytest.raises(ValueError, match=r"'third' is no share of the FLOPs such as 0\.3"):
        own.load(f"{path}:third")


def test_a_run_keeps_its_budget_and_is_only_read_when_finished(dense, tmp_path, monkeypatch):
    config = small(init_from=dense)
    report = run.run(config, str(tmp_path / "run"))
    assert [row["stage"] for row in report["rows"]] == ["dense", "uniform", "tuned"]
    assert report["cost"]["found"] <= report["budget"]["most"] == report["cost"]["dense"] / 2
    assert report["flops"]["found"] == report["cost"]["found"]
    assert report["speed"]["max_abs_difference"] < 1e-4
    sizes = report["speed"]["parameters"]
    assert sizes["shrunk"] < sizes["dense"]
    found = Allocation.load(tmp_path / "run" / run.ALLOCATION)
    assert {row["group"]: row["kept"] for row in report["groups"]} == found.widths
    # Weights that go are zero, before the tuning and after it.
    weights, masks = (np.load(tmp_path / "run" / name) for name in (run.WEIGHTS, run.MASKS))
    assert all(not np.any(weights[path][~masks[path]]) for path in masks.files)
    assert any(not masks[path].all() for path in masks.files)
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())
    assert "uniform on digits, mobilenet" in (tmp_path / "run" / "report.html").read_text()
    assert len(summary.groups(report)) == 1 + len(found.widths)
    monkeypatch.setattr(run, "_prepare", None)
    assert run.run(config, str(tmp_path / "run")) == report
    config.seed = 1
    with pytest.raises(ValueError, match=r"another config.*\n  seed: 0 -> 1"):
        run.run(config, str(tmp_path / "run"))


def test_a_killed_run_searches_and_tunes_once(dense, tmp_path, monkeypatch):
    config, asked = small(init_from=dense), []
    search = methods.uniform

    @functools.wraps(search)
    def counted(*arguments, **options):
        asked.append(options)
        return search(*arguments, **options)

    monkeypatch.setitem(methods.METHODS._factories, "uniform", counted)
    monkeypatch.setattr(run.speed, "measure", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run.run(config, str(tmp_path / "run"), html=False)
    assert asked == [{}]
    first = dict(np.load(tmp_path / "run" / run.WEIGHTS))
    monkeypatch.setattr(run.tuning, "tuner", lambda *_: None)
    monkeypatch.setattr(run.speed, "measure", lambda *_: {})
    report = run.run(config, str(tmp_path / "run"), html=False)
    again = dict(np.load(tmp_path / "run" / run.WEIGHTS))
    assert all(np.array_equal(first[path], again[path]) for path in first)
    assert report["search_seconds"] > 0 and report["tune_seconds"] > 0


def test_the_search_does_not_see_the_test_part(dense, tmp_path, monkeypatch):
    """With other test examples it finds, and trains, the same."""
    config = small(init_from=dense)
    monkeypatch.setattr(run.speed, "measure", lambda *_: {})
    load, reports, weights = run.data.load, [], []

    def altered(**options):
        found = load(**options)
        wrong = found.test.take(slice(0, 40))
        return run.data.Dataset(
            *("classification", found.train, run.data.Split(1 - wrong.inputs, wrong.labels)),
            *(10, "altered"),
            validation=found.validation,
        )

    for name in ("plain", "altered"):
        reports.append(run.run(config, str(tmp_path / name), html=False))
        weights.append(dict(np.load(tmp_path / name / run.WEIGHTS)))
        monkeypatch.setattr(run.data, "load", altered)
    assert reports[0]["test_examples"] != reports[1]["test_examples"] == 40
    assert reports[0]["groups"] == reports[1]["groups"]
    assert all(np.array_equal(weights[0][path], weights[1][path]) for path in weights[0])


def test_widths_are_multiples_from_the_lowest_one_on():
    limits = Limits({"a": 32, "b": 20, "c": 6}, 8, 0.3)
    assert limits.least() == {"a": 16, "b": 8, "c": 6}
    assert limits.at(0.75) == {"a": 24, "b": 8, "c": 6} and limits.at(1) == limits.units
    shares = limits.shares()
    assert shares == sorted(shares, reverse=True) and shares[0] == 1
    # Between two neighbours nothing changes.
    for above, below in itertools.pairwise(shares):
        assert limits.at((above + below) / 2) == limits.at(below)


class Sum:
    unit = "units"

    def __init__(self):
        self.units = {"a": 32, "b": 32}

    def total(self, widths=None):
        return sum((self.units | dict(widths or {})).values())


def test_a_budget_out_of_reach_says_what_is_in_reach():
    limits = Limits(Sum().units, 8, 0.25)
    assert budget_of(Sum(), limits, 0.5, 0.0) == 32
    assert budget_of(Sum(), limits, 0.5, 0.75) == 48
    with pytest.raises(ValueError, match=r"share = 0.2 is 12.8 of 64 units.* from 0.2500 on"):
        budget_of(Sum(), limits, 0.2, 0.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("method", "unifrom", r"unknown config.method 'unifrom'; did you mean 'uniform'"),
        ("model.name", "cn", r"unknown config.model.name 'cn'; did you mean 'cnn'"),
        ("data.name", "digit", r"config.data.name 'digit'; did you mean 'digits'"),
        ("search.episodes", 3, r"unknown config key 'search.episodes'"),
        ("model.widht", 3, r"unknown config key 'model.widht'; did you mean 'model.width'"),
        ("budget.of", "seconds", r"config.budget.of is 'seconds'; known: .*flops"),
        ("budget.share", 0.0, r"config.budget.share is a share in \(0, 1\], not 0.0"),
        ("budget.width", 1.5, r"config.budget.width is a share in \[0, 1\], not 1.5"),
        ("lowest", 1.0, r"config.lowest is a share in \[0, 1\), not 1.0"),
        ("divisor", 0, r"config.divisor must be at least 1, not 0"),
        ("train.peak", 0.0, r"config.train.peak must be above 0"),
        ("budget.share", 0.01, r"config.budget.share = 0.01 .* a share from 0\.\d+ on would work"),
        ("data.validation_fraction", 0.0, r"'digits' is for classification, without a validation"),
        ("init_from", "nowhere", r"config.init_from = 'nowhere' is no folder of a finished run"),
    ],
)
def test_mistakes_are_named_before_the_search(key, value, message, tmp_path, monkeypatch):
    config = small()
    group, _, option = key.rpartition(".")
    (config[group] if group else config)[option] = value
    monkeypatch.setattr(run.train, "run", None)  # the first of the long work
    with pytest.raises(ValueError, match=message):
        run.run(config, str(tmp_path / "run"))


def test_the_stream_of_a_residual_network_is_no_group(tmp_path):
    config = small()
    config.model = ConfigDict({"name": "cnn", "widths": (8, 16), "blocks": 1})
    setting = run._prepare(own.check(config), tmp_path)
    # Inside of both blocks; and behind the last, where nothing is added any more.
    inner = {"params/blocks_0": 8, "params/blocks_1": 16, "params": 16}
    assert setting.limits.units == inner
    assert setting.cost.total(methods.uniform(setting).allocation.widths) <= setting.budget
    assert run.dense_config(config).model.widths == (8, 16)


def test_a_model_without_groups(tmp_path):
    config = small()
    config.model = ConfigDict({"name": "mlp", "hidden": ()})
    with pytest.raises(ValueError, match=r"'mlp' has no group of channels"):
        run.run(config, str(tmp_path / "run"))


def test_the_command_says_a_mistake_in_a_line():
    with pytest.raises(SystemExit, match="error: unknown config key 'sed'; did you mean 'seed'"):
        command.main(
            ["--config=experiments/configs/mnist_uniform.py", "--workdir=x", "--config.sed=1"]
        )


def test_statistics_settle_to_those_of_the_data():
    dataset = data.load("digits")
    model = models.create("mobilenet", dataset, width=0.25, blocks=1)
    params, extra = jax.jit(model.init)(jax.random.key(0))
    seen = settled(model, params, extra, data.Batches(dataset.train, 1438, 0), 60)
    stem = jax.lax.conv_general_dilated(
        dataset.train.inputs,
        params["stem"]["kernel"][...],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(
        seen["norm"]["mean"][...], jnp.mean(stem, (0, 1, 2)), rtol=1e-2, atol=1e-3
    )


@pytest.fixture
def times(monkeypatch):
    """Products take a microsecond for each number of their kernel, the whole program one ms."""

    def measure(table, programs, before=None):
        del before
        table.entries["nothing"] = 0.01
        for name in programs:
            kernel = re.findall(r"float32\[([\d,]+)\]", name)[1:2]
            sizes = map(int, kernel[0].split(",")) if kernel else [1000]
            table.entries.setdefault(name, 1e-3 * math.prod(sizes))
        table.save()

    monkeypatch.setattr(LatencyTable, "measure", measure)


@pytest.mark.usefixtures("times")
def test_latency_is_predicted_by_a_table_that_runs_share(dense, tmp_path):
    table = tmp_path / "latency.json"
    config = small(init_from=dense)
    config.budget.of, config.latency.table = "latency", str(table)
    report = run.run(config, str(tmp_path / "run"), html=False)
    assert report["budget"]["unit"] == "ms"
    predicted = report["speed"]["predicted"]
    assert predicted["dense_ms"] == report["cost"]["dense"] > 1
    assert predicted["found_ms"] == report["cost"]["found"] <= report["budget"]["most"]
    error = predicted["found_ms"] / predicted["measured_ms"] - 1
    assert predicted["error"] == pytest.approx(error)
    assert any("predicted" in row[0] for row in summary.speeds(report))
    # A budget of FLOPs has it predicted, too.
    config.budget.of, config.latency.predict = "flops", True
    again = run.run(config, str(tmp_path / "flops"), html=False)
    assert again["budget"]["unit"] == "MACs" and again["speed"]["predicted"]["found_ms"] > 0
    found = json.loads(table.read_text())
    found["fingerprint"]["processor"] = "abacus"
    table.write_text(json.dumps(found))
    config.seed = 1
    with pytest.raises(ValueError, match=r"latency.json .*processor is .*'abacus' there"):
        run.run(config, str(tmp_path / "other"), html=False)


OPTIONS = {
    "sensitivity": {"ratios": (0.25, 0.5)},
    "spdy": {"ratios": (0.25, 0.5)},
    "netadapt": {"short": 1},
    "amc": {"episodes": 4, "warmup": 2, "hidden": 8, "calibration": 16},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_every_method_keeps_the_budget(dense, tmp_path, monkeypatch, method):
    monkeypatch.setattr(run.speed, "measure", lambda *_: {})
    config = small(method, init_from=dense, lowest=0.5)
    config.search.update(OPTIONS[method])
    config.budget.share = 0.7
    report = run.run(config, str(tmp_path / "run"), html=False)
    assert [figure.axes for _, figure, _ in figures.of(method, report["history"])]
    assert report["cost"]["found"] <= 0.7 * report["cost"]["dense"]
    assert all(row["kept"] >= 0.5 * row["units"] for row in report["groups"])
    if method == "amc":
        assert len(report["history"]["history"]["rewards"]) == 4
    elif method == "netadapt":
        tried = report["history"]["candidates"]
        assert any(each["chosen"] for each in tried) and all(each["iteration"] for each in tried)
    else:
        drops = report["history"]["drops"]
        assert all(len(each) == 2 for each in drops.values()) and len(drops) == 2


def test_every_method_is_tested():
    assert {"uniform", *OPTIONS} == {*methods.METHODS.names}
    assert {path.stem.removeprefix("mnist_") for path in CONFIGS} == {*methods.METHODS.names}


def test_ratios_that_do_not_reach_the_budget_are_refused_before_the_scan(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_dense", lambda *_: None)
    config = small("sensitivity", init_from="")
    config.search.ratios = (0.25, 0.95)
    monkeypatch.setattr(run.tuning, "tuner", lambda *_: None)
    monkeypatch.setattr(methods.js.allocation, "scan", None)
    with pytest.raises(ValueError, match=r"with ratios up to 0.25, which keep the lowest widths"):
        run.run(config, str(tmp_path / "run"))
