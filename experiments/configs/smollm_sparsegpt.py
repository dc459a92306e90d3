"""SmolLM2 pruned by sparsegpt; behind the file a pattern, as in smollm_sparsegpt.py:2:4."""

from experiments.oneshot.config import get_config as base


def get_config(pattern: str = "unstructured"):
    return base("sparsegpt", pattern)
