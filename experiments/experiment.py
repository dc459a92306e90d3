"""A config made into pure functions: everything follows from the seed and the step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse as js
from experiments import (
    data,
    distillation,
    models,
    optimizers,
    permutation,
    recipes,
    rules,
    starting,
    structure,
    tasks,
)
from experiments.config import Config


class TrainState(NamedTuple):
    """All that changes from step to step, and all that a checkpoint holds."""

    params: Any
    extra: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config made into functions.

    Attributes:
      config: the config.
      dataset: see ``experiments.data``.
      batches: step -> (inputs, targets).
      recipe: see ``experiments.recipes``.
      progress_metric: the name that ``step`` gives its measure beside the loss.
      rules: the config's rules, parsed, each with the axes that the model uses.
      targets: path -> sparsity asked for; empty where the recipe has no target.
      init: () -> the state before step 0.
      step: (state, inputs, targets, step) -> (state, {name: scalar}); the state that
        goes in is consumed.
      forward: (params, extra, inputs) -> outputs in evaluation mode, not jitted.
      predict: (state, inputs) -> outputs of the masked model in evaluation mode.
      sparsity: state -> fraction of zeros in the pruned leaves.
      leaf_sparsity: the same of every pruned leaf that is no vector, by path.
      permute: state -> (state with channels permuted, report); None where the recipe
        permutes nothing. Runs on the host.
      resolve: state -> (state with masks of whole heads and neurons, report); None where
        the recipe leaves masks as they are. Runs on the host.
      frozen: paths of the entries of ``extra`` that are parameters which do not train.
    """

    config: Config
    dataset: data.Dataset
    batches: data.Batches
    recipe: recipes.Recipe
    progress_metric: str
    rules: list[js.Rule]
    targets: dict[str, float]
    init: Callable[[], TrainState]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    forward: Callable[[Any, Any, Any], jax.Array]
    predict: Callable[[TrainState, Any], jax.Array]
    sparsity: Callable[[TrainState], jax.Array]
    leaf_sparsity: Callable[[TrainState], dict[str, jax.Array]]
    permute: Callable[[TrainState], tuple[TrainState, js.graph.PermutationReport]] | None
    resolve: Callable[[TrainState], tuple[TrainState, js.graph.StructureReport]] | None
    frozen: tuple[str, ...]

    def masks(self, state: TrainState) -> recipes.Masks:
        """Masks in force, by path."""
        return self.recipe.masks(state.opt_state)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Metrics of the masked model on the held-out split, as ``test_<name>``."""
        dataset = self.dataset
        validation = None
        if dataset.validation is not None:
            validation = self.outputs(state, dataset.validation), dataset.validation.labels
        found = tasks.evaluate(
            dataset.task,
            self.outputs(state, dataset.test),
            dataset.test.labels,
            dataset.class_weights,
            validation,
        )
        return {f"test_{name}": value for name, value in found.items()}

    def outputs(self, state: TrainState, split: data.Split) -> np.ndarray:
        """Outputs of the masked model for all examples of a split."""
        predict = functools.partial(self.predict, state)
        return data.predict_all(predict, split, self.dataset.buckets)


def build(config: Config) -> Experiment:
    """Makes data, model, recipe and the compiled functions of a checked config.

    Raises:
      ValueError: whatever in the config has no meaning; names the key or the leaf.
    """
    dataset = data.load(**config.data)
    model = models.create(dataset=dataset, **config.model)
    # Streams apart: weights must not change when a model gains dropout.
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    shapes, extra_shapes = jax.eval_shape(model.init, init_key)

    first = dict(model.pretrained)
    if config.init_from:
        first |= starting.weights_of("init_from", config.init_from, model)

    def forward(params, extra, inputs):
        return model.apply(params, extra, inputs, None)[0]

    example = dataset.train.take(np.arange(2)).inputs

    @functools.cache
    def found_structure() -> js.graph.Structure:
        return js.graph.structure(forward, shapes, extra_shapes, example)

    written = rules.parse_rules(config.rules)
    parsed = js.read_axes(written, forward, shapes, extra_shapes, example)
    distribution = rules.parse_distribution(config.distribution)
    setup = recipes.Setup(
        rules=parsed,
        sparsity=config.sparsity,
        distribution=distribution,
        steps=config.steps,
        seed=config.seed,
        optimizer=functools.partial(_optimizer, config),
        structure=found_structure,
    )
    recipe = recipes.create(setup=setup, **config.recipe)
    targets = js.targets(parsed, shapes, config.sparsity, distribution)
    progress_name, progress_of = tasks.progress_metric(dataset.task)
    hard = tasks.loss_fn(dataset.task, dataset.class_weights)
    objective = distillation.objective(config.distillation, model, dataset, hard, init_key)

    def masked(state: TrainState):
        masks = recipe.masks(state.opt_state)
        return js.mask_params(state.params, masks) if masks else state.params

    def init() -> TrainState:
        params, extra = starting.trees(model, init_key, first)
        return TrainState(params, extra, jax.jit(recipe.tx.init)(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, inputs, targets, number):
        key = jax.random.fold_in(step_key, number)

        def loss(params):
            said, extra = objective.say(params, state.extra, inputs, key)
            return objective.loss(said, targets, inputs), (said.outputs, extra)

        grad_fn = jax.value_and_grad(loss, has_aux=True)
        (value, (outputs, extra)), grads = grad_fn(masked(state))
        options = {"masks": recipe.masks(state.opt_state)} if recipe.wants_masks else {}
        updates, opt_state = recipe.tx.update(grads, state.opt_state, state.params, **options)
        params = optax.apply_updates(state.params, updates)
        progress = progress_of(outputs, distillation.labels_of(targets))
        return TrainState(params, extra, opt_state), {"loss": value, progress_name: progress}

    @jax.jit
    def predict(state: TrainState, inputs):
        return forward(masked(state), state.extra, inputs)

    @jax.jit
    def sparsity(state: TrainState):
        masks = recipe.masks(state.opt_state).values()
        gone = sum(jnp.sum(~mask, dtype=jnp.int32) for mask in masks)
        return gone / max(1, sum(mask.size for mask in masks)) if masks else jnp.zeros(())

    @jax.jit
    def leaf_sparsity(state: TrainState):
        masks = recipe.masks(state.opt_state)
        return {path: 1.0 - jnp.mean(mask) for path, mask in masks.items() if mask.ndim > 1}

    def permute(state: TrainState):
        options = recipe.permutation or {}
        trees, report = permutation.permute(model.apply, parsed, example, state, **options)
        return TrainState(*trees), report

    def resolve(state: TrainState):
        options = recipe.structure or {}
        opt_state, report = structure.resolve(found_structure(), state.opt_state, **options)
        # Weights that come back start from zero, so that the function stays what was trained:
        # what they were before their masks fits nothing any more.
        return state._replace(params=masked(state), opt_state=opt_state), report

    return Experiment(
        config=config,
        dataset=dataset,
        batches=data.Batches(objective.train, config.batch_size, config.seed, dataset.buckets),
        recipe=recipe,
        progress_metric=progress_name,
        rules=parsed,
        targets=targets if recipe.has_target else {},
        init=init,
        step=step,
        forward=forward,
        predict=predict,
        sparsity=sparsity,
        leaf_sparsity=leaf_sparsity,
        permute=None if recipe.permutation is None else permute,
        resolve=None if recipe.structure is None else resolve,
        frozen=tuple(starting.frozen_of(model)),
    )


def _optimizer(config: Config, restarts):
    """The optimizer of a config, and its learning rate with these restarts."""
    options = config.learning_rate.to_dict()
    restarts = tuple(restarts) if options.pop("restart") else ()
    rate = optimizers.learning_rate(config.steps, restarts, **options)
    return optimizers.create(learning_rate=rate, **config.optimizer), rate
