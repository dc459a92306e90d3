"""Sparsity by the place of a leaf in the model, against the original codes' results."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.calibration import owl, prune_oneshot
from jaxsparse.calibration.outliers import from_outliers
from jaxsparse.pruning.depth import ByBlock, blocks_of, from_exponents, in_order

FILE = pathlib.Path(__file__).parent / "cases/oneshot.json"
CASES = {case["id"]: case for case in json.loads(FILE.read_text())["cases"]}
RULES = [js.Rule(".*", js.Unstructured())]
BLOCKS = r"(\D*\d+).*"


def of_kind(kind):
    return [case for case in CASES.values() if case["kind"] == kind]


def made(case):
    space = {"numpy": np}
    exec(case["inputs"]["generator"], space)
    return eval(case["inputs"]["call"], space)


def shares(sizes, sparsity, distribution):
    structs = {path: jax.ShapeDtypeStruct((1, n), jnp.float32) for path, n in sizes.items()}
    return js.targets(RULES, structs, sparsity, distribution)


def mean(sizes, found):
    return sum(n * found[path] for path, n in sizes.items()) / sum(sizes.values())


@pytest.mark.parametrize("case", of_kind("owl"), ids=lambda case: case["id"])
def test_owl_on_a_model_is_the_originals(case):
    blocks, x = made(case)
    params = {str(i): {"up": u.T, "down": d.T} for i, (u, d) in enumerate(blocks)}

    def model(params, x):
        for block in params.values():
            x = x + jax.nn.relu(x @ block["up"]) @ block["down"]
        return x

    options = {"multiple": case["inputs"]["M"], "strength": case["inputs"]["lam"]}
    distribution = owl(model, params, [jnp.asarray(row) for row in x], RULES, **options)
    found = js.targets(RULES, params, case["inputs"]["sparsity"], distribution)
    for i, expected in enumerate(case["expected"]["sparsity_per_block"]):
        for name in ("up", "down"):
            assert found[f"{i}/{name}"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", of_kind("owl_map"), ids=lambda case: case["id"])
def test_the_map_of_owl(case):
    outliers = {f"l{i}": share for i, share in enumerate(case["inputs"]["outlier_percent"])}
    distribution = from_outliers(
        outliers, strength=case["inputs"]["lam"], blocks=BLOCKS, maximum=0.98
    )
    found = shares(dict.fromkeys(outliers, 100), case["inputs"]["sparsity"], distribution)
    np.testing.assert_allclose(
        list(found.values()), case["expected"]["sparsity_per_block"], atol=1e-6
    )


def test_the_exponents_of_spectra():
    [case] = of_kind("alpha_metric")
    params = {f"l{i}": weight.T for i, weight in enumerate(made(case))}
    expected = case["expected"]["alpha_xmin_mid"]
    ours = js.targets(RULES, params, 0.5, js.alpha_pruning(RULES, params))
    theirs = from_exponents(
        dict(zip(params, expected, strict=True)), spread=0.3, blocks=BLOCKS, maximum=0.98
    )
    assert ours == pytest.approx(js.targets(RULES, params, 0.5, theirs), rel=1e-4)


@pytest.mark.parametrize("case", of_kind("alpha_map"), ids=lambda case: case["id"])
def test_the_map_of_alpha_pruning(case):
    inputs = case["inputs"]
    each = inputs["layers_per_block"] if inputs["mapping"] == "block_wise" else 1
    paths = [f"b{i // each}/{i}" for i in range(len(inputs["alpha"]))]
    sizes = dict(zip(paths, inputs["layer_sizes"], strict=True))
    distribution = from_exponents(
        dict(zip(paths, inputs["alpha"], strict=True)),
        spread=inputs["epsilon"],
        blocks=BLOCKS,
        maximum=0.98,
    )
    found = shares(sizes, inputs["sparsity"], distribution)
    expected = dict(zip(paths, case["expected"]["sparsity_per_layer"], strict=True))
    assert found == pytest.approx(expected, abs=1e-5)


UNEQUAL = {"l0/a": 100, "l1/a": 3000, "l2/a": 50, "l2/b": 700, "l10/a": 400}


@pytest.mark.parametrize("sparsity", [0.0, 0.02, 0.5, 0.9, 0.97, 0.98])
@pytest.mark.parametrize(
    "distribution",
    [
        js.arithmetic_progression(0.1),
        js.arithmetic_progression(-0.4),
        js.arithmetic_progression(0.0),
        from_outliers(
            {"l0": 1, "l1": 4, "l2": 2, "l10": 9}, strength=0.3, blocks=BLOCKS, maximum=0.98
        ),
        from_outliers(
            dict.fromkeys(["l0", "l1", "l2", "l10"], 7.0), strength=0.3, blocks=BLOCKS, maximum=0.98
        ),
        from_exponents(
            dict(zip(UNEQUAL, (2.0, 3.0, 5.0, 9.0, 4.0), strict=True)),
            spread=0.9,
            blocks=BLOCKS,
            maximum=0.98,
        ),
    ],
    ids=["later", "earlier", "none", "owl", "alike", "alpha"],
)
def test_weights_together_end_at_the_target_within_bounds(sparsity, distribution):
    found = shares(UNEQUAL, sparsity, distribution)
    assert mean(UNEQUAL, found) == pytest.approx(sparsity, abs=1e-12)
    assert all(0 <= share <= 0.98 for share in found.values())
    assert found["l2/a"] == found["l2/b"]


def test_what_is_alike_is_uniform():
    distribution = from_exponents({"l0": 3.0, "l1": 3.0}, spread=0.3, blocks=BLOCKS, maximum=0.98)
    assert shares({"l0": 5, "l1": 50}, 0.5, distribution) == pytest.approx({"l0": 0.5, "l1": 0.5})


def test_layer_2_comes_before_layer_10():
    found = shares(UNEQUAL, 0.5, js.arithmetic_progression(0.05))
    order = [found[path] for path in ("l0/a", "l1/a", "l2/a", "l10/a")]
    np.testing.assert_allclose(np.diff(order), 0.05)
    assert in_order({"b/10", "b/9", "a/11"}) == ["a/11", "b/9", "b/10"]
    assert blocks_of(BLOCKS, ["enc/0/w", "dec/0/w"]) == {"enc/0/w": "enc/0", "dec/0/w": "dec/0"}


def test_prune_compute_masks_and_prune_oneshot_take_them():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {f"l{i}": jax.random.normal(key, (8, 8)) for i, key in enumerate(keys)}

    def model(params, x):
        for kernel in params.values():
            x = jnp.tanh(x @ kernel)
        return x

    options = {"sparsity": 0.5, "distribution": js.arithmetic_progression(0.125)}
    kept = [44, 36, 28, 20]
    masks = js.compute_masks(params, RULES, **options)
    assert [int(mask.sum()) for mask in masks.values()] == kept
    tx = js.prune(RULES, schedule=js.one_shot(0), **options)
    _, state = tx.update(params, tx.init(params), params)
    assert [int(mask.sum()) for mask in js.masks(state).values()] == kept
    batches = [(jax.random.normal(keys[0], (16, 8)),)]
    found = prune_oneshot(model, params, batches, RULES, **options)
    assert [int(mask.sum()) for mask in found.masks.values()] == kept


def model(params, x):
    return jnp.tanh(x @ params["l0"]) @ params["l1"]


PARAMS = {"l0": jnp.eye(4) + 0.1, "l1": jnp.eye(4)}
X = jnp.ones((3, 4))


@pytest.mark.parametrize(
    "run, message",
    [
        (lambda: shares({"w": 4, "v": 4}, 0.5, js.arithmetic_progression(0.1)), "which block 'v'"),
        (lambda: shares({"a1/w": 4, "a1/v": 4}, 0.5, js.arithmetic_progression(0.1)), "one block"),
        (lambda: shares(UNEQUAL, 0.99, js.arithmetic_progression(0.1)), "0.99 is out of reach"),
        (lambda: shares({"a": 1}, 0.5, js.arithmetic_progression(0.1, blocks="(")), "blocks="),
        (lambda: js.arithmetic_progression(math.nan), "step=nan"),
        (lambda: js.alpha_pruning(RULES, PARAMS, spread=1.0), "spread=1.0"),
        (lambda: js.alpha_pruning(RULES, PARAMS), "kernel of 'l1', .4, 4., has too few"),
        (lambda: js.alpha_pruning(RULES, {"l0": X * jnp.nan}), "'l0' of shape .3, 4. is not fin"),
        (lambda: shares(UNEQUAL, 0.5, ByBlock(numbers=(("l0", 1.0),))), "not seen block 'l1'"),
        (lambda: owl(model, PARAMS, [], RULES), "no batches"),
        (lambda: owl(model, PARAMS, [X * jnp.nan], RULES), "'l0' of shape .4, 4., or what it"),
        (lambda: owl(model, PARAMS | {"l2": X}, [X], RULES), "no product meets 'l2'"),
        (lambda: owl(model, PARAMS, [X], RULES, strength=0.5), "strength=0.5"),
    ],
    ids=[
        "block",
        "one",
        "reach",
        "regex",
        "step",
        "spread",
        "eye",
        "nan",
        "new",
        "none",
        "value",
        "idle",
        "strength",
    ],
)
def test_what_cannot_be_shared_out_is_refused(run, message):
    with pytest.raises(ValueError, match=message):
        run()
