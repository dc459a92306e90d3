"""Movement sparsity of MiniLM on the clothing reviews, from a finished `reviews_dense`.

    run="python -m experiments.run --config experiments/configs"
    $run/reviews_dense.py --workdir runs/reviews
    $run/reviews_movement.py:strong --workdir runs/strong

`init_from` and `distillation.teacher` name the folder of the first run. Arms, named behind
the file: "light" leaves some 40 % of the linear weights, "strong" 22 %, both dense again
inside of what is kept; "light_blocks" and "strong_blocks" keep the zeros that movement left
there and store them packed.
"""

from experiments.configs import reviews_dense
from experiments.registry import near_misses

# Weights of the regularizer in attention and in the feed-forward parts.
ARMS = {
    "light": {"factors": (0.01, 0.3), "refill": True},
    "strong": {"factors": (0.04, 1.0), "refill": True},
    "light_blocks": {"factors": (0.005, 0.2), "refill": False},
    "strong_blocks": {"factors": (0.02, 0.6), "refill": False},
}


def get_config(arm: str = "strong_blocks"):
    if arm not in ARMS:
        raise ValueError(f"no arm {arm!r}{near_misses(arm, ARMS)}")
    config = reviews_dense.get_config()
    config.steps = 1200
    config.init_from = "runs/reviews"
    config.distillation.teacher = "runs/reviews"
    config.learning_rate.restart = False
    config.recipe.name = "structured_movement"
    config.recipe.begin = 0.05
    config.recipe.end = 0.6
    attention, feed_forward = ARMS[arm]["factors"]
    config.recipe.factors = (
        (rf"{reviews_dense.ATTENTION}/.*", attention),
        (rf"{reviews_dense.FEED_FORWARD}/(intermediate|output)/.*", feed_forward),
    )
    config.recipe.refill = ARMS[arm]["refill"]
    return config
