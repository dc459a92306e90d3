"""Texts to the tokens of a decoder, and back."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxsparse.text import shorten


class Tokenizer:
    """A tokenizer, and what ends a text.

    Args:
      tokenizer: of the package tokenizers.
      stop: the ids that end a text.
      unwritten: bytes that no token has, which would be lost without a word.

    Attributes:
      stop: as given.
      vocabulary: one more than the largest id.
    """

    def __init__(
        self, tokenizer: Any, stop: tuple[int, ...] = (), unwritten: frozenset[int] = frozenset()
    ):
        self._tokenizer, self.stop, self._unwritten = tokenizer, stop, unwritten
        self.vocabulary = 1 + max(tokenizer.get_vocab().values(), default=-1)

    def encode(self, text: str) -> np.ndarray:
        """(length,) int32 ids; names of special tokens in the text are these tokens.

        Raises:
          TypeError: no string.
          ValueError: a string with half of a surrogate pair, or a character with a byte that no
            token has.
        """
        if not isinstance(text, str):
            raise TypeError(f"{shorten(text)} is no string")
        try:
            written = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{shorten(text)} is no text: {error}") from error
        if self._unwritten.intersection(written):
            lost = [c for c in dict.fromkeys(text) if self._unwritten.intersection(c.encode())]
            raise ValueError(
                f"{shorten(text)}: no token has {shorten(lost)}; a text without would work"
            )
        return np.array(self._tokenizer.encode(text).ids, np.int32)

    def batch(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Prompts of different lengths in one array, as `generate` takes them.

        Args:
          texts: at least one, none of them empty.

        Returns:
          tokens (batch, length) int32, and padding (batch,) int32, how many of a row stand before
          its text.

        Raises:
          TypeError: a single string, or an element that is none.
          ValueError: no texts, or one without tokens.
        """
        if isinstance(texts, str | bytes):
            raise TypeError(f"texts = {shorten(texts)} is one text; [texts] would work")
        rows = [self.encode(text) for text in texts]
        if not rows or not all(len(row) for row in rows):
            raise ValueError(f"lengths {[len(row) for row in rows]}: every text needs a token")
        length = max(map(len, rows))
        tokens = np.zeros((len(rows), length), np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[length - len(ids) :] = ids
        return tokens, np.array([length - len(ids) for ids in rows], np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a row of ids, without special tokens.

        Raises:
          ValueError: an id that is none.
        """
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 1 or (ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary):
            raise ValueError(f"{shorten(ids.tolist())} is no row of ids below {self.vocabulary}")
        return self._tokenizer.decode(ids.tolist())
