"""What a task minimises and what it reports."""

from collections.abc import Callable, Sequence

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


def loss_fn(task: Task, class_weights: Sequence[float] = ()) -> Loss:
    """The mean loss over a batch, as a function of (outputs, labels).

    Classification: cross-entropy in nats of logits (n, classes) and classes (n,).
    Binary: the same of one logit (n,) and 0/1 labels (n,). Regression: half the
    squared error. Given weights of the classes, that of an example's class multiplies
    its loss.
    """
    per_example = {
        "classification": optax.softmax_cross_entropy_with_integer_labels,
        "binary": optax.sigmoid_binary_cross_entropy,
        "regression": optax.l2_loss,
    }[task]
    if not class_weights:
        return lambda outputs, labels: jnp.mean(per_example(outputs, labels))
    weights = jnp.asarray(class_weights, jnp.float32)
    return lambda outputs, labels: jnp.mean(
        weights[labels.astype(jnp.int32)] * per_example(outputs, labels)
    )


def progress_metric(task: Task) -> tuple[str, Loss]:
    """A name and a cheap measure of a training batch, for the progress bar."""
    if task == "classification":
        return "accuracy", lambda outputs, labels: jnp.mean(outputs.argmax(-1) == labels)
    if task == "binary":
        return "accuracy", lambda outputs, labels: jnp.mean((outputs > 0) == (labels > 0))
    return "rmse", lambda outputs, labels: jnp.sqrt(jnp.mean((outputs - labels) ** 2))


def evaluate(
    task: Task,
    outputs: np.ndarray,
    labels: np.ndarray,
    class_weights: Sequence[float] = (),
    validation: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """All metrics of a held-out split.

    Args:
      task: the task.
      outputs: of the model, all examples, shapes as in ``loss_fn``.
      labels: of the same examples.
      class_weights: of the loss.
      validation: outputs and labels of other examples; on them the threshold of a binary
        task is chosen. Without, it is 0.

    Returns:
      ``loss`` and: accuracy (a fraction) for classes; accuracy and ROC-AUC for a
      binary task; rmse and mae for a regression. With a validation part also ``f1``, the
      mean F1 of the classes, and the ``threshold`` of a binary task. AUC is NaN where the
      labels hold one class only.
    """
    loss = loss_fn(task, class_weights)(jnp.asarray(outputs, jnp.float32), jnp.asarray(labels))
    found = {"loss": float(loss)}
    outputs = np.asarray(outputs, np.float64)
    if task == "regression":
        error = outputs - labels
        found["rmse"] = float(np.sqrt(np.mean(error**2)))
        found["mae"] = float(np.mean(np.abs(error)))
        return found
    if task == "binary":
        from sklearn import metrics  # late: it takes a second

        threshold = 0.0 if validation is None else best_threshold(*validation)
        chosen, labels = outputs > threshold, labels > 0
        both = 0 < labels.sum() < len(labels)
        found["auc"] = float(metrics.roc_auc_score(labels, outputs)) if both else float("nan")
        if validation is not None:
            found["threshold"] = threshold
    else:
        chosen = outputs.argmax(axis=-1)
    found["accuracy"] = float(np.mean(chosen == labels))
    if validation is not None:
        classes = 2 if task == "binary" else outputs.shape[-1]
        found["f1"] = float(np.mean([_f1(chosen == c, labels == c) for c in range(classes)]))
    return found


def _f1(chosen: np.ndarray, labels: np.ndarray) -> float:
    """Harmonic mean of precision and recall of a class; 0 where it never occurs."""
    found = np.sum(chosen) + np.sum(labels)
    return 2 * np.sum(chosen & labels) / found if found else 0.0


def best_threshold(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The logit above which a positive is called, for the largest mean F1 of both classes.

    It lies halfway between two outputs, so that small changes of them matter little.

    >>> best_threshold(np.array([-2.0, 1.0, 3.0, 4.0]), np.array([0, 0, 1, 1]))
    2.0
    """
    order = np.argsort(outputs)
    scores, positive = np.asarray(outputs, np.float64)[order], labels[order] > 0
    # Cut i calls the first i negative.
    below = np.concatenate([[0], np.cumsum(positive)])
    count, positives = np.arange(len(scores) + 1), positive.sum()
    hits = 2 * (positives - below) / np.maximum(1, len(scores) - count + positives)
    misses = 2 * (count - below) / np.maximum(1, count + len(scores) - positives)
    edges = np.concatenate([[scores[0] - 1], (scores[1:] + scores[:-1]) / 2, [scores[-1] + 1]])
    # Between equal outputs there is no cut.
    real = np.concatenate([[True], scores[1:] > scores[:-1], [True]])
    return float(edges[np.argmax(np.where(real, hits + misses, -1.0))])
