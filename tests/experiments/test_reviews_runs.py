"""The configs of the reviews on a tiny BERT, with no network."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_reviews

import jaxsparse as js
from experiments import config as configs
from experiments import experiment, movement_claim, rules, train
from experiments.metrics import read
from experiments.models import create
from jaxsparse.trees import leaves_by_path, replace_by_path

CONFIGS = "experiments/configs"
SHORT = {
    "steps": 24,
    "batch_size": 8,
    "data.length": 8,
    "data.held_out": 0.2,
    "log_every": 4,
    "eval_every": 12,
    "checkpoint_every": 9,
}
# Heads of four channels in place of 32.
SMALL_RULES = (
    (r"encoder/layers/\d+/attention/\w+/kernel", "4x4"),
    (r"encoder/layers/\d+/intermediate/kernel", "channel:1"),
    (r"encoder/layers/\d+/output/kernel", "channel:0"),
)
FACTORS = ((SMALL_RULES[0][0], 30.0), (r"encoder/layers/\d+/(intermediate|output)/kernel", 30.0))


def load(name, tiny, **overrides):
    config = configs.load(f"{CONFIGS}/{name}", {**SHORT, **tiny, **overrides})
    config.rules = SMALL_RULES
    return config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_reviews.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def dense(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    return folder, train.run(load("reviews_dense.py", tiny), str(folder), html=False)


def test_embeddings_stay_and_the_rest_trains(tiny, dense):
    folder, report = dense
    built = experiment.build(load("reviews_dense.py", tiny))
    assert built.frozen and all(path.endswith("/embedding") for path in built.frozen)
    first = create("bert", built.dataset, weights=tiny["model.weights"]).pretrained
    with np.load(folder / "weights.npz") as weights:
        assert set(first) < set(weights)
        for path, leaf in first.items():
            assert np.array_equal(weights[path], leaf) is (path in built.frozen), path
    assert 0 <= report["sparse_f1"] <= 1 and np.isfinite(report["sparse_threshold"])


def movement(tiny, dense, **overrides):
    folder = str(dense[0])
    options = {"init_from": folder, "distillation.teacher": folder, **overrides}
    config = load("reviews_movement.py:strong_blocks", tiny, **options)
    config.recipe.factors = FACTORS
    return config


@pytest.mark.slow
def test_movement_from_a_dense_run_to_a_smaller_classifier(tiny, dense, tmp_path):
    report = train.run(movement(tiny, dense), str(tmp_path))
    assert report["linear_left"] < 0.9
    kinds = [group["kind"] for group in report["structure"]]
    assert kinds == ["heads", "neurons"] * 2
    records = {record["step"]: record for record in read(tmp_path / "metrics.jsonl")}
    # The masks that movement chose last are whole blocks, and stay for the rest.
    final = {key: value for key, value in records[24].items() if key.startswith("sparsity/")}
    assert len(final) == 12 and records[20].items() >= final.items()
    # What other commands read of the folder computes what was trained, packed too.
    models = movement_claim._models({"dense": dense[0], "strong_blocks": tmp_path})
    assert set(models) >= {"dense", "strong_blocks"}
    built = experiment.build(movement(tiny, dense))
    inputs, state = built.dataset.test.inputs, built.init()
    with np.load(tmp_path / "weights.npz") as weights:
        params, extra = (
            replace_by_path(tree, {p: weights[p] for p in leaves_by_path(tree) if p in weights})
            for tree in (state.params, state.extra)
        )
    expected = built.forward(params, extra, inputs)
    for name in set(models) - {"dense"}:
        found = models[name](jnp.asarray(inputs["ids"]), jnp.asarray(inputs["mask"]))
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-5)
    layers = models["strong_blocks"].encoder.layers
    heads = [len(group["kept"]) for group in report["structure"] if group["kind"] == "heads"]
    assert [layer.attention.query.out_features // 4 for layer in layers] == heads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.length": 17}, "length = 17 does not fit 1 to 16 positions"),
        ({"model.weights": "nowhere"}, "nowhere/config.json is not there"),
        ({"data.tokenizer": "nowhere"}, "nowhere/config.json is not there"),
        ({"model.frozen": "encoder/words"}, "model.frozen = 'encoder/words' matches no parameter"),
        ({"data.name": "digits"}, "model 'bert' reads ids and masks of tokens"),
    ],
)
def test_what_does_not_fit_is_told_before_training(tiny, change, message):
    overrides = {**SHORT, **tiny, **change}
    if change.get("data.name") == "digits":
        overrides = {k: v for k, v in overrides.items() if not k.startswith("data.") or k in change}
    with pytest.raises((ValueError, OSError), match=message):
        config = configs.read(f"{CONFIGS}/reviews_dense.py")
        for key in sorted(overrides, key=lambda key: not key.endswith(".name")):
            configs.assign(config, key, overrides[key])
            if key.endswith(".name"):
                configs.drop_options(config, key.removesuffix(".name"))
        experiment.build(config)


def test_a_tokenizer_of_another_model(tiny, tmp_path):
    other = tiny_reviews.write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 3}))
    with pytest.raises(ValueError, match=r"tokenizer.json: token '.' has id 6.*vocab_size = 3"):
        experiment.build(
            load("reviews_dense.py", tiny, **{"data.tokenizer": other["data.tokenizer"]})
        )


def test_the_rules_are_those_of_nncf(tiny):
    """Blocks and axes of NNCF's document (out, in), and what the config says of (in, out)."""
    attention = {"mode": "block", "sparse_factors": [4, 4], "target_scopes": "{re}.*attention.*"}
    first = {"mode": "per_dim", "axis": 0, "target_scopes": "{re}.*intermediate"}
    second = {"mode": "per_dim", "axis": 1, "target_scopes": r"{re}layers/\d+/output$"}
    nncf = {
        "algorithm": "movement_sparsity",
        "params": {
            "warmup_start_epoch": 1,
            "warmup_end_epoch": 4,
            "importance_regularization_factor": 0.01,
        },
        "sparse_structure_by_scopes": [attention, first, second],
        "ignored_scopes": ["head"],
    }
    built = experiment.build(load("reviews_dense.py", tiny))
    params = built.init().params
    theirs = js.recipes.movement.from_config(nncf, params, steps_per_epoch=10)
    ours = js.patterns.rules.resolve(rules.parse_rules(SMALL_RULES), params)
    kernels = {
        path: spec
        for path, spec in js.patterns.rules.resolve(theirs.rules, params).items()
        if path.endswith("kernel")
    }
    assert {path: spec.group_shape for path, spec in kernels.items()} == {
        path: spec.group_shape for path, spec in ours.items()
    }


@pytest.mark.parametrize("arm", ["light", "light_magnitude", "dense"])
def test_arms(arm):
    config = configs.load(f"{CONFIGS}/reviews_movement.py:{arm}")
    recipe = config.recipe.to_dict()
    names = {
        "light": "structured_movement",
        "light_magnitude": "structured_magnitude",
        "dense": "dense",
    }
    assert recipe["name"] == names[arm] and recipe["begin"] == 0.03
    assert recipe.get("refill") == {"light": True, "light_magnitude": False, "dense": None}[arm]


def test_an_unknown_arm():
    with pytest.raises(ValueError, match="no arm 'lite'; did you mean 'light'"):
        configs.load(f"{CONFIGS}/reviews_movement.py:lite")
