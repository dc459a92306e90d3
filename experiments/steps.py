"""Steps of a run as configs spell them: counted, or as a share of the run."""


def resolve(key: str, value: float, steps: int) -> int:
    """A number of steps.

    Shares keep a recipe's proportions when ``config.steps`` is changed alone.

    Args:
      key: where the value stands in the config, for errors.
      value: below 1 a share of the run, rounded to whole steps; from 1 on the steps
        themselves.
      steps: length of the run.

    Raises:
      ValueError: below 0, or a fraction above 1.

    >>> resolve("recipe.begin", 0.25, 400), resolve("recipe.begin", 250, 400)
    (100, 250)
    """
    if value < 0 or (value >= 1 and value != round(value)):
        raise ValueError(
            f"{key} = {value} is neither a number of steps nor a share of the run's {steps} steps: "
            "0.25 is a quarter of them, 250 the 250th"
        )
    return round(value * steps) if value < 1 else round(value)


def inside(key: str, value: float, steps: int) -> int:
    """A step at which something happens: ``resolve``, before the end of the run.

    Raises:
      ValueError: a step that the run does not reach.
    """
    step = resolve(key, value, steps)
    if step >= steps:
        share = f" ({value} of the run)" if value < 1 else ""
        raise ValueError(
            f"{key} = {step}{share} is outside the run's {steps} steps; give a share of "
            f"the run, such as {key} = 0.5, or raise config.steps"
        )
    return step


def interval(key: str, value: float, steps: int) -> int:
    """Steps from one event to the next: ``resolve``, and at least 1."""
    return max(1, resolve(key, value, steps))
