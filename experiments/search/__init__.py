"""How many channels each layer keeps, searched on images: `python -m experiments.search`."""
