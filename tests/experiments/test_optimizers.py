import numpy as np
import pytest

from experiments import optimizers


def rates(steps, *args, **options):
    schedule = optimizers.learning_rate(steps, *args, **options)
    return np.array([float(schedule(step)) for step in range(steps)])


def test_warm_up_then_cosine():
    found = rates(40, peak=2.0, warmup=4)
    np.testing.assert_allclose(found[:5], [0, 0.5, 1, 1.5, 2])
    assert (np.diff(found[4:]) < 0).all() and found[-1] < 0.01


def test_every_restart_begins_anew_at_the_rewound_peak():
    found = rates(40, (20, 30), peak=1.0, warmup=2, rewind=0.5)
    assert found[20] == found[30] == 0
    np.testing.assert_allclose([found[2], found[22], found[32]], [1, 0.5, 0.5])
    np.testing.assert_allclose(found[20:30], found[30:40])


def test_constant():
    np.testing.assert_allclose(rates(8, peak=0.3, shape="constant"), 0.3)


@pytest.mark.parametrize(
    ("restarts", "options", "message"),
    [
        ((), {"shape": "cosin"}, "'cosine' or 'constant', not 'cosin'"),
        ((8,), {}, r"restarts \(8,\) must increase inside the 8 steps"),
        ((5, 3), {}, "must increase"),
    ],
)
def test_errors(restarts, options, message):
    with pytest.raises(ValueError, match=message):
        optimizers.learning_rate(8, restarts, peak=1.0, **options)


def test_an_unknown_optimizer():
    with pytest.raises(ValueError, match="unknown optimizer 'adam'; did you mean 'adamw'"):
        optimizers.create("adam", 0.1)
