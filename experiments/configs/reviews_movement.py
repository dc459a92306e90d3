"""Movement sparsity of MiniLM on the clothing reviews, from a finished `reviews_dense`.

    run="python -m experiments.run --config experiments/configs"
    $run/reviews_dense.py --workdir runs/reviews
    $run/reviews_movement.py:strong --workdir runs/strong

`init_from` and `distillation.teacher` name the folder of the first run. Arms, named behind
the file: "light" and "strong" are dense again inside of the heads and neurons that are kept, as
NNCF does it; "_blocks" keep the zeros that movement left there and store them packed.
"_magnitude" are the rivals of "_blocks", "dense" prunes nothing in as many steps.
"""

from experiments.configs import reviews_dense
from experiments.registry import near_misses

# Of the regularizer: its weights in attention and in the feed-forward parts. Of magnitude:
# the share of zeros. What is left of the linear weights follows, and is in the report; heads
# go as a whole, which is what makes attention fast, only where its own factor is high enough.
ARMS = {
    "light": {"factors": (0.0085, 0.05), "refill": True},
    "strong": {"factors": (0.02, 0.1), "refill": True},
    "light_blocks": {"factors": (0.005, 0.042), "refill": False},
    "strong_blocks": {"factors": (0.01, 0.085), "refill": False},
    "light_magnitude": {"sparsity": 0.78, "refill": False},
    "strong_magnitude": {"sparsity": 0.87, "refill": False},
    "dense": {},
}


def get_config(arm: str = "strong_blocks"):
    if arm not in ARMS:
        raise ValueError(f"no arm {arm!r}{near_misses(arm, ARMS)}")
    options = ARMS[arm]
    config = reviews_dense.get_config()
    config.steps = 1000
    config.init_from = config.distillation.teacher = "runs/reviews"
    config.distillation.states = 1.0
    config.learning_rate.restart = False
    config.recipe.begin = 0.03
    if not options:
        return config
    config.recipe.end = 0.6
    config.recipe.refill = options["refill"]
    if "sparsity" in options:
        config.recipe.name = "structured_magnitude"
        config.sparsity = options["sparsity"]
        # One threshold for all layers, as movement has, of blocks and of neurons.
        config.distribution = "global_by_size:0.98"
        return config
    config.recipe.name = "structured_movement"
    attention, feed_forward = options["factors"]
    config.recipe.factors = (
        (reviews_dense.ATTENTION, attention),
        (reviews_dense.INTERMEDIATE, feed_forward),
        (reviews_dense.OUTPUT, feed_forward),
    )
    return config
