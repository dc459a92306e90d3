"""What a budget is counted in, by name."""

from typing import Any

from experiments.registry import Registry
from jaxsparse.allocation import Cost, Flops

KINDS: Registry[Cost] = Registry("budget", given=3)


@KINDS.register("flops")
def flops(fn: Any, tree: Any, inputs: Any) -> Cost:
    """Multiplications of one forward pass."""
    return Flops(fn, tree, inputs)
