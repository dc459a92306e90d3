"""SmolLM2 pruned by magnitude; behind the file a pattern, as in smollm_magnitude.py:2:4."""

from experiments.oneshot.config import get_config as base


def get_config(pattern: str = "unstructured"):
    return base("magnitude", pattern)
