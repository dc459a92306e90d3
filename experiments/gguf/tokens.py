"""The tokenizer that a GGUF file carries in its metadata."""

import pathlib
import sys
from typing import Any

from experiments.gguf.header import Header
from experiments.registry import near_misses
from experiments.tokenizer import Tokenizer
from jaxsparse.text import shorten

_PREFIX = "tokenizer.ggml."
# What llama.cpp calls the ways to cut a text into words -> whether every digit is one.
_WORDS = {"smollm": True, "gpt-2": False}
_CONTROL, _USER_DEFINED = 3, 4


def read_tokenizer(file: str | pathlib.Path, header: Header) -> Tokenizer:
    """Byte pairs (Sennrich et al., 2016) on bytes, as GPT-2 has them.

    Args:
      file: where the header comes from, for errors.
      header: of `read_header`.

    Raises:
      ValueError: another kind of tokenizer or of words, or lists that do not fit each other; names
        the file and the key. Also where the package tokenizers is not installed.
    """
    try:
        import tokenizers  # late: `make demo` does not install it
        from tokenizers import decoders, models, pre_tokenizers
    except ImportError:
        raise ValueError(
            f"tokens of {file} are made by tokenizers: {sys.executable} -m pip install tokenizers"
        ) from None
    read = _Reader(file, header.metadata)
    read.only("model", {"gpt2"})
    kind = read.only("pre", _WORDS)
    tokens, types = read.texts("tokens"), read("token_type", list)
    if not all(type(number) is int for number in types):
        raise read.error("token_type", f"= {shorten(types)} must be integers")
    if len(types) != len(tokens) or not tokens:
        raise read.error("token_type", f"has {len(types)} numbers, for {len(tokens)} tokens")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        twice = next(token for number, token in enumerate(tokens) if vocabulary[token] != number)
        raise read.error("tokens", f"has {shorten(twice)} twice")
    model = models.BPE(vocab=vocabulary, merges=_merges(read, vocabulary))
    tokenizer = tokenizers.Tokenizer(model)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if _WORDS[kind]:
        words = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    for number, add in (
        (_CONTROL, tokenizer.add_special_tokens),
        (_USER_DEFINED, tokenizer.add_tokens),
    ):
        whole = [token for token, type_ in zip(tokens, types, strict=True) if type_ == number]
        add([tokenizers.AddedToken(t, normalized=False, special=number == _CONTROL) for t in whole])
    _frame(read, tokenizer, tokens)
    ends = [read.id(f"{name}_token_id", len(tokens)) for name in ("eos", "eot")]
    stop = tuple(dict.fromkeys(end for end in ends if end is not None))
    return Tokenizer(tokenizer, stop, _unwritten(vocabulary))


def _unwritten(vocabulary: dict[str, int]) -> frozenset[int]:
    """Bytes without a token; one that cannot be printed stands in tokens as another letter."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    letters = {byte: chr(byte) for byte in printed}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return frozenset(byte for byte, letter in letters.items() if letter not in vocabulary)


class _Reader:
    """Values of the tokenizer's keys; errors name file and key."""

    def __init__(self, file: str | pathlib.Path, metadata: dict[str, Any]):
        self.file, self.metadata = file, metadata

    def error(self, key: str, text: str) -> ValueError:
        return ValueError(f"{self.file}: {_PREFIX}{key} {text}")

    def __call__(self, key: str, kind: type) -> Any:
        name = _PREFIX + key
        if name not in self.metadata:
            raise ValueError(f"{self.file} has no key {name!r}{near_misses(name, self.metadata)}")
        value = self.metadata[name]
        if type(value) is not kind:
            raise self.error(key, f"= {shorten(value)} is no {kind.__name__}")
        return value

    def only(self, key: str, known: Any) -> str:
        value = self(key, str)
        if value not in known:
            raise self.error(key, f"= {value!r} is not known here{near_misses(value, known)}")
        return value

    def texts(self, key: str) -> list[str]:
        values = self(key, list)
        if not all(isinstance(value, str) for value in values):
            raise self.error(key, f"= {shorten(values)} must be texts")
        return values

    def id(self, key: str, count: int) -> int | None:
        if _PREFIX + key not in self.metadata:
            return None
        value = self(key, int)
        if not 0 <= value < count:
            raise self.error(key, f"= {value} is no id of {count} tokens")
        return value

    def flag(self, key: str) -> bool:
        return _PREFIX + key in self.metadata and self(key, bool)


def _merges(read: _Reader, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for text in read.texts("merges"):
        first, _, second = text.partition(" ")
        if not {first, second, first + second} <= vocabulary.keys():
            raise read.error("merges", f"has {shorten(text)}, of which a part or all is no token")
        merges.append((first, second))
    return merges


def _frame(read: _Reader, tokenizer: Any, tokens: list[str]) -> None:
    """Has every text begin and end with the tokens that the file wants there."""
    from tokenizers import processors

    if read.flag("add_space_prefix"):
        raise read.error("add_space_prefix", "= True; only False is known here")
    frame = []
    for flag, key in (("add_bos_token", "bos_token_id"), ("add_eos_token", "eos_token_id")):
        number = read.id(key, len(tokens))
        if read.flag(flag) and number is None:
            raise read.error(flag, f"= True, and there is no {_PREFIX}{key}")
        frame.append([(tokens[number], number)] if read.flag(flag) and number is not None else [])
    if any(frame):
        begin, end = ([f"{token}:0" for token, _ in each] for each in frame)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A:0", *end], special_tokens=[*frame[0], *frame[1]]
        )
