"""Which axes of which arrays are the same channels: terms and their unification.

Every axis is a term: an *atom* (channels of their own), a *product* of terms (an
axis that a reshape made of several, major to minor) or a *sum* of terms (an axis
that a concatenation made, one after the other). Terms are nodes of a union-find:
to unify two is to say that they index the same channels. Where one is built
otherwise than the other, the coarser is cut until both agree; what cannot be
made to agree is pinned, which means that its channels stay where they are.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, SupportsIndex

import numpy as np
from jaxtyping import Bool

from jaxsparse.graph.analysis.pieces import Cause, Factor, Piece, others

Kind = Literal["atom", "product", "sum"]

# A product that is cut in the middle of a factor becomes a sum with one term for
# every index of its major factor; past this many it is pinned.
MAX_COPIES = 256


class Terms:
    """The terms of one program."""

    def __init__(self):
        self._parent: list[int] = []
        self._size: list[int] = []
        self._kind: list[Kind] = []
        self._parts: list[tuple[int, ...]] = []
        self._cause: list[Cause | None] = []

    def atom(self, size: SupportsIndex) -> int:
        """A new axis, channels of its own."""
        return self._new(size, "atom", ())

    def product(self, terms: Sequence[int]) -> int:
        """The axis that a reshape makes of several, major to minor."""
        terms = [term for term in terms if self.size(term) != 1]
        if len(terms) == 1:
            return terms[0]
        size = math.prod(map(self.size, terms))
        return self._new(size, "product", tuple(terms)) if terms else self.atom(1)

    def sum(self, terms: Sequence[int]) -> int:
        """The axis that a concatenation makes of several."""
        terms = [term for term in terms if self.size(term)]
        if len(terms) == 1:
            return terms[0]
        return self._new(sum(map(self.size, terms)), "sum", tuple(terms))

    def size(self, term: int) -> int:
        """How many channels."""
        return self._size[term]

    def find(self, term: int) -> int:
        """The node that stands for all that a term is unified with."""
        while self._parent[term] != term:
            self._parent[term] = self._parent[self._parent[term]]
            term = self._parent[term]
        return term

    def pin(self, term: int, cause: Cause) -> None:
        """Says that these channels stay where they are."""
        waiting = [term]
        while waiting:
            term = self.find(waiting.pop())
            if self._cause[term] is None:
                self._cause[term] = cause
                waiting.extend(self._parts[term])

    def cause(self, term: int) -> Cause | None:
        """Why all channels of a term are pinned; None if some are free."""
        term = self.find(term)
        if self._cause[term] is None and self._parts[term]:
            causes = [self.cause(part) for part in self._parts[term]]
            if all(causes):
                self._cause[term] = causes[0]
        return self._cause[term]

    def unify(self, a: int, b: int, cause: Cause) -> None:
        """Says that two axes of one size index the same channels.

        Args:
          a, b: the terms.
          cause: of the pins, where they cannot be made to agree.
        """
        a, b = self.find(a), self.find(b)
        if a == b or self._size[a] == self._size[b] == 1:
            return
        known = self.cause(a) or self.cause(b)
        if known is None and self._size[a] != self._size[b]:
            known = cause
        if known is not None:
            self.pin(a, known)
            self.pin(b, known)
        elif "atom" not in (self._kind[a], self._kind[b]):
            kinds = {self._kind[a], self._kind[b]}
            if not self._align([a], [b], "product" if kinds == {"product"} else "sum", cause):
                self.pin(a, cause)
                self.pin(b, cause)
        if self._size[a] == self._size[b]:
            self._join(self.find(a), self.find(b))

    def pieces(self, term: int) -> list[Piece]:
        """The term as a list of pieces made of atoms; pinned terms count as atoms."""
        term = self.find(term)
        if self._cause[term] is not None or self._kind[term] == "atom":
            factor = Factor(term, self._size[term], 1, self._cause[term])
            return [Piece(0, (factor,) if factor.size != 1 else ())]
        parts = self._parts[term]
        found: list[Piece] = []
        if self._kind[term] == "sum":
            offset = 0
            for part in parts:
                found += [Piece(p.offset + offset, p.factors) for p in self.pieces(part)]
                offset += self._size[part]
            return found
        found, stride = [Piece(0, ())], 1
        for part in reversed(parts):
            major = [
                Piece(
                    p.offset * stride,
                    tuple(dataclasses.replace(f, stride=f.stride * stride) for f in p.factors),
                )
                for p in self.pieces(part)
            ]
            found = [
                Piece(p.offset + q.offset, p.factors + q.factors) for p in major for q in found
            ]
            stride *= self._size[part]
        return found

    def factors(self, terms: Iterable[int]) -> Iterator[Factor]:
        """The factors of all pieces of some terms."""
        for term in terms:
            for piece in self.pieces(term):
                yield from piece.factors

    def channels(
        self, term: int, positions: Bool[np.ndarray, " size"]
    ) -> Iterator[tuple[int, Bool[np.ndarray, " channels"]]]:
        """For every factor of every piece its atom, and of which channels a position is chosen."""
        for piece in self.pieces(term):
            grid = positions[piece.grid()]
            for i, factor in enumerate(piece.factors):
                yield factor.atom, np.asarray(grid.any(axis=others(i, grid.ndim)))

    def _new(self, size: SupportsIndex, kind: Kind, parts: tuple[int, ...]) -> int:
        self._parent.append(len(self._parent))
        self._size.append(int(size))
        self._kind.append(kind)
        self._parts.append(parts)
        self._cause.append(None)
        return len(self._parent) - 1

    def _join(self, a: int, b: int) -> None:
        """Makes one node of two; a sum, which is cut finest, stays."""
        if a == b:
            return
        order: list[Kind] = ["atom", "product", "sum"]
        a, b = sorted((a, b), key=lambda node: order.index(self._kind[node]))
        self._parent[a] = b

    def _align(self, left: list[int], right: list[int], kind: Kind, cause: Cause) -> bool:
        """Unifies two lists of terms, read as sums or as products, from the front."""
        left, right = left[::-1], right[::-1]  # stacks
        while left and right:
            if self._flatten(left, kind) or self._flatten(right, kind):
                continue
            a, b = self._size[left[-1]], self._size[right[-1]]
            if a == b:
                one, other = self.find(left.pop()), self.find(right.pop())
                # What is being taken apart is unified by its parts.
                self.unify(one, other, cause)
            else:
                big, small = (left, b) if a > b else (right, a)
                parts = self._cut(big.pop(), small, kind, cause)
                if parts is None:
                    return False
                big.extend(reversed(parts))
        return True

    def _flatten(self, stack: list[int], kind: Kind) -> bool:
        """Opens the top of a stack if it is a term of the kind in question."""
        top = stack[-1] = self.find(stack[-1])
        if self._kind[top] != kind or self._cause[top] is not None:
            return False
        stack[-1:] = reversed(self._parts[top])
        return True

    def _cut(self, term: int, first: int, kind: Kind, cause: Cause) -> Sequence[int] | None:
        """Takes `first` channels (or, of products, a major factor of it) off a term."""
        size, pinned = self._size[term], self._cause[term]
        if kind == "product":
            if size % first or (self._kind[term] == "sum" and pinned is None):
                return None
            parts = self.atom(first), self.atom(size // first)
        elif self._kind[term] == "product" and pinned is None:
            return self._distribute(term, first, cause)
        else:
            parts = self.atom(first), self.atom(size - first)
        if pinned is not None:
            for part in parts:
                self.pin(part, pinned)
        else:
            self._kind[term], self._parts[term] = kind, parts
        return parts

    def _distribute(self, term: int, first: int, cause: Cause) -> Sequence[int] | None:
        """A product as a sum, cut after `first` channels if that is possible."""
        major, *rest = self._parts[term]
        major, minor = self.find(major), self.product(rest)
        while self._kind[major] == "product":
            minor = self.product([*self._parts[major][1:], minor])
            major = self.find(self._parts[major][0])
        inner = self._size[minor]
        if self._kind[major] == "atom" and first % inner == 0:
            self._cut(major, first // inner, "sum", cause)
        if self._kind[major] == "sum":
            return [self.product([part, minor]) for part in self._parts[major]]
        if self._size[major] > MAX_COPIES:
            return None
        self.pin(major, cause)
        return [minor] * self._size[major]
