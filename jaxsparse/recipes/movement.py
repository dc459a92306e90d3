"""Movement sparsity from NNCF's configuration.

The parts are `prune`, `movement` and `importance_threshold`; this reads which of them, for which
leaves, from a JSON file that NNCF takes, with the scopes renamed to Flax paths. What the keys
mean: docs/movement.md.
"""

import dataclasses
from typing import Any, SupportsIndex

import optax
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxsparse.patterns.rules import Rule
from jaxsparse.pruning.movement import (
    LAST_STEP,
    ImportanceThreshold,
    importance_threshold,
    movement,
)
from jaxsparse.pruning.prune import prune
from jaxsparse.pruning.state import prune_states
from jaxsparse.recipes.configuration import (
    RecipeError,
    algorithm_of,
    check_keys,
    integer,
    number,
    required,
)
from jaxsparse.recipes.layers import ENTRIES, Layer, layers_of
from jaxsparse.recipes.statistics import MovementStatistics, statistics_of
from jaxsparse.recipes.structures import FACTOR
from jaxsparse.text import columned
from jaxsparse.trees import Tree

_SECTION = ("algorithm", "params", ENTRIES, "ignored_scopes", "target_scopes")
_INITIAL = ("initial_importance_threshold", "init_importance_threshold")
_FINAL, _START, _END = "final_importance_threshold", "warmup_start_epoch", "warmup_end_epoch"
_PARAMS = (
    *(_START, _END, FACTOR, "enable_structured_masking", "power", "steps_per_epoch"),
    *(*_INITIAL, _FINAL),
)


@dataclasses.dataclass(frozen=True)
class MovementRecipe:
    """What `from_config` made of a configuration; frozen, and pure like all the rest.

    Attributes:
      layers: what gets sparse, and how.
      epochs: (warmup_start_epoch, warmup_end_epoch).
      initial, final: importance thresholds tau_0, None where it is found, and tau_f.
      power: of the ramp.
      structured_masking: whether masks are to be resolved to whole heads and neurons at the
        end of the warm-up.
      steps_per_epoch: None until `infer_steps_per_epoch`.
    """

    layers: tuple[Layer, ...]
    epochs: tuple[float, float]
    initial: float | None
    final: float
    power: float
    structured_masking: bool
    steps_per_epoch: int | None

    def __str__(self) -> str:
        """The schedule, and a line for every layer."""
        rows: list[tuple[str, ...]] = [("layer", "kernel", "bias", "factor", "by")]
        for layer in self.layers:
            patterns = [str(rule.pattern) for rule in layer.rules]
            kernel, bias = (*patterns, "")[:2]
            rows.append((layer.path, kernel, bias, f"{layer.regularization:g}", layer.structure))
        steps = "unknown" if self.steps_per_epoch is None else self.steps_per_epoch
        initial = "found" if self.initial is None else f"{self.initial:g}"
        head = (
            f"warm-up from epoch {self.epochs[0]} to {self.epochs[1]}, steps per epoch {steps}\n"
            f"threshold from {initial} to {self.final:g}, power {self.power:g}\n"
            f"structured masking {'asked for' if self.structured_masking else 'not asked for'}"
        )
        return "\n".join([head, *columned(rows, {0, 1, 2, 4})])

    @property
    def rules(self) -> tuple[Rule, ...]:
        """One rule a leaf: kernels and biases."""
        return tuple(rule for layer in self.layers for rule in layer.rules)

    @property
    def schedule(self) -> ImportanceThreshold:
        """The threshold in steps; one that never begins while steps per epoch are unknown."""
        begin, end = LAST_STEP - 1, LAST_STEP
        if self.steps_per_epoch is not None:
            begin, end = (int(epoch * self.steps_per_epoch) for epoch in self.epochs)
        return importance_threshold(
            begin=begin, end=end, initial=self.initial, final=self.final, power=self.power
        )

    @property
    def regularization(self) -> float | dict[str, float]:
        """The factor, or factors by expression of the leaf's path where they differ."""
        if len({layer.regularization for layer in self.layers}) == 1:
            return self.layers[0].regularization
        return {
            str(rule.path): layer.regularization for layer in self.layers for rule in layer.rules
        }

    def prune(
        self, optimizer: optax.GradientTransformation | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The transform; first in a chain, with gradients of `js.masked(loss, opt_state)`.

        Args:
          optimizer: of the scores alone, without weight decay; default `optax.adam(1e-2)`.
        """
        score = movement(optimizer, self.regularization)
        return prune(self.rules, score=score, schedule=self.schedule)

    def statistics(
        self, opt_state: Tree, margin: float | Float[Array, ""] = 0.01
    ) -> MovementStatistics:
        """How far sparsification has come, by leaf; see `MovementStatistics`.

        May be called in `jax.jit`.

        Args:
          opt_state: any optax state with `prune`'s in it, an `nnx.Optimizer` too.
          margin: how near to the threshold a score counts as near; 0.01 is one step of the
            scores' default optimizer.

        Raises:
          RecipeError: if the state is none of this recipe's, by leaves, patterns, axes and the
            initial threshold, this only outside `jit`; a state holds no more of it. On a
            margin that is no number from 0 on.
        """
        factors = {p: layer.regularization for layer in self.layers for p in layer.leaves}
        return statistics_of(
            self.rules, self.schedule, self.steps_per_epoch, factors, opt_state, margin
        )

    def infer_steps_per_epoch(self, opt_state: Tree) -> "MovementRecipe":
        """The recipe with the steps of an epoch, as counted in the state after the first one.

        During the first epoch nothing depends on them where the warm-up starts at epoch 1 or
        later, and the state of `prune` is the same before and after. Where it starts with the
        second epoch its first masks come one step later than in a run that knew, and so does
        tau_0 where it is found.

        Raises:
          RecipeError: if the state counts other steps than were given, or none, and in `jit`,
            where its count has no value.
        """
        found = [nnx.as_pure(state).count for state in prune_states(opt_state)]
        if any(isinstance(count, Tracer) for count in found):
            raise RecipeError(
                "infer_steps_per_epoch: the optimizer's state is traced, so its count has no value "
                "yet; a call outside jit would work"
            )
        counts = {int(count) for count in found}
        if len(counts) != 1 or not min(counts):
            raise RecipeError(
                f"steps_per_epoch: the optimizer's state counts {sorted(counts)} steps; the state "
                "after the first epoch of a chain with recipe.prune() would work"
            )
        recipe = dataclasses.replace(self, steps_per_epoch=_agreed(self.steps_per_epoch, *counts))
        _check_times(recipe)
        return recipe


def from_config(
    config: Any, params: Tree, *, steps_per_epoch: SupportsIndex | None = None
) -> MovementRecipe:
    """Reads NNCF's configuration of movement sparsity for these parameters.

    Layers are those with a leaf `kernel` of rank 2, or of rank 3 in Flax's attention, and any
    kernel whose entry gives its axes. As in NNCF a layer that no entry takes is sparsified in
    mode "fine" unless ignored. Weights of NNCF are (out, in) and kernels (in, out):
    `sparse_factors` and `axis` keep NNCF's meaning and are turned.

    Args:
      config: path of the JSON file, a dictionary or an `ml_collections.ConfigDict`; comments
        and trailing commas are read as NNCF reads them.
      params: parameters, arrays or `jax.ShapeDtypeStruct`.
      steps_per_epoch: `len(batches)`; may stand in the configuration instead. If neither says,
        `infer_steps_per_epoch` after the first epoch.

    Raises:
      RecipeError: on whatever in the configuration is missing, unknown, out of range,
        contradictory, or does not fit the parameters; it names the entry and the leaf.

    >>> import jax.numpy as jnp
    >>> config = {
    ...     "algorithm": "movement_sparsity",
    ...     "params": {
    ...         "warmup_start_epoch": 1,
    ...         "warmup_end_epoch": 4,
    ...         "importance_regularization_factor": 0.01,
    ...     },
    ...     "sparse_structure_by_scopes": [
    ...         {"mode": "block", "sparse_factors": [8, 4], "target_scopes": "{re}.*attention"}
    ...     ],
    ... }
    >>> params = {"attention": {"kernel": jnp.ones((16, 32)), "bias": jnp.ones(32)}}
    >>> recipe = from_config(config, params, steps_per_epoch=100)
    >>> [(rule.path, str(rule.pattern)) for rule in recipe.rules]
    [('attention/kernel', 'Block(4, 8)'), ('attention/bias', 'Block(1, 8)')]
    >>> recipe.schedule.begin, recipe.schedule.end
    (100, 400)
    """
    section = algorithm_of(config)
    check_keys(section, _SECTION, "the configuration")
    options = section.get("params")
    if not isinstance(options, dict):
        raise RecipeError(f"params is {options!r}; a mapping with {_START}, {_END}, {FACTOR} works")
    check_keys(options, _PARAMS, "params")
    factor = required(options, FACTOR, "params")
    if factor < 0:
        raise RecipeError(f"params.{FACTOR} is {factor}; a number from 0 on would work")
    structured = options.get("enable_structured_masking", True)
    if not isinstance(structured, bool):
        raise RecipeError(f"params.enable_structured_masking is {structured!r}, not true or false")
    given = [name for name in _INITIAL if options.get(name) is not None]
    if len(given) > 1:
        raise RecipeError(f"params: {' and '.join(given)} are one thing; either would work")
    epochs = required(options, _START, "params"), required(options, _END, "params")
    recipe = MovementRecipe(
        layers_of(section, params, factor),
        epochs,
        number(options, given[0], "params") if given else None,
        number(options, _FINAL, "params", 0.0),
        number(options, "power", "params", 3.0),
        structured,
        _agreed(options.get("steps_per_epoch"), steps_per_epoch),
    )
    _check_times(recipe)
    return recipe


def _agreed(*counts: Any) -> int | None:
    """The one number of steps that is said, None if none is."""
    said = set()
    for given in counts:
        count = integer(given)
        if given is not None and (count is None or not 1 <= count <= LAST_STEP):
            raise RecipeError(
                f"steps_per_epoch is {given!r}; an integer from 1 on, of no more than {LAST_STEP}, "
                "would work"
            )
        said |= {count} - {None}
    if len(said) > 1:
        raise RecipeError(
            f"steps_per_epoch is said to be {' and '.join(map(str, sorted(said)))}; one of them, "
            "the number of batches that an epoch has, would work"
        )
    return said.pop() if said else None


def _check_times(recipe: MovementRecipe) -> None:
    start, end = recipe.epochs
    if not 0 <= start < end:
        raise RecipeError(
            f"params: 0 <= {_START} < {_END} must hold, but they are {start} and {end}"
        )
    if end * (recipe.steps_per_epoch or 1) > LAST_STEP:
        raise RecipeError(
            f"params: {_END} is {end}, at {recipe.steps_per_epoch} steps per epoch; steps are "
            f"counted up to {LAST_STEP}, so an earlier end would work"
        )
    if recipe.power <= 0:
        raise RecipeError(f"params.power is {recipe.power}; a number above 0 would work")
    if recipe.steps_per_epoch is None and start < 1:
        raise RecipeError(
            f"params: {_START} is {start}, and steps_per_epoch is not said: it can be inferred "
            f"from the first epoch only where {_START} is at least 1; "
            "steps_per_epoch=len(batches) would work"
        )
    try:
        _ = recipe.schedule
    except ValueError as error:
        raise RecipeError(
            f"params, with {recipe.steps_per_epoch} steps per epoch: {error}"
        ) from error
