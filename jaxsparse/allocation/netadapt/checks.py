"""What is wrong with the arguments of `netadapt`, said before anything is tried."""

import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jaxsparse.allocation.costs.flops import Cost, check_cost
from jaxsparse.allocation.narrowing import check_widths
from jaxsparse.allocation.netadapt.rules import reduction_bound
from jaxsparse.graph import Structure
from jaxsparse.trees import near_misses

DIVISOR = 8


def check_numbers(
    short: int, long: int, tune: Any, choice: str, initial: float, decay: float
) -> None:
    """Raises ValueError or TypeError on what is out of range."""
    for name, steps in (("short", short), ("long", long)):
        if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 0:
            raise ValueError(f"netadapt: {name}={steps!r}; a number of steps from 0 on would work")
    if (short or long) and not callable(tune):
        raise TypeError(
            f"netadapt: tune={tune!r} is no function, and short={short}, long={long} steps are to "
            "be tuned; tune=js.allocation.tuner(loss, batches, optimizer), or short=0, long=0, "
            "would work"
        )
    if choice not in ("accuracy", "ratio"):
        raise ValueError(f"netadapt: choice={choice!r}; 'accuracy' or 'ratio' would work")
    if not 0 < initial < 1:
        raise ValueError(f"netadapt: initial={initial!r} is not in (0, 1); 0.025 would work")
    if not 0 < decay <= 1:
        raise ValueError(f"netadapt: decay={decay!r} is not in (0, 1]; 0.96 would work")


def divisors_of(structure: Structure, divisor: int | Mapping[str, int]) -> dict[str, int]:
    """By group what its widths are multiples of; heads go one by one if not told otherwise.

    Raises:
      ValueError: below 1, or of a name that is no group.
      TypeError: what is no whole number.
    """
    given = divisor if isinstance(divisor, Mapping) else {}
    known = {group.name for group in structure.groups}
    found = {}
    for name, value in [*given.items(), ("", DIVISOR if given else divisor)]:
        if name and name not in known:
            raise ValueError(f"netadapt: divisor: {name!r} is no group; {near_misses(name, known)}")
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"netadapt: divisor={value!r} is no whole number; 8 would work")
        if value < 1:
            raise ValueError(f"netadapt: divisor={value!r}; 1 or more would work")
        found[name] = int(value)
    return {
        group.name: found.get(group.name, 1 if group.kind == "heads" else found[""])
        for group in structure.groups
    }


def lowest_widths(
    structure: Structure,
    names: Sequence[str],
    divisors: Mapping[str, int],
    lowest: Mapping[str, int],
) -> dict[str, int]:
    """The width that each of the groups does not go below: a multiple of its divisor, or whole.

    Raises:
      ValueError: a bound of no group, or outside of 1 to its units.
      TypeError: a bound that is no whole number.
    """
    check_widths(structure, lowest, "netadapt: lowest")
    units, found = {group.name: group.units for group in structure.groups}, {}
    for name in names:
        divisor = divisors[name]
        bound = -(-lowest.get(name, divisor) // divisor) * divisor
        found[name] = min(bound, units[name])
    return found


def total(cost: Cost, widths: Mapping[str, int]) -> float:
    """The cost of the network with these widths, as JSON takes it; whole numbers stay whole.

    Raises:
      ValueError: where it is no finite number.
    """
    found = cost.total(widths)
    if not math.isfinite(found):
        raise ValueError(
            f"netadapt: the cost is {found} {cost.unit} with widths {dict(widths)}; a finite "
            "number would work"
        )
    return int(found) if isinstance(found, numbers.Integral) else float(found)


def check_budget(
    cost: Cost,
    budget: float,
    structure: Structure,
    lowest: Mapping[str, int],
    initial: float,
    decay: float,
) -> float:
    """The cost of the whole network, if the budget is within reach of the lowest widths.

    Raises:
      ValueError: it is not, quoting the least one; a budget that is no positive number; a cost of
        other groups.

    Warns:
      UserWarning: iterations have to take off more than they are asked for.
    """
    whole = {group.name: group.units for group in structure.groups}
    check_cost(cost, "netadapt", {name: whole[name] for name in lowest})
    dense, least = total(cost, whole), total(cost, whole | dict(lowest))
    if isinstance(budget, bool) or not isinstance(budget, numbers.Real) or not budget > 0:
        raise ValueError(
            f"netadapt: budget={budget!r}; {cost.unit} between {least:g} and {dense:g} would work"
        )
    if least > budget:
        raise ValueError(
            f"netadapt: budget={budget:g} {cost.unit} is out of reach: at the lowest widths, "
            f"{dict(lowest)}, the network costs {least:g} of {dense:g}; a budget from there on, or "
            "a smaller divisor= or lowest=, would work"
        )
    bound = reduction_bound(initial, decay)
    if budget < (1 - bound) * dense:
        warnings.warn(
            f"netadapt: budget={budget:g} is {1 - budget / dense:.1%} below the {dense:g} "
            f"{cost.unit} of the whole network, and iterations that just meet their targets take "
            f"off {bound:.1%} in all (initial={initial}, decay={decay}); it is reached only as "
            "widths go down in steps, by many iterations; a larger initial= or decay= takes fewer",
            stacklevel=3,
        )
    return dense
