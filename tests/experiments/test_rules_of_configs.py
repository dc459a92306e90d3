import pytest

import jaxsparse as js
from experiments import rules


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", js.Unstructured()),
        ("4x16", js.Block(4, 16)),
        ("4x16 pad", js.Block(4, 16, pad=True)),
        ("2:4", js.NM(2, 4)),
        ("channel:-1", js.Channel(-1)),
    ],
)
def test_spellings(text, pattern):
    assert rules.parse_pattern(text) == pattern


@pytest.mark.parametrize("text", ["4x", "block", "2:4:8", "unstructured pad", "channel:0 pad"])
def test_other_spellings_are_errors(text):
    with pytest.raises(ValueError, match=f"unknown pattern '{text}'"):
        rules.parse_pattern(text)


def test_rules():
    one, two = rules.parse_rules([("a/kernel", "2:4"), ("b/kernel", "4x16", 0.8)])
    assert one == js.Rule("a/kernel", js.NM(2, 4))
    assert two == js.Rule("b/kernel", js.Block(4, 16), sparsity=0.8)
    for entry in ("a/kernel", ("a/kernel",), 1):
        with pytest.raises(ValueError, match="a rule is"):
            rules.parse_rules([entry])
    for entries in (1, "a/kernel"):
        with pytest.raises(ValueError, match=f"rules is a list of .*, not {entries!r}"):
            rules.parse_rules(entries)


def test_distributions():
    assert rules.parse_distribution("erk") == js.erk()
    assert rules.parse_distribution("global:0.999") == js.global_(maximum=0.999)
    by_size = js.global_(maximum=0.999, by_size=True)
    assert rules.parse_distribution("global_by_size:0.999") == by_size
    with pytest.raises(ValueError, match="unknown distribution 'unifrom'; did you mean 'uniform'"):
        rules.parse_distribution("unifrom")
