"""The steps that every walk takes, on a model as a function of its parameters.

Warnings are errors in this suite, so a step that comes out right was also silent.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

import jaxsparse as js

HALF = 0.5
PATTERNS = {
    "block": (js.Block(4, 16), HALF),
    "nm": (js.NM(2, 4), None),
    "unstructured": (js.Unstructured(), HALF),
}


def pruned_adam(rules: Sequence[js.Rule]) -> optax.GradientTransformation:
    return js.pruned(optax.adam(1e-2), js.prune(rules, schedule=js.one_shot(begin=1)))


def train(loss: Callable[[Any], Any], params: Any, rules: Sequence[js.Rule]) -> tuple[Any, dict]:
    """Three steps in a plain loop; the parameters and their masks."""
    tx = pruned_adam(rules)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(js.mask_params(params, js.masks(state)))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    return params, js.masks(state)


def walk(
    apply: Callable[..., Any],
    params: Any,
    masks: Any,
    rules: Sequence[js.Rule],
    inputs: Any,
    file: Any,
    jit: Callable[..., Any] = jax.jit,
) -> js.graph.ShrinkReport:
    """From a pruned model to a report, packed weights, a file, a program and a smaller model.

    Args:
      apply: apply(params, inputs), in evaluation mode.
      params, masks, rules: after training.
      file: where packed weights are saved.
      jit: what compiles functions of the parameters.

    Returns:
      What shrinking did.
    """
    leaves, chosen = js.leaves_by_path(params), js.leaves_by_path(masks)
    for path, mask in chosen.items():
        assert 0.4 < np.mean(mask) < 0.6
        assert not np.asarray(leaves[path])[~np.asarray(mask)].any()
    report = js.report(params, masks, rules=rules, targets=js.targets(rules, params))
    assert {leaf.path for leaf in report.leaves if leaf.pattern != "dense"} == set(chosen)
    assert all(path in str(report) for path in chosen)
    assert report.stored_bytes < report.dense_bytes

    right = jit(apply)(js.mask_params(params, masks), inputs)

    def check(y):
        np.testing.assert_allclose(y, right, rtol=1e-3, atol=1e-4)

    packed = js.pack_params(params, masks, rules)
    stored = js.leaves_by_path(packed, js.is_packed)
    assert {path for path, leaf in stored.items() if js.is_packed(leaf)} == set(chosen)
    sparse = js.sparsify(apply, on_dense="error")
    forward = jit(sparse)
    check(forward(packed, inputs))

    js.save_safetensors(file, packed)
    loaded = js.load_safetensors(file, like=packed)
    assert jax.tree.structure(loaded) == jax.tree.structure(packed)
    check(forward(loaded, inputs))

    # With the weights inside: not every framework's trees can be written into a program.
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *inputs.shape[1:]), inputs.dtype)
    exported = jax.export.export(jax.jit(lambda inputs: sparse(packed, inputs)))(shape)
    check(jax.export.deserialize(exported.serialize()).call(inputs))

    small, run, report = js.graph.shrink(apply, params, masks, inputs)
    check(jit(run)(small, inputs))
    assert report.after < report.before
    return report
