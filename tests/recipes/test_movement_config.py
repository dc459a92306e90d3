"""NNCF's configuration of movement sparsity, read for Flax parameters."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse.patterns.rules import resolve
from jaxsparse.recipes import RecipeError
from jaxsparse.recipes.movement import from_config

# The example for BERT of NNCF's documentation, its trailing comma too; scopes alone are renamed.
BERT = r"""
{
    "compression":
    {
    "algorithm":  "movement_sparsity",
    "params": {
        "warmup_start_epoch":  1,
        "warmup_end_epoch":    4,
        "importance_regularization_factor":  0.01,
        "enable_structured_masking":  true
    },
    "sparse_structure_by_scopes": [
        {"mode":  "block",   "sparse_factors": [32, 32], "target_scopes": "{re}.*attention.*"},
        {"mode":  "per_dim", "axis":  0,                 "target_scopes": "{re}.*intermediate.*"},
        {"mode":  "per_dim", "axis":  1,                 "target_scopes": "{re}\\d/output"},
    ],
    "ignored_scopes": ["{re}.*embeddings", "{re}.*qa_outputs*", "{re}.*norm.*"]
    }
}
"""


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def linear(inputs, outputs):
    return {"kernel": shape(inputs, outputs), "bias": shape(outputs)}


def bert(layers=2, width=64, inner=128):
    norm = {"scale": shape(width), "bias": shape(width)}
    return {
        "embeddings": {"word_embeddings": {"embedding": shape(100, width)}, "norm": norm},
        "layers": [
            {
                "attention": {
                    **{name: linear(width, width) for name in ("query", "key", "value", "output")},
                    "norm": norm,
                },
                "intermediate": linear(width, inner),
                "output": linear(inner, width),
                "norm": norm,
            }
            for _ in range(layers)
        ],
        "qa_outputs": linear(width, 2),
    }


TOY = {"a": linear(12, 16), "b": linear(16, 8), "norm": {"scale": shape(8)}}


def toy(params=(), structure=None, **section):
    """A configuration for TOY, with some of it exchanged; a parameter of None is left out."""
    options = {
        "warmup_start_epoch": 1,
        "warmup_end_epoch": 4,
        "importance_regularization_factor": 0.02,
        "steps_per_epoch": 5,
    } | dict(params)
    structure = [] if structure is None else structure
    return {
        "algorithm": "movement_sparsity",
        "params": {key: value for key, value in options.items() if value is not None},
        "sparse_structure_by_scopes": structure,
    } | section


def patterns(recipe, params):
    return {path: str(spec.pattern) for path, spec in resolve(recipe.rules, params).items()}


def test_the_example_for_bert_runs_as_it_stands(tmp_path):
    path = tmp_path / "bert.json"
    path.write_text(BERT)
    recipe = from_config(path, bert(), steps_per_epoch=100)
    expected = {}
    for i in range(2):
        for name in ("query", "key", "value", "output"):
            expected[f"layers/{i}/attention/{name}/kernel"] = "Block(32, 32)"
            expected[f"layers/{i}/attention/{name}/bias"] = "Block(1, 32)"
        expected[f"layers/{i}/intermediate/kernel"] = "Channel(-1)"
        expected[f"layers/{i}/intermediate/bias"] = "Unstructured()"
        expected[f"layers/{i}/output/kernel"] = "Channel(-2)"
        expected[f"layers/{i}/output/bias"] = "Block(1, 64)"
    assert patterns(recipe, bert()) == expected
    assert recipe.schedule == js.importance_threshold(begin=100, end=400)
    assert recipe.structured_masking and recipe.regularization == 0.01


def test_files_dictionaries_and_config_dicts_are_one(tmp_path):
    path = tmp_path / "toy.json"
    config = toy(structure=[{"mode": "block", "sparse_factors": [8, 4], "target_scopes": ["a"]}])
    path.write_text(json.dumps(config))
    recipe = from_config(config, TOY)
    for same in (
        str(path),
        {"input_info": {"sample_size": [1, 2]}, "compression": [config]},
        ml_collections.ConfigDict(config),
        ml_collections.ConfigDict({"compression": config}),
    ):
        assert from_config(same, TOY) == recipe


def test_comments_and_commas_are_no_mistakes_but_in_strings_they_are_text(tmp_path):
    text = json.dumps(toy(ignored_scopes=["{re}(a|//,])"]), indent=1)
    text = text.replace('"params"', '/* of the\n whole */ "params"').replace("5\n", "5, // five\n")
    path = tmp_path / "commented.json"
    path.write_text(text)
    assert [layer.path for layer in from_config(path, TOY).layers] == ["b"]


def test_modes_turn_out_in_into_in_out():
    """A row of NNCF's weight is an output of the kernel; the bias goes along the outputs."""
    structure = [
        {"mode": "block", "sparse_factors": [8, 4], "target_scopes": "a"},
        {"mode": "per_dim", "axis": 1, "target_scopes": "{re}^b$"},
    ]
    recipe = from_config(toy(structure=structure), TOY)
    assert patterns(recipe, TOY) == {
        "a/kernel": "Block(4, 8)",
        "a/bias": "Block(1, 8)",
        "b/kernel": "Channel(-2)",
        "b/bias": "Block(1, 8)",
    }
    case = {mode["config"]["mode"]: mode for mode in score_shapes()["expected"][:2]}
    specs = resolve(recipe.rules, TOY)
    assert specs["a/kernel"].group_shape == (3, 2)
    assert case["block"]["bias_scores"] == [2] and specs["a/bias"].group_shape == (1, 2)


def score_shapes():
    path = pathlib.Path(__file__).parents[1] / "cases/movement.json"
    (found,) = (c for c in json.loads(path.read_text())["cases"] if c["id"] == "score_shapes")
    return found


@pytest.mark.parametrize("fact", score_shapes()["expected"], ids=lambda fact: str(fact["config"]))
def test_as_many_scores_as_theirs(fact):
    rows, columns = score_shapes()["inputs"]["weight_shape"]
    params = {"l": linear(columns, rows)}
    recipe = from_config(toy(structure=[fact["config"] | {"target_scopes": "l"}]), params)
    specs = resolve(recipe.rules, params)
    assert np.prod(specs["l/kernel"].group_shape) == np.prod(fact["weight_scores"])
    bias = fact["bias_scores"] or [1]  # of axis 1 the case says so in words
    assert np.prod(specs["l/bias"].group_shape) == np.prod(bias)


def test_what_no_entry_takes_is_fine_and_what_is_ignored_is_not():
    assert set(patterns(from_config(toy(), TOY), TOY).values()) == {"Unstructured()"}
    ignored = from_config(toy(ignored_scopes="{re}a"), TOY)
    assert set(patterns(ignored, TOY)) == {"b/kernel", "b/bias"}
    targeted = from_config(toy(target_scopes=["a", "norm"]), TOY)
    assert set(patterns(targeted, TOY)) == {"a/kernel", "a/bias"}
    whole = from_config({k: v for k, v in toy().items() if "structure" not in k}, TOY)
    assert whole == from_config(toy(), TOY)


def test_embeddings_convolutions_and_norms_are_no_linear_layers():
    params = {
        "conv": {"kernel": shape(3, 3, 4, 8), "bias": shape(8)},
        "conv1d": {"kernel": shape(3, 4, 8)},
        "mixed": {"kernel": shape(4, 4, 4)},
        "embed": {"embedding": shape(10, 4)},
        "norm": {"scale": shape(4), "bias": shape(4)},
        "dense": {"kernel": shape(4, 4)},
    }
    assert set(patterns(from_config(toy(), params), params)) == {"dense/kernel"}


def attention():
    module = nnx.MultiHeadAttention(
        num_heads=4, in_features=16, decode=False, rngs=nnx.Rngs(0), use_bias=True
    )
    return nnx.state(nnx.Dict(attention=module), nnx.Param)


@pytest.mark.parametrize(
    "entry,query,bias,out",
    [
        ({"mode": "fine"}, (16, 16), 16, (16, 16)),
        ({"mode": "block", "sparse_factors": [4, 8]}, (2, 4), 4, (2, 4)),
        ({"mode": "per_dim", "axis": 0}, (1, 16), 16, (16,)),
        ({"mode": "per_dim", "axis": 1}, (16,), 1, (16, 1)),
    ],
    ids=str,
)
def test_attention_of_flax_is_cut_on_its_matrix(entry, query, bias, out):
    """Kernels (embed, heads, head_dim) and (heads, head_dim, embed), biases (heads, head_dim)."""
    params = attention()
    recipe = from_config(toy(structure=[entry | {"target_scopes": "{re}attention"}]), params)
    specs = resolve(recipe.rules, params)
    assert np.prod(specs["attention/query/kernel"].group_shape) == np.prod(query)
    assert np.prod(specs["attention/query/bias"].group_shape) == bias
    assert np.prod(specs["attention/out/kernel"].group_shape) == np.prod(out)
    # Rows of (out, in) are groups over all inputs: every entry of one (head, unit).
    if entry.get("axis") == 0:
        spec = specs["attention/query/kernel"]
        one = spec.expand(jnp.arange(16).reshape(spec.group_shape))
        assert (one == jnp.arange(16).reshape(4, 4)).all()
    # Biases go with the outputs of their kernel, whatever the shape of either.
    if entry["mode"] == "block":
        of_bias = specs["attention/query/bias"].expand(jnp.arange(4).reshape(1, 4))
        assert (of_bias == jnp.arange(4)[:, None]).all()


def test_axes_in_an_entry_make_a_matrix_of_any_kernel():
    params = {"stack": {"kernel": shape(3, 8, 4), "bias": shape(3, 4)}, "a": linear(4, 4)}
    entry = {
        "mode": "block",
        "sparse_factors": [2, 4],
        "target_scopes": "stack",
        "in_axis": 1,
        "out_axis": [2],
        "batch_axis": 0,
    }
    specs = resolve(from_config(toy(structure=[entry]), params).rules, params)
    assert specs["stack/kernel"].group_shape == (3, 2, 2)
    assert specs["stack/bias"].group_shape == (3, 1, 2)


def test_a_factor_of_an_entry_is_of_its_layers_alone():
    structure = [
        {"mode": "fine", "target_scopes": "a", "importance_regularization_factor": 0.5},
    ]
    recipe = from_config(toy(structure=structure), TOY)
    assert recipe.regularization == {"a/kernel": 0.5, "a/bias": 0.5, "b/kernel": 0.02} | {
        "b/bias": 0.02
    }
    params = jax.tree.map(lambda s: jnp.ones(s.shape), TOY)
    recipe.prune().init(params)  # which matches expressions with leaves


@pytest.mark.parametrize("name", ["initial_importance_threshold", "init_importance_threshold"])
def test_all_extra_parameters(name):
    given = {
        name: -0.5,
        "final_importance_threshold": 0.25,
        "power": 2,
        "enable_structured_masking": False,
    }
    recipe = from_config(toy(given), TOY)
    assert recipe.schedule == js.importance_threshold(
        begin=5, end=20, initial=-0.5, final=0.25, power=2
    )
    assert not recipe.structured_masking


def test_fractions_of_an_epoch_round_down():
    epochs = {"warmup_start_epoch": 0.5, "warmup_end_epoch": 1.5}
    schedule = from_config(toy(epochs), TOY).schedule
    assert (schedule.begin, schedule.end) == (2, 7)


# Steps per epoch: theirs are counted by the scheduler, ours by the optimizer's state.


def test_steps_per_epoch_are_inferred_from_the_first_epoch():
    """NNCF's case: four steps, a new epoch, two steps more."""
    path = pathlib.Path(__file__).parents[1] / "cases/movement.json"
    cases = {case["id"]: case for case in json.loads(path.read_text())["cases"]}
    case = cases["infer_steps_per_epoch"]
    given, expected = case["inputs"], case["expected"]
    names = set(toy()["params"]) | {
        "init_importance_threshold",
        "final_importance_threshold",
        "power",
    }
    config = toy({name: given[name] for name in names})
    params = {"a": {"kernel": jnp.ones((4, 4))}}
    recipe = from_config(config, params)
    assert recipe.steps_per_epoch is None
    pruner = recipe.prune()
    state = pruner.init(params)
    slope = {"a": {"kernel": jnp.arange(16.0).reshape(4, 4) - 8}}
    for _ in range(4):
        _, state = pruner.update(slope, state, params)
        assert js.masks(state)["a/kernel"].all()
    assert np.isnan(recipe.statistics(state).epoch)
    told = recipe.infer_steps_per_epoch(state)
    assert told == from_config(config, params, steps_per_epoch=expected["steps_per_epoch_after"])
    pruner = told.prune()
    for _ in range(1):
        _, state = pruner.update(slope, state, params)
    said = told.statistics(state)
    assert said.step == expected["current_step"]
    assert said.threshold == expected["threshold"]
    factor = told.regularization * float(said.strength)
    np.testing.assert_allclose(factor, expected["factor"], rtol=1e-6)
    # Masks are as they were had the steps been known from the start.
    known = told.prune()
    other = known.init(params)
    for _ in range(5):
        _, other = known.update(slope, other, params)
    for mine, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_threshold_is_found_although_steps_were_inferred_as_the_warm_up_began():
    params = {"a": {"kernel": jnp.ones((4, 4))}}
    slope = {"a": {"kernel": jnp.arange(16.0).reshape(4, 4) - 8}}
    config = toy({"steps_per_epoch": None})
    recipe = from_config(config, params)
    _, state = recipe.prune().update(slope, recipe.prune().init(params), params)
    told = recipe.infer_steps_per_epoch(state)
    assert told.schedule.begin == state.count == 1
    _, state = told.prune().update(slope, state, params)
    mask = js.masks(state)["a/kernel"]
    threshold = told.schedule.threshold(2, state.threshold)
    np.testing.assert_array_equal(mask, state.score.scores["a/kernel"] > threshold)
    assert mask.mean() > 0.5
    # What the same steps find where the warm-up begins one step later.
    late = toy({"warmup_start_epoch": 2, "steps_per_epoch": 1})
    pruner = from_config(late, params).prune()
    other = pruner.init(params)
    for _ in range(2):
        _, other = pruner.update(slope, other, params)
    assert np.isfinite(state.threshold) and state.threshold == other.threshold


def test_a_count_that_contradicts_is_an_error():
    params = {"a": {"kernel": jnp.ones((4, 4))}}
    recipe = from_config(toy(), params)
    pruner = recipe.prune()
    state = pruner.init(params)
    with pytest.raises(RecipeError, match=r"counts \[0\] steps"):
        recipe.infer_steps_per_epoch(state)
    _, state = pruner.update(params, state, params)
    with pytest.raises(RecipeError, match=r"said to be 1 and 5"):
        recipe.infer_steps_per_epoch(state)
    with pytest.raises(RecipeError, match=r"counts \[\] steps"):
        recipe.infer_steps_per_epoch(optax.sgd(0.1).init(params))
    with pytest.raises(RecipeError, match=r"steps_per_epoch is 5.0; an integer"):
        from_config(toy(), params, steps_per_epoch=5.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match=r"said to be 5 and 7"):
        from_config(toy(), params, steps_per_epoch=7)


BLOCK = {"mode": "block", "sparse_factors": [8, 4], "target_scopes": "a"}
ROWS = {"mode": "per_dim", "axis": 0, "target_scopes": "a"}
FINE = {"mode": "fine", "target_scopes": "a"}


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    "entry,message",
    [
        (without(BLOCK, "sparse_factors"), "sparse_factors is missing"),
        (without(ROWS, "axis"), "axis is missing"),
        (without(FINE, "target_scopes"), "target_scopes is missing"),
        (without(FINE, "mode"), "mode is None; one of fine, block, per_dim"),
        (FINE | {"mode": ["fine"]}, r"mode is \['fine'\]; one of fine, block, per_dim"),
        (BLOCK | {"sparse_factors": [8, 4.0]}, r"factors is \[8, 4.0\]; two integers"),
        (BLOCK | {"sparse_factors": [8, 4, None]}, r"factors is \[8, 4, None\]; two integers"),
        (FINE | {"mode": "rows"}, "mode is 'rows'; one of fine, block, per_dim"),
        (FINE | {"axis": 0}, "axis does not go with mode 'fine'"),
        (BLOCK | {"axis": 0}, "axis does not go with mode 'block'"),
        (ROWS | {"sparse_factors": [1, 2]}, "sparse_factors does not go with mode 'per_dim'"),
        (FINE | {"target_scope": "a"}, "unknown key 'target_scope'; did you mean 'target_scopes'"),
        (ROWS | {"axis": 2}, "axis is 2; 0, the rows"),
        (ROWS | {"axis": True}, "axis is True; 0, the rows"),
        (BLOCK | {"sparse_factors": [8]}, r"sparse_factors is \[8\]; two integers"),
        (BLOCK | {"sparse_factors": [8, 0]}, r"sparse_factors is \[8, 0\]; two integers"),
        (BLOCK | {"sparse_factors": 8}, "sparse_factors is 8; two integers"),
        (
            BLOCK | {"sparse_factors": [8, 5]},
            r"factors \[8, 5\] do not divide 'a/kernel' of shape \(12, 16\), which is \(out, in\)"
            r" = \(16, 12\)",
        ),
        (
            BLOCK | {"sparse_factors": [5, 4]},
            r"factors \[5, 4\] do not divide 'a/kernel'",
        ),
        (FINE | {"target_scopes": "c"}, "the scope 'c' matches no layer; known: 'a', 'b'"),
        (FINE | {"target_scopes": ["a", "{re}z"]}, r"the scope '\{re\}z' matches no layer"),
        (FINE | {"target_scopes": "a/kernel"}, "matches no layer; known: 'a', 'b'"),
        (FINE | {"target_scopes": "{re}("}, r"'\{re\}\(' is no regular expression"),
        (FINE | {"target_scopes": []}, r"target_scopes is \[\]; a scope or a list"),
        (FINE | {"target_scopes": [3]}, "3 is no scope"),
        (
            FINE | {"target_scopes": "norm"},
            r"matches no linear layer, but 'norm/scale \(8,\)'",
        ),
        (FINE | {"importance_regularization_factor": -1}, "factor is -1; a number from 0 on"),
        (FINE | {"in_axis": "in"}, "in_axis is 'in'; an axis or a list of axes"),
        (FINE | {"in_axis": 7}, "has no axis 7"),
        ("a", "is 'a'; "),
    ],
    ids=lambda value: str(value)[:60],
)
def test_mistakes_in_an_entry_name_it(entry, message):
    first = {"mode": "fine", "target_scopes": "b"}
    with pytest.raises(RecipeError, match=message) as raised:
        from_config(toy(structure=[first, entry]), TOY)
    assert "sparse_structure_by_scopes[1]" in str(raised.value)


def test_a_leaf_under_two_entries_is_named_with_both():
    message = re.escape(
        "the leaf 'a/kernel' of shape (12, 16) is matched by sparse_structure_by_scopes[0] (mode "
        "'block', target_scopes 'a') and by sparse_structure_by_scopes[1] (mode 'fine', "
        "target_scopes '{re}.')"
    )
    with pytest.raises(RecipeError, match=message):
        from_config(toy(structure=[BLOCK, FINE | {"target_scopes": "{re}."}]), TOY)


def test_an_entry_of_which_all_is_ignored_is_an_error():
    with pytest.raises(RecipeError, match=r"scopes\[0\].*matches 'a', which ignored_scopes"):
        from_config(toy(structure=[FINE], ignored_scopes=["a"]), TOY)


def test_a_bias_that_does_not_fit_its_kernel_is_an_error():
    params = {"a": {"kernel": shape(12, 16), "bias": shape(12)}}
    with pytest.raises(RecipeError, match=r"'a/bias' has shape \(12,\).* has outputs \(16,\)"):
        from_config(toy(), params)


@pytest.mark.parametrize(
    "params,message",
    [
        ({"warmup_start_epoch": None}, "params.warmup_start_epoch is missing"),
        ({"warmup_end_epoch": None}, "params.warmup_end_epoch is missing"),
        ({"importance_regularization_factor": None}, "params.importance_regularization_factor is"),
        ({"importance_regularization_factor": -0.1}, "factor is -0.1; a number from 0 on"),
        ({"warmup_start_epoch": "1"}, "params.warmup_start_epoch is '1'; a finite number"),
        ({"warmup_start_epoch": True}, "params.warmup_start_epoch is True; a finite number"),
        ({"power": float("nan")}, "params.power is nan; a finite number"),
        ({"power": 0}, "params.power is 0; a number above 0"),
        ({"warmup_start_epoch": -1}, "must hold, but they are -1 and 4"),
        ({"warmup_end_epoch": 1}, "must hold, but they are 1 and 1"),
        (
            {"warmup_start_epoch": 0, "steps_per_epoch": None},
            "warmup_start_epoch is 0, and steps_per_epoch is not said",
        ),
        ({"warmup_start_epoch": 0}, "at step 0 there are none"),
        ({"warmup_start_epoch": 1.1, "warmup_end_epoch": 1.15}, "begin < end must hold, got 5, 5"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0; an integer from 1 on"),
        ({"steps_per_epoch": [4]}, r"steps_per_epoch is \[4\]; an integer from 1 on"),
        ({"steps_per_epoch": True}, "steps_per_epoch is True; an integer from 1 on"),
        ({"steps_per_epoch": 10**400}, "an integer from 1 on, of no more than 2147483647"),
        ({"warmup_end_epoch": 10**9}, "warmup_end_epoch is 1000000000, at 5 .*to 2147483647"),
        ({"warmup_end_epoch": 1e300}, r"warmup_end_epoch is 1e\+300, at 5 .*to 2147483647"),
        ({"warmup_end_epoch": 1e308, "steps_per_epoch": 100}, r"warmup_end_epoch is 1e\+308, at"),
        ({"warmup_end_epoch": 10**400}, "warmup_end_epoch is 10+; a finite number"),
        ({"power": [3.0]}, r"params.power is \[3.0\]; a finite number"),
        ({"steps_per_epoch": 2.5}, "steps_per_epoch is 2.5; an integer from 1 on"),
        ({"init_importance_threshold": 0.0}, r"initial=0.0 must lie below final=0.0"),
        ({"init_importance_threshold": -1, "initial_importance_threshold": -1}, "are one thing"),
        ({"enable_structured_masking": "yes"}, "is 'yes', not true or false"),
        ({"warm_up_end_epoch": 3}, "unknown key 'warm_up_end_epoch'; did you mean"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_mistakes_in_parameters_name_the_key(params, message):
    with pytest.raises(RecipeError, match=message):
        from_config(toy(params), TOY)


@pytest.mark.parametrize(
    "config,message",
    [
        (toy(algorithm="quantization"), "algorithm is 'quantization'"),
        ([toy(), toy(algorithm="quantization")], "algorithm is 'quantization'"),
        ([toy(), toy()], "stands 2 times"),
        ([], "stands 0 times"),
        (7, "the configuration is 7; a mapping"),
        (toy(compression_lr_multiplier=2), "unknown key 'compression_lr_multiplier'"),
        (toy() | {"params": None}, "params is None"),
        (toy(ignored_scopes=["{re}embedding"]), "ignored_scopes: the scope .* matches no layer"),
        (toy(target_scopes="{re}embedding"), "target_scopes: the scope .* matches no layer"),
        (toy(target_scopes=[]), r"target_scopes is \[\]; a scope or a list of scopes"),
        (toy(ignored_scopes=0), "ignored_scopes is 0; a scope or a list of scopes"),
        (toy(ignored_scopes=False), "ignored_scopes is False; a scope or a list of scopes"),
        (toy(ignored_scopes={}), "ignored_scopes is {}; a scope or a list of scopes"),
        (toy(ignored_scopes="{re}."), "nothing is left to sparsify: the linear layers 'a', 'b'"),
        (toy(structure={}), "is {}; a list of entries"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_mistakes_in_the_whole_are_errors(config, message):
    with pytest.raises(RecipeError, match=message):
        from_config({"compression": config} if isinstance(config, list) else config, TOY)


def test_parameters_without_linear_layers_are_an_error():
    with pytest.raises(RecipeError, match="no leaf is a 'kernel' of rank 2"):
        from_config(toy(), {"conv": {"kernel": shape(3, 3, 4, 4)}})
    with pytest.raises(RecipeError, match="no leaf is called 'kernel'"):
        from_config(toy(), {"norm": {"scale": shape(4)}})


def test_files_that_cannot_be_read_are_errors(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        from_config(tmp_path / "none.json", TOY)
    (tmp_path / "half.json").write_text('{"algorithm": ')
    with pytest.raises(RecipeError, match=r"half.json' is no JSON: .*line 1"):
        from_config(tmp_path / "half.json", TOY)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "bom.json").write_text(json.dumps(toy()), encoding="utf-8-sig")
    assert from_config(tmp_path / "bom.json", TOY) == from_config(toy(), TOY)


def test_numbers_of_numpy_are_numbers():
    def config(whole, real):
        options = {
            "warmup_start_epoch": whole(1),
            "importance_regularization_factor": real(0.5),
            "steps_per_epoch": whole(5),
        }
        blocks = {"mode": "block", "sparse_factors": [whole(8), whole(4)], "target_scopes": "a"}
        columns = {"mode": "per_dim", "axis": whole(1), "target_scopes": "b", "in_axis": whole(0)}
        return toy(options, [blocks, columns])

    recipe = from_config(config(np.int64, np.float32), TOY, steps_per_epoch=np.int32(5))
    assert recipe == from_config(config(int, float), TOY)
    assert type(recipe.steps_per_epoch) is int and type(recipe.regularization) is float


def test_an_empty_list_ignores_nothing():
    assert from_config(toy(ignored_scopes=[]), TOY) == from_config(toy(), TOY)


def test_a_bias_of_another_shape_fails_no_configuration_that_ignores_its_layer():
    params = TOY | {"odd": {"kernel": shape(4, 4), "bias": shape(1, 4)}}
    with pytest.raises(RecipeError, match=r"'odd/bias' has shape \(1, 4\).*'odd' in ignored_scop"):
        from_config(toy(), params)
    assert from_config(toy(ignored_scopes=["odd"]), params) == from_config(toy(), TOY)


def test_a_recipe_is_shown_as_its_schedule_and_a_line_for_every_layer():
    recipe = from_config(toy(), TOY)
    head, *rows = str(recipe).split("\nlayer ")
    assert "warm-up from epoch 1 to 4, steps per epoch 5" in head
    assert [row.split()[0] for row in rows[0].splitlines()[1:]] == [p.path for p in recipe.layers]


def test_parameters_without_kernels_are_referred_to_prune():
    params = {"emb": shape(4, 4), "layers": [{"w": shape(4, 4)}]}
    with pytest.raises(
        RecipeError, match=r"no leaf is called 'kernel'.*js\.movement\(\).*any names"
    ):
        from_config(toy(ignored_scopes=["emb"]), params)
