"""Recipes of llm-compressor: the run that they ask for, and what is refused."""

import builtins
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.calibration import magnitude, owl, prune_oneshot, sparsegpt, wanda
from jaxsparse.recipes import RecipeError
from jaxsparse.recipes.oneshot import from_yaml

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)


def layer():
    attention = {name: {"kernel": normal(16, 16)} for name in ("query", "key", "value", "output")}
    sizes = {"gate": (16, 24), "up": (16, 24), "down": (24, 16)}
    return {
        "attention": attention,
        "feed_forward": {name: {"kernel": normal(*size)} for name, size in sizes.items()},
        "norm": {"scale": jnp.ones(16)},
    }


# Names as in a Llama of nnx; the head is tied to the table of embeddings.
PARAMS = {"embedding": {"embedding": normal(30, 16)}, "layers": [layer(), layer()]}
SMALL = PARAMS | {"layers": PARAMS["layers"][:1]}
BATCHES = [(jnp.asarray(RNG.integers(0, 30, (4, 8))),) for _ in range(2)]


def model(params, tokens):
    x = params["embedding"]["embedding"][tokens]
    for each in params["layers"]:
        a, f = ({n: p["kernel"] for n, p in each[k].items()} for k in ("attention", "feed_forward"))
        scores = jax.nn.softmax((x @ a["query"]) @ (x @ a["key"]).swapaxes(1, 2) / 4)
        x = x + (scores @ (x @ a["value"])) @ a["output"]
        x = x + (jax.nn.silu(x @ f["gate"]) * (x @ f["up"])) @ f["down"]
    return x @ params["embedding"]["embedding"].T


def text(name, body, group="pruning_modifiers", stage="test_stage"):
    lines = "\n".join(f"      {line}" for line in body.strip().splitlines())
    return f"{stage}:\n  {group}:\n    {name}:\n{lines}\n"


def same(found, expected):
    assert found.masks.keys() == expected.masks.keys()
    for path, mask in found.masks.items():
        np.testing.assert_array_equal(mask, expected.masks[path])
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


ALL = r"layers/\d/(attention|feed_forward)/.*/kernel"


@pytest.mark.parametrize(
    ("recipe", "pattern", "options"),
    [
        (
            text("SparseGPTModifier", "sparsity: 0.5\nignore: ['re:.*lm_head']"),
            js.Unstructured(),
            {"criterion": sparsegpt(damping=0.01, block=128), "sparsity": 0.5},
        ),
        (
            text(
                "SparseGPTModifier",
                'sparsity: 0.75\nmask_structure: "3:4"\nblock_size: 8\ndampening_frac: 0.1',
                "obcq_modifiers",
            ),
            js.NM(1, 4),
            {"criterion": sparsegpt(damping=0.1, block=8)},
        ),
        (
            text("WandaPruningModifier", "sparsity: 0.5\ntargets: Linear\nsequential_update: true"),
            js.Unstructured(),
            {"criterion": wanda(), "sparsity": 0.5, "per": "output"},
        ),
        (
            text("WandaPruningModifier", 'mask_structure: "4:8"', "sparsity_modifiers"),
            js.NM(4, 8),
            {"criterion": wanda()},
        ),
        (
            text(
                "MagnitudePruningModifier",
                "targets: ['Linear']\ninit_sparsity: 0.5\nfinal_sparsity: 0.5\nstart: 0.0\nend: 1",
            ),
            js.Unstructured(),
            {"criterion": magnitude(), "sparsity": 0.5},
        ),
    ],
    ids=["sparsegpt", "sparsegpt_1of4", "wanda", "wanda_4of8", "magnitude"],
)
def test_a_recipe_is_the_run_that_it_asks_for(recipe, pattern, options):
    rules = [js.Rule(ALL, pattern)]
    expected = prune_oneshot(model, SMALL, BATCHES, rules, **options)
    same(from_yaml(recipe, SMALL).prune(model, SMALL, BATCHES), expected)


def test_outliers_say_where_the_sparsity_goes():
    body = (
        "sparsity: 0.6\nsparsity_profile: OWL\nowl_m: 3\nowl_lmbda: 0.1\ntargets: ['re:.*up_proj']"
    )
    rules = [js.Rule(r".*/up/kernel", js.Unstructured())]
    shares = owl(model, PARAMS, BATCHES, rules, multiple=3, strength=0.1)
    options = {"criterion": wanda(), "sparsity": 0.6, "per": "output", "distribution": shares}
    expected = prune_oneshot(model, PARAMS, BATCHES, rules, **options)
    recipe = from_yaml(text("WandaPruningModifier", body), PARAMS)
    assert str(recipe).endswith("sparsity 0.6, by OWL")
    found = recipe.prune(model, PARAMS, BATCHES)
    same(found, expected)
    first, second = (float(mask.mean()) for mask in found.masks.values())
    assert abs(first - second) > 0.1


def paths(recipe):
    return [rule.path.replace("\\", "") for rule in from_yaml(recipe, PARAMS).rules]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (
            "targets: ['re:.*q_proj$']",
            [f"layers/{i}/attention/query/kernel" for i in range(2)],
        ),
        (
            "targets: ['model.layers.1.mlp.down_proj', 'layers.0.feed_forward.up']",
            ["layers/0/feed_forward/up/kernel", "layers/1/feed_forward/down/kernel"],
        ),
        (
            r"targets: ['re:model.layers.1$']" + "\nignore: ['re:.*self_attn.*']",
            [f"layers/1/feed_forward/{name}/kernel" for name in ("down", "gate", "up")],
        ),
        (
            "targets: [Linear]\nignore: ['re:.*mlp', lm_head, 're:.*layers.0']",
            [f"layers/1/attention/{name}/kernel" for name in ("key", "output", "query", "value")],
        ),
    ],
)
def test_layers_are_meant_by_class_name_and_expression(selection, expected):
    assert paths(text("WandaPruningModifier", f"sparsity: 0.5\n{selection}")) == expected


def test_expressions_match_from_the_start_alone():
    with pytest.raises(RecipeError, match=r"targets: 're:q_proj' means no layer"):
        paths(text("WandaPruningModifier", "sparsity: 0.5\ntargets: ['re:q_proj']"))


def test_an_untied_head_is_told_by_its_name():
    params = {"embedding": {"embedding": normal(30, 16)}, "up": {"kernel": normal(16, 16)}}
    recipe = text("WandaPruningModifier", "sparsity: 0.5\nignore: ['re:.*lm_head']")
    assert len(from_yaml(recipe, params).rules) == 1
    untied = params | {"head": {"kernel": normal(16, 30)}}
    assert [rule.path for rule in from_yaml(recipe, untied).rules] == ["up/kernel"]
    # A head by a name that nobody knows is not pruned in silence.
    other = params | {"logits": {"kernel": normal(16, 30)}}
    with pytest.raises(RecipeError, match=r"ignore: 're:\.\*lm_head' means no layer.*names="):
        from_yaml(recipe, other)
    found = from_yaml(recipe, other, names={"logits": "lm_head"})
    assert [rule.path for rule in found.rules] == ["up/kernel"]
    with pytest.raises(RecipeError, match="names: 'logit' is no layer; did you mean 'logits'"):
        from_yaml(recipe, other, names={"logit": "lm_head"})


def test_convolutions_are_no_linear_layers():
    params = {"conv": {"kernel": normal(3, 3, 4, 4)}, "up": {"kernel": normal(4, 4)}}
    recipe = "modifiers:\n  - WandaPruningModifier: {sparsity: 0.5, targets: [%s]}"
    assert [rule.path for rule in from_yaml(recipe % "Linear", params).rules] == ["up/kernel"]
    assert [rule.path for rule in from_yaml(recipe % "Conv2d", params).rules] == ["conv/kernel"]
    with pytest.raises(RecipeError, match="leave no kernel"):
        from_yaml(recipe % "Embedding", params | {"table": {"embedding": normal(5, 4)}})


def test_modifiers_run_one_after_the_other(tmp_path):
    recipe = {
        "modifiers": [
            {"SparseGPTModifier": {"mask_structure": "2:4", "targets": ["re:.*self_attn"]}},
            {"WandaPruningModifier": {"sparsity": 0.5, "targets": ["re:.*mlp"]}},
        ]
    }
    first = prune_oneshot(
        model, SMALL, BATCHES, [js.Rule(".*attention.*", js.NM(2, 4))], criterion=sparsegpt()
    )
    second = prune_oneshot(
        *(model, first.params, BATCHES, [js.Rule(".*feed_forward.*kernel", js.Unstructured())]),
        criterion=wanda(),
        sparsity=0.5,
        per="output",
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    for given in recipe, file, str(file), json.dumps(recipe):
        found = from_yaml(given, SMALL)
        assert len(found.steps) == 2
    # Each of them goes on from a folder of its own.
    found.prune(model, SMALL, BATCHES, folder=tmp_path / "kept")
    found = found.prune(model, SMALL, BATCHES, folder=tmp_path / "kept")
    same(found, second._replace(masks=first.masks | second.masks))


def test_a_recipe_prints_a_line_for_every_modifier():
    recipe = from_yaml(text("WandaPruningModifier", "sparsity: 0.5"), PARAMS)
    where = "test_stage.pruning_modifiers.WandaPruningModifier"
    assert str(recipe) == f"{where}: 14 kernels, Unstructured(), sparsity 0.5"


def sparse(body):
    return text("SparseGPTModifier", f"sparsity: 0.5\n{body}")


def wandas(body):
    return text("WandaPruningModifier", body)


def by_size(body):
    return text("MagnitudePruningModifier", body)


SIZE = "targets: Linear\ninit_sparsity: 0.5\nfinal_sparsity: 0.5\n"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (sparse("blok_size: 64"), r"SparseGPTModifier: unknown key 'blok_size'; .*'block_size'"),
        (wandas("sparsity: 0.5\nblock_size: 64"), "unknown key 'block_size'"),
        (by_size(f"{SIZE}sparsity: 0.5"), "unknown key 'sparsity'"),
        (by_size(f"{SIZE}ignore: [x]"), "unknown key 'ignore'"),
        (text("GPTQModifier", "bits: 4"), r"GPTQModifier: unknown modifier 'GPTQModifier'"),
        (text("WandaPruningModifier", "sparsity: 0.5", "pruners"), "test_stage: unknown key 'prun"),
        (text("WandaPruningModifier", "sparsity: 0.5", stage="test"), "unknown key 'test'"),
        ("args: {s: 0.5}\ntest_stage: {}", "the recipe: unknown key 'args'"),
        ("test_stage: {}", "the recipe has no modifier"),
        ("test_stage: []", r"test_stage is \[\]; a mapping"),
        ("modifiers: 3", "modifiers is 3; a mapping"),
        ("modifiers: [3]", r"modifiers\[0\] is 3; a mapping from one class"),
        ("modifiers: {WandaPruningModifier: 3}", "WandaPruningModifier is 3; a mapping"),
        (wandas("targets: Linear"), r"WandaPruningModifier\.sparsity is missing"),
        (wandas("sparsity: 1.0"), r"\.sparsity is 1\.0; a share"),
        (wandas("sparsity: half"), r"\.sparsity is 'half'; a finite number"),
        (wandas("sparsity: [0.5, 0.6]"), r"\.sparsity is a list"),
        (
            sparse("mask_structure: '2:4'\nsparsity_profile: owl\nowl_m: 5\nowl_lmbda: 0.1"),
            "nothing",
        ),
        (wandas("sparsity: 0.6\nmask_structure: '2:4'"), "contradict each other"),
        (sparse("mask_structure: '4:4'"), r"mask_structure is '4:4'"),
        (sparse("mask_structure: 'block4'"), r"mask_structure is 'block4'"),
        (sparse("mask_structure: 2:04"), r"mask_structure is '2:04'|without quotes"),
        (sparse("block_size: 0"), r"block_size is 0; 128"),
        (sparse("block_size: 12.5"), r"block_size is 12\.5; 128"),
        (sparse("dampening_frac: -1"), r"dampening_frac is -1; 0\.01"),
        (sparse("preserve_sparsity_mask: true"), r"preserve_sparsity_mask: zeros"),
        (sparse("preserve_sparsity_mask: 1"), r"preserve_sparsity_mask is 1, not true or false"),
        (sparse("sparsity_profile: erk"), "sparsity_profile is 'erk'; 'owl'"),
        (sparse("sparsity_profile: owl\nowl_m: 5"), "go together"),
        (sparse("owl_lmbda: 0.1"), "go together"),
        (sparse("targets: []"), r"targets is \[\]; a name"),
        (sparse("targets: [3]"), "targets: 3 is no text"),
        (sparse("targets: ['re:(']"), r"targets: 're:\(' is no regular expression"),
        (sparse("targets: [LlamaDecoderLayer]"), "targets: 'LlamaDecoderLayer' means no layer"),
        (sparse("ignore: ['re:.*router']"), r"ignore: 're:\.\*router' means no layer"),
        (sparse("ignore: [Linear]"), "leave no kernel to prune"),
        (by_size("targets: Linear\nfinal_sparsity: 0.5"), "init_sparsity is missing"),
        (by_size(SIZE.replace("0.5", "0.1", 1)), r"init_sparsity 0\.1 and final_sparsity 0\.5"),
        (by_size(f"{SIZE}mask_structure: channel"), "mask_structure is 'channel'"),
        (by_size(f"{SIZE}start: 2"), r"start is 2: one-shot"),
        (by_size(f"{SIZE}apply_globally: true"), "apply_globally: true is not read"),
        ("a: !SparseGPTModifier {}", "the recipe is no YAML of plain data"),
        ("a: [", "the recipe is no YAML of plain data"),
        ("modifiers: {}\nmodifiers: {}", "the key 'modifiers' stands twice .* line 1"),
        ("just words", "the recipe is str, not a mapping: 'just words'"),
        ("missing.yaml", r"the recipe 'missing\.yaml' cannot be read"),
        (3, "the recipe is 3; the text"),
    ],
)
def test_what_is_not_read_is_an_error_that_names_the_key(recipe, message):
    with pytest.raises(RecipeError, match=message):
        from_yaml(recipe, PARAMS)


def test_kernels_of_two_modifiers_and_trees_without_any():
    both = {"SparseGPTModifier": {"sparsity": 0.5}, "WandaPruningModifier": {"sparsity": 0.5}}
    with pytest.raises(RecipeError, match=r"Wanda\S+ and \S+SparseGPT\S+ both prune layers"):
        from_yaml({"modifiers": both}, PARAMS)
    with pytest.raises(RecipeError, match="no leaf is called 'kernel'"):
        from_yaml({"modifiers": both}, {"w": jnp.ones((2, 2))})


def test_shapes_are_enough():
    shapes = jax.eval_shape(lambda: PARAMS)
    assert len(from_yaml(wandas("sparsity: 0.5"), shapes).rules) == 14


def test_without_a_reader_of_yaml_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "yaml":
            raise ImportError("no yaml here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'jaxsparse\[recipes\]'"):
        from_yaml(wandas("sparsity: 0.5"), PARAMS)
    found = from_yaml({"modifiers": {"WandaPruningModifier": {"sparsity": 0.5}}}, PARAMS)
    assert len(found.rules) == 14


def test_arguments_that_are_merged_are_those_of_the_anchor():
    first = "WandaPruningModifier: &wanda {sparsity: 0.5, targets: ['re:.*q_proj']}"
    second = "WandaPruningModifier: {<<: *wanda, targets: ['re:.*k_proj']}"
    recipe = f"a_stage: {{modifiers: {{{first}}}}}\nb_stage: {{modifiers: {{{second}}}}}"
    steps = from_yaml(recipe, SMALL).steps
    assert [step.sparsity for step in steps] == [0.5, 0.5]
    assert [rule.path for step in steps for rule in step.rules] == [
        r"layers/0/attention/query/kernel",
        r"layers/0/attention/key/kernel",
    ]
    with pytest.raises(RecipeError, match="stands twice"):
        from_yaml(recipe.replace("<<: *wanda,", "<<: *wanda, targets: [Linear],"), SMALL)


def test_an_allocation_takes_the_place_of_sparsities_of_a_recipe():
    recipe = from_yaml(
        text("WandaPruningModifier", 'sparsity: 0.5\ntargets: ["re:.*mlp.(up|down)_proj"]'), SMALL
    )
    paths = [f"layers/0/feed_forward/{name}/kernel" for name in ("up", "down")]
    shares = dict(zip(paths, (0.25, 0.75), strict=True))
    allocation = js.allocation.Allocation(shares)
    found = recipe.prune(model, SMALL, BATCHES, distribution=allocation)
    assert {path: 1 - float(mask.mean()) for path, mask in found.masks.items()} == shares
    with pytest.raises(
        ValueError, match="no sparsity for leaf 'layers/0/feed_forward/down/kernel'"
    ):
        recipe.prune(model, SMALL, BATCHES, distribution=js.allocation.Allocation({paths[0]: 0.5}))
