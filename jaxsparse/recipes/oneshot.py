"""One-shot pruning from llm-compressor's recipes.

The parts are `js.calibration.prune_oneshot` and its criteria; this reads from a recipe in YAML
which of them, for which layers of a tree.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from jaxtyping import Array, Bool

from jaxsparse.allocation import Allocation
from jaxsparse.calibration import Criterion, OneShot, owl, prune_oneshot
from jaxsparse.patterns.rules import Rule
from jaxsparse.pruning.distributions import targets
from jaxsparse.recipes.configuration import RecipeError
from jaxsparse.recipes.modifiers import Modifier, modifiers_of
from jaxsparse.recipes.modules import Module, meant, modules_of
from jaxsparse.recipes.yaml_files import read_yaml
from jaxsparse.trees import Tree


@dataclasses.dataclass(frozen=True)
class OneShotStep:
    """What one modifier asks of `prune_oneshot`.

    Attributes:
      where: the keys of the modifier in the recipe.
      rules: one for every kernel that it prunes.
      criterion, sparsity, per: as `prune_oneshot` takes them.
      owl: (M, lambda) of `js.calibration.owl`, None for a uniform distribution.
    """

    where: str
    rules: tuple[Rule, ...]
    criterion: Criterion
    sparsity: float | None
    per: Literal["layer", "output"]
    owl: tuple[float, float] | None

    def options(
        self, fn: Callable[..., Any], params: Tree, batches: Iterable[Any]
    ) -> dict[str, Any]:
        """Keyword arguments of `prune_oneshot`; for OWL the dense model is run on the batches."""
        options: dict[str, Any] = {
            "criterion": self.criterion,
            "sparsity": self.sparsity,
            "per": self.per,
        }
        if self.owl is not None:
            multiple, strength = self.owl
            options["distribution"] = owl(
                fn, params, batches, self.rules, multiple=multiple, strength=strength
            )
        return options

    def allocated(self, allocation: Allocation) -> dict[str, Any]:
        """Keyword arguments of `prune_oneshot` with sparsities that an allocation has."""
        mine = {
            path: share
            for path, share in allocation.sparsities.items()
            if any(re.fullmatch(str(rule.path), path) for rule in self.rules)
        }
        return {"criterion": self.criterion, "per": self.per, "distribution": Allocation(mine)}


@dataclasses.dataclass(frozen=True)
class OneShotRecipe:
    """What `from_yaml` made of a recipe; `str(recipe)` has a line for every modifier.

    Attributes:
      steps: in the order of the recipe. No kernel is in two of them.
    """

    steps: tuple[OneShotStep, ...]

    def prune(
        self,
        fn: Callable[..., Any],
        params: Tree,
        batches: Iterable[Any],
        *,
        folder: str | os.PathLike[str] | None = None,
        distribution: Allocation | None = None,
        **options: Any,
    ) -> OneShot:
        """Runs `js.calibration.prune_oneshot` for every modifier, each on what those before left.

        Args:
          fn, params, batches, options: as in `prune_oneshot`.
          folder: what a killed run goes on from; every modifier has a folder of its own in it.
          distribution: sparsities in the place of the recipe's: an allocation that names every
            kernel of it but those of n:m.

        Returns:
          The weights, and the masks of all modifiers together.

        Raises:
          ValueError: an allocation of other kernels; and as `prune_oneshot`.
        """
        batches = list(batches)
        if distribution is not None:
            targets(self.rules, params, distribution=distribution)
        masks: dict[str, Bool[Array, ...]] = {}
        for number, step in enumerate(self.steps):
            if distribution is None:
                own = step.options(fn, params, batches)
            else:
                own = step.allocated(distribution)
            if folder is not None:
                own["folder"] = pathlib.Path(folder, str(number))
            found = prune_oneshot(fn, params, batches, step.rules, **own, **options)
            params, masks = found.params, masks | found.masks
        return OneShot(params, masks)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those of all steps: for `js.pack_params` and `js.report`."""
        return tuple(rule for step in self.steps for rule in step.rules)

    def __str__(self) -> str:
        return "\n".join(
            f"{step.where}: {len(step.rules)} kernels, {step.rules[0].pattern}"
            + ("" if step.sparsity is None else f", sparsity {step.sparsity:g}")
            + ("" if step.owl is None else ", by OWL")
            for step in self.steps
        )


def from_yaml(
    recipe: Any, params: Tree, *, names: Mapping[str, str] | None = None
) -> OneShotRecipe:
    """Reads a recipe of llm-compressor for these parameters.

    Read are SparseGPTModifier, WandaPruningModifier and MagnitudePruningModifier, with that
    system's defaults: block_size 128, dampening_frac 0.01, mask_structure "0:0", targets Linear.
    Its `n:m` says how many of m go. Whatever is not read is an error that names the key. The
    counts are exact here: round(sparsity n) entries go, where Wanda there rounds down and SparseGPT
    takes one more in every block.

    A layer, what a `kernel` belongs to, is known by its path with dots, and by that with the
    parts as transformers calls them: `layers/0/attention/query` is `layers.0.attention.query`,
    `layers.0.self_attn.q_proj` and `model.layers.0.self_attn.q_proj`. `re:` matches from the
    start of a name. A target may be a module that layers lie in. A kernel's class is Linear, or
    Conv1d to Conv3d where its layer is called so; other classes a tree does not tell. A table
    of embeddings is `lm_head`, too, where no kernel makes logits; nothing prunes it.

    Args:
      recipe: text, path or dictionary.
      params: parameters, arrays or shapes.
      names: by layer, such as "blocks/0/q", its name in the recipe's model.

    Raises:
      RecipeError: on whatever in the recipe is missing, unknown, out of range, contradictory, or
        means no layer; it names the key.
      ImportError: where PyYAML is not installed, and the recipe is no dictionary.

    Example:
      >>> import jax.numpy as jnp
      >>> text = '''
      ... test_stage:
      ...   pruning_modifiers:
      ...     WandaPruningModifier:
      ...       mask_structure: "2:4"
      ...       ignore: ["re:.*lm_head"]
      ... '''
      >>> params = {"up": {"kernel": jnp.ones((8, 8))}, "lm_head": {"kernel": jnp.ones((8, 4))}}
      >>> recipe = from_yaml(text, params)
      >>> print(recipe)
      test_stage.pruning_modifiers.WandaPruningModifier: 1 kernels, NM(2, 4)
      >>> recipe.rules[0].path
      'up/kernel'
    """
    modules = modules_of(params, names)
    steps = [_step(modifier, modules) for modifier in modifiers_of(read_yaml(recipe))]
    owner: dict[Any, str] = {}
    for step in steps:
        for rule in step.rules:
            if rule.path in owner:
                raise RecipeError(
                    f"{step.where} and {owner[rule.path]} both prune {rule.path}; targets or "
                    "ignore that leave it to one of them would work"
                )
            owner[rule.path] = step.where
    return OneShotRecipe(tuple(steps))


def _step(modifier: Modifier, modules: list[Module]) -> OneShotStep:
    where = modifier.where
    targets = meant(modifier.targets, modules, f"{where}.targets", inside=modifier.inside)
    ignored = {module.path for module in meant(modifier.ignore, modules, f"{where}.ignore")}
    chosen = [m for m in targets if m.path not in ignored and m.kind != "Embedding"]
    if not chosen:
        raise RecipeError(
            f"{where}: targets {list(modifier.targets)} without ignore {list(modifier.ignore)} "
            "leave no kernel to prune"
        )
    rules = tuple(Rule(re.escape(module.path), modifier.pattern) for module in chosen)
    return OneShotStep(
        where, rules, modifier.criterion, modifier.sparsity, modifier.per, modifier.owl
    )
