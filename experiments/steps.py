"""Steps of a run as configs spell them: counted, or as a share of the run."""

import itertools


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
        raise ValueError(
            f"{key} = {spelled(value, steps)} is outside the run's {steps} steps; give an earlier "
            f"share of the run, such as {key} = 0.5, or config.steps = {_enough(value)}"
        )
    return step


def spelled(value: float, steps: int) -> str:
    """A step, and the share that a config gave for it.

    >>> spelled(0.25, 400), spelled(250, 400)
    ('100 (0.25 of the run)', '250')
    """
    return f"{round(value * steps)} ({value} of the run)" if value < 1 else f"{round(value)}"


def _enough(value: float) -> int:
    """The least length of a run that reaches a step."""
    if value >= 1:
        return round(value) + 1
    first = max(1, int(0.5 / (1 - value)))
    return next(n for n in itertools.count(first) if round(value * n) < n)


def interval(key: str, value: float, steps: int) -> int:
    """Steps from one event to the next: ``resolve``, and at least 1 of a share.

    Raises:
      ValueError: 0, or whatever `resolve` refuses.
    """
    if value == 0:
        raise ValueError(f"{key} = 0 never ends; {key} = 1 is every step")
    return max(1, resolve(key, value, steps))
