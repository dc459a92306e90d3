"""A slice of `tests.fuzz.kills`; the whole is a command of its own."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_run_killed_at_random_points_ends_bit_identical():
    command = [sys.executable, "-m", "tests.fuzz.kills", "--points", "3"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kills in" in result.stdout and "0 failures" in result.stdout
