"""The runnable side of jaxsparse: train, prune, measure, report.

Start with ``python -m experiments.run --config experiments/configs/demo.py --workdir runs/demo``.
"""
