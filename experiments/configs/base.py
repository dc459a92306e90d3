"""The defaults that every config starts from, with what each key means."""

from typing import Any

from ml_collections import ConfigDict


def get_config(steps: int = 1500) -> Any:  # keys differ by config: to a type checker, anything
    """An MLP on the digits, dense, in ``steps`` steps."""
    config = ConfigDict()
    # Everything random (weights, data order, dropout, random regrowth) follows from it.
    config.seed = 0
    # Steps of the recipe and of the warm-up are shares of the run below 1, and counted from 1
    # on. Changed alone, `steps` scales the shares with it.
    config.steps = steps
    config.batch_size = 64
    # `path`: a file or folder of the user's own; `validation`: a fraction of the training
    # split to evaluate on in place of the test split, for tuning. Other keys are the
    # loader's options; likewise for model, optimizer and recipe below.
    config.data = ConfigDict({"name": "digits", "path": "", "validation": 0.0})
    config.model = ConfigDict({"name": "mlp"})
    # Folder of a finished run whose weights are the first ones here; "" starts anew.
    config.init_from = ""
    # `teacher`: folder of a finished run of the same model, whose logits are a second
    # target; `weight`: the share that their loss has; `states`: weight of the last hidden
    # states as a third.
    config.distillation = ConfigDict(
        {"teacher": "", "weight": 0.5, "temperature": 2.0, "states": 0.0}
    )
    config.optimizer = ConfigDict({"name": "adamw", "weight_decay": 0.0})
    # With `restart` the rate starts over, at rewind * peak, where pruning begins
    # (iterative pruning: at every round).
    config.learning_rate = ConfigDict(
        {"peak": 2e-3, "warmup": 50 / steps, "shape": "cosine", "restart": True, "rewind": 1.0}
    )
    # (path regex, pattern) or (path regex, pattern, sparsity). Patterns: "unstructured",
    # "4x16" (rows along the input axis x columns), "2:4", "channel:0"; " pad" behind allows
    # sizes that do not divide.
    config.rules = ((r"layers_\d+/kernel", "unstructured"),)
    config.sparsity = 0.9
    # "uniform", "erk", "global", or "global:0.999" with the largest sparsity of a leaf.
    config.distribution = "uniform"
    config.recipe = ConfigDict({"name": "dense"})
    config.log_every = 50
    config.eval_every = 250
    config.checkpoint_every = 250
    return config
