"""Whether a model is in evaluation mode: the same inputs give the same outputs."""

from flax import nnx


def active(model: nnx.Module) -> str | None:
    """What of a model `model.eval()` would change its outputs by; None if there is nothing.

    That is dropout of a rate above 0 with `deterministic=False`, of attention too, and
    statistics of the batch, `use_running_average=False`.

    >>> active(nnx.Dropout(0.5)), active(nnx.Dropout(0.5, deterministic=True))
    ("the dropout '' is active", None)
    """
    for path, module in nnx.iter_modules(model):
        where = "/".join(map(str, path))
        if getattr(module, "use_running_average", None) is False:
            return f"the {type(module).__name__} {where!r} takes the statistics of its inputs"
        if getattr(module, "deterministic", None) is False:
            rates = [getattr(module, name, None) for name in ("rate", "dropout_rate")]
            if any(isinstance(rate, int | float) and rate > 0 for rate in rates):
                of = "" if isinstance(module, nnx.Dropout) else f" of the {type(module).__name__}"
                return f"the dropout{of} {where!r} is active"
    return None
