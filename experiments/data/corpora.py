"""Texts for language models: to calibrate on, and others to be tested on."""

import ast
import pathlib
import sysconfig
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from experiments.data import handbook as debian_handbook
from experiments.data import tables
from experiments.data.titled_reviews import share_of
from experiments.registry import Registry

CORPORA: Registry[list[str]] = Registry("corpus")
HELD_OUT = 0.2
# Characters that a document of running text has at least: some 300 tokens.
_DOCUMENT = 1200
Encode = Callable[[str], Sequence[int] | np.ndarray]


@CORPORA.register("reviews")
def reviews() -> list[str]:
    """22,634 distinct reviews of clothes."""
    texts = tables.read(tables.folder("") / tables.REVIEWS, ["Review Text"])["Review Text"]
    return list(dict.fromkeys(text for text in texts if text))


@CORPORA.register("handbook")
def handbook() -> list[str]:
    """The Debian Administrator's Handbook."""
    return grouped(debian_handbook.paragraphs())


@CORPORA.register("docstrings")
def docstrings() -> list[str]:
    """What the modules of this Python's standard library say of themselves: no download."""
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (
        node
        for file in sorted(folder.glob("*.py"))
        for node in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(node, kinds)
    )
    return grouped(dict.fromkeys(filter(None, map(ast.get_docstring, nodes))))


def documents(name: str) -> list[str]:
    """The texts of a corpus.

    Args:
      name: of `CORPORA`, or a text file in UTF-8, whose paragraphs are apart by empty lines.

    Raises:
      ValueError: no such corpus and no such file, or one that is no text.
      DownloadError: it could not be fetched.
    """
    if name in CORPORA.names:
        return CORPORA.create(name)
    check_name(name)
    try:
        text = pathlib.Path(name).expanduser().read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no text in UTF-8: {error}") from error
    return grouped(part.strip() for part in text.split("\n\n"))


def check_name(name: str) -> None:
    """Raises ValueError unless a corpus or a file of that name exists."""
    if name not in CORPORA.names and not pathlib.Path(name).expanduser().is_file():
        raise ValueError(
            f"{name!r} is no corpus and no text file; {', '.join(CORPORA.names)} and notes.txt, "
            "a file of yours, would work"
        )


def grouped(paragraphs: Iterable[str]) -> list[str]:
    """Running text in documents of at least 1,200 characters; what is left joins the last."""
    found: list[str] = []
    for paragraph in filter(None, paragraphs):
        if found and len(found[-1]) < _DOCUMENT:
            found[-1] += f"\n\n{paragraph}"
        else:
            found.append(paragraph)
    if len(found) > 1 and len(found[-1]) < _DOCUMENT:
        last = found.pop()
        found[-1] += f"\n\n{last}"
    return found


def calibration(name: str, encode: Encode, count: int, length: int, seed: int) -> np.ndarray:
    """Windows of the documents that no test sees.

    Which documents those are follows from a hash of their texts alone: `HELD_OUT` of all are for
    the test. The rest stand in an order that follows from the seed, an empty line between two,
    and are cut every `length` tokens: the first `count` windows are these.

    Args:
      name: of a corpus, as `documents` takes it.
      encode: text -> token ids.
      count: how many windows.
      length: tokens a window.
      seed: of the order.

    Returns:
      (count, length) int32.

    Raises:
      ValueError: the documents have too few tokens; says how many.
    """
    texts = [text for text in documents(name) if share_of(text) >= HELD_OUT]
    return _windows(texts, encode, count, length, [seed, 0xCA11], f"calibration on {name}")


def test(name: str, encode: Encode, count: int, length: int) -> np.ndarray:
    """As `calibration`, of the documents held out; the same for every seed."""
    texts = [text for text in documents(name) if share_of(text) < HELD_OUT]
    return _windows(texts, encode, count, length, [0x7E57], f"the test on {name}")


def _windows(texts, encode: Encode, count: int, length: int, seed, what: str) -> np.ndarray:
    ids: list[int] = []
    for row in np.random.default_rng(seed).permutation(len(texts)):
        if len(ids) >= count * length:
            break
        ids.extend(encode(f"{texts[row]}\n\n"))
    if len(ids) < count * length:
        raise ValueError(
            f"{what} needs {count} windows of {length} tokens, {count * length:,}, and its "
            f"{len(texts):,} documents have {len(ids):,}; {len(ids) // length} windows, shorter "
            "ones or another corpus would work"
        )
    return np.array(ids[: count * length], np.int32).reshape(count, length)
