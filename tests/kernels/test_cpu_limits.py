"""What the processor can do at most, as far as a test may ask: that it is measured."""

import math

import pytest

from jaxsparse.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_limits_are_positive_numbers(threads):
    for limit in (cpu.fma_peak(threads), cpu.read_bandwidth(threads, megabytes=1)):
        assert math.isfinite(limit) and limit > 0
