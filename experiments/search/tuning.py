"""Training of a model under masks that stay: what follows a search, and what some do within."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import jaxsparse as js
from experiments import data, tasks
from experiments.models import Model

Tune = Callable[[Any, Mapping[str, Any], range], Any]


def tuner(model: Model, dataset: data.Dataset, batch_size: int, peak: float, seed: int) -> Tune:
    """A function that trains what masks keep, the masked model at its whole size.

    One compilation serves all masks. Batch statistics are trained along.

    Args:
      model: whose trees have the keys "params" and "extra".
      dataset: whose training part is seen.
      batch_size: examples a step.
      peak: of Adam's learning rate, which goes to 0 by a cosine over the steps of a call.
      seed: of the order of the examples and of what the model draws.

    Returns:
      tune(tree, masks, steps) -> tree, with +0 where masks are; `steps` is a range of numbers,
      which say the batches.
    """
    batches = data.Batches(dataset.train, batch_size, seed, dataset.buckets)
    loss_of = tasks.loss_fn(dataset.task, dataset.class_weights)
    keys = jax.random.key(seed)
    # Adam's direction; the rate is an argument of the step.
    optimizer = optax.scale_by_adam()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(tree, state, masks, inputs, labels, number, rate):
        def loss(params):
            masked = js.mask_params({"params": params, "extra": tree["extra"]}, masks)
            key = jax.random.fold_in(keys, number)
            outputs, extra = model.apply(masked["params"], masked["extra"], inputs, key)
            return loss_of(outputs, labels), extra

        gradients, extra = jax.grad(loss, has_aux=True)(tree["params"])
        updates, state = optimizer.update(gradients, state)
        params = optax.apply_updates(tree["params"], optax.tree.scale(-rate, updates))
        return js.mask_params({"params": params, "extra": extra}, masks), state

    def tune(tree: Any, masks: Mapping[str, Any], steps: range) -> Any:
        schedule = optax.cosine_decay_schedule(peak, max(1, len(steps)))
        # The first step consumes what it is given: not the caller's.
        tree = jax.tree.map(lambda leaf: leaf.copy(), js.mask_params(tree, masks))
        state = jax.jit(optimizer.init)(tree["params"])
        for done, number in enumerate(steps):
            tree, state = step(tree, state, dict(masks), *batches(number), number, schedule(done))
        return tree

    return tune


def settled(model: Model, params: Any, extra: Any, batches: data.Batches, count: int) -> Any:
    """`extra` after so many batches in training mode: the statistics of trained weights.

    A run keeps its weights, not what its norms have seen.
    """

    @jax.jit
    def see(extra, inputs, number):
        return model.apply(params, extra, inputs, jax.random.fold_in(jax.random.key(0), number))[1]

    for number in range(count):
        extra = see(extra, batches(number)[0], number)
    return extra
