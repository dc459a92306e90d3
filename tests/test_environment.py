"""What is said while an environment is made."""

import importlib.util
import pathlib
import sys

import pytest

FILE = pathlib.Path(__file__).parent.parent / "tools" / "environment.py"
spec = importlib.util.spec_from_file_location("environment", FILE)
assert spec is not None and spec.loader is not None
environment = importlib.util.module_from_spec(spec)
spec.loader.exec_module(environment)

LINES = {
    "Obtaining file:///jaxsparse": "2/3 fetching packages: some 250 MB, unless pip has them",
    "  Downloading jax-0.10.2-py3-none-any.whl.metadata (13 kB)": "",
    "  Downloading jax-0.10.2-py3-none-any.whl (3.1 MB)": "      jax 0.10.2 (3.1 MB)",
    "     ━━━━━━━━━━━━━━━━━━━━━━━━━ 3.1/3.1 MB 292.3 MB/s eta 0:00:00": "",
    "  Using cached optax-0.2.8-py3-none-any.whl (390 kB)": "      optax 0.2.8 (390 kB)",
    "Processing /wheels/flax-0.12.8-py3-none-any.whl (from x)": "      flax 0.12.8",
    "  Building editable for jaxsparse (pyproject.toml): started": (
        "3/3 compiling the CPU kernels: a minute"
    ),
    "  Building editable for jaxsparse (pyproject.toml): finished with status 'done'": "",
    "Installing collected packages: a, b": "unpacking what was fetched",
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_pip_in_words(line, capsys):
    environment.tell(line)
    assert capsys.readouterr().out.rstrip("\n") == LINES[line]


def test_a_failure_shows_what_pip_said_and_fails(tmp_path):
    # An environment that exists: its pip is this one.
    (tmp_path / "bin").mkdir()
    (tmp_path / "pyvenv.cfg").touch()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=r"(?s)no-such-file.*the environment is not ready"):
        environment.main(str(tmp_path), "--no-index", "-r", str(tmp_path / "no-such-file"))
