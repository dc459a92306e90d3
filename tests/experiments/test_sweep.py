"""`python -m experiments.sweep`: mistakes are one line that says the cure."""

import sys

import pytest

from experiments import claims, movement_claim, sweep
from experiments.data.download import DownloadError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    with pytest.raises(SystemExit) as caught:
        sweep.main()
    return caught.value.code


@pytest.mark.parametrize("claim", ["movement", "blocks"])
@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_no_seeds(monkeypatch, claim, seeds):
    found = run(monkeypatch, "--claim", claim, "--seeds", seeds)
    assert found == f"error: --seeds {seeds} must be at least 1"


@pytest.mark.parametrize(("claim", "module"), [("movement", movement_claim), ("blocks", claims)])
def test_what_cannot_be_downloaded(monkeypatch, claim, module):
    def measure(*_, **__):
        raise DownloadError("pip could not download it; the cure")

    monkeypatch.setattr(module, "measure", measure)
    found = run(monkeypatch, "--claim", claim)
    assert found == "error: pip could not download it; the cure"
