"""What a task minimises and what it reports."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data.base import Task

Loss = Callable[[jax.Array, jax.Array], jax.Array]

# The number that a report leads with, and whether more of it is better.
HEADLINE = {
    "classification": ("accuracy", True),
    "binary": ("auc", True),
    "regression": ("rmse", False),
}


def loss_fn(task: Task) -> Loss:
    """The mean loss over a batch, as a function of (outputs, labels).

    Classification: cross-entropy in nats of logits (n, classes) and classes (n,).
    Binary: the same of one logit (n,) and 0/1 labels (n,). Regression: half the
    squared error.
    """
    per_example = {
        "classification": optax.softmax_cross_entropy_with_integer_labels,
        "binary": optax.sigmoid_binary_cross_entropy,
        "regression": optax.l2_loss,
    }[task]
    return lambda outputs, labels: jnp.mean(per_example(outputs, labels))


def progress_metric(task: Task) -> tuple[str, Loss]:
    """A name and a cheap measure of a training batch, for the progress bar."""
    if task == "classification":
        return "accuracy", lambda outputs, labels: jnp.mean(outputs.argmax(-1) == labels)
    if task == "binary":
        return "accuracy", lambda outputs, labels: jnp.mean((outputs > 0) == (labels > 0))
    return "rmse", lambda outputs, labels: jnp.sqrt(jnp.mean((outputs - labels) ** 2))


def evaluate(task: Task, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All metrics of a held-out split.

    Args:
      task: the task.
      outputs: of the model, all examples, shapes as in ``loss_fn``.
      labels: of the same examples.

    Returns:
      ``loss`` and: accuracy (a fraction) for classes; accuracy and ROC-AUC for a
      binary task; rmse and mae for a regression. AUC is NaN where the labels hold
      one class only.
    """
    found = {"loss": float(loss_fn(task)(jnp.asarray(outputs, jnp.float32), jnp.asarray(labels)))}
    outputs = np.asarray(outputs, np.float64)
    if task == "classification":
        found["accuracy"] = float(np.mean(outputs.argmax(axis=-1) == labels))
    elif task == "binary":
        from sklearn import metrics  # late: it takes a second

        found["accuracy"] = float(np.mean((outputs > 0) == (labels > 0)))
        both = 0 < labels.sum() < len(labels)
        found["auc"] = float(metrics.roc_auc_score(labels, outputs)) if both else float("nan")
    else:
        error = outputs - labels
        found["rmse"] = float(np.sqrt(np.mean(error**2)))
        found["mae"] = float(np.mean(np.abs(error)))
    return found
