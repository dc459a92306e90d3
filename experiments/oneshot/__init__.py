"""One-shot pruning of a real language model: `python -m experiments.oneshot`."""
