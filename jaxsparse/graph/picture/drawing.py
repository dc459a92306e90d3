"""Boxes and arrows: layers by igraph, drawn with matplotlib, folded to a page."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

# Inches.
LINE, LETTER, PADDING = 0.135, 0.066, 0.14
LAYER_GAP, BOX_GAP, FRAME, TITLE, COLUMN_GAP = 0.2, 0.2, 0.1, 0.2, 0.7
FONT = 7.5
ASPECT = 1.5  # width by height that many layers are folded to
INK, FRAME_COLOR = "#555555", "#8894a8"


@dataclasses.dataclass(frozen=True)
class Box:
    """Lines of text; the first is bold. `inputs` are the boxes that arrows come from."""

    lines: Sequence[str]
    color: str
    inputs: Sequence[int]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        width = max(map(len, self.lines), default=1) * LETTER + PADDING
        return width, len(self.lines) * LINE + PADDING / 2


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame around the boxes from first to last."""

    first: int
    last: int
    title: str


def draw(
    boxes: Sequence[Box],
    frames: Sequence[Frame],
    legend: Sequence[tuple[str, str]],
    path: pathlib.Path,
) -> None:
    """Writes the picture in the format of the path's suffix.

    Raises:
      ModuleNotFoundError: without igraph or matplotlib.
    """
    try:
        import igraph  # noqa: F401
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.patches import FancyBboxPatch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'plot: pictures need {error.name}: pip install "jaxsparse[plot]" would work, so '
            "would a path that ends in .txt"
        ) from error
    page = _Page(boxes, frames)
    height, width = page.height + 0.25 * len(legend) + 0.5, max(page.width, 5.0)
    with mpl.rc_context({"svg.hashsalt": "jaxsparse", "font.family": "DejaVu Sans"}):
        figure = Figure((width + 0.4, height + 0.2))
        axes: Any = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-0.2, width + 0.2), ylim=(height, -0.2))
        axes.axis("off")

        def patch(x, y, w, h, color, edge, line):
            style = "round,pad=0,rounding_size=0.05"
            options = {"facecolor": color, "edgecolor": edge, "linewidth": line}
            axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, **options))

        for frame, (left, top, right, bottom) in zip(frames, page.frames, strict=True):
            patch(left, top, right - left, bottom - top, "#f3f5f9", FRAME_COLOR, 0.8)
            options = {"fontsize": FONT, "color": "#33415c", "weight": "bold", "va": "top"}
            axes.text(left + 0.06, top + 0.05, frame.title, **options)
        for points in page.edges:
            arrow = {"arrowstyle": "-|>", "color": INK, "lw": 0.7, "shrinkA": 0, "shrinkB": 0}
            arrow["mutation_scale"] = 6
            axes.plot(*np.transpose(points), color=INK, linewidth=0.7, solid_joinstyle="round")
            axes.annotate("", points[-1], points[-2], arrowprops=arrow)
        for box, (x, y) in zip(boxes, page.centers, strict=True):
            w, h = box.size
            patch(x - w / 2, y - h / 2, w, h, box.color, INK, 0.6)
            for line, text in enumerate(box.lines):
                at = y + (line - (len(box.lines) - 1) / 2) * LINE
                weight = "bold" if line == 0 else "normal"
                axes.text(x, at, text, fontsize=FONT, weight=weight, ha="center", va="center")
        for line, (color, text) in enumerate(legend):
            y = page.height + 0.25 * line + 0.4
            patch(0, y, 0.3, 0.16, color, INK, 0.6)
            axes.text(0.4, y + 0.08, text, fontsize=FONT, va="center")
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
        figure.savefig(path, dpi=150, metadata=metadata)


class _Page:
    """Where everything goes: centres of boxes, edges as lines, frames.

    Edges that pass layers by get a point in each, so that the layout keeps them clear
    of boxes. Layers run down a column; of many layers columns are made, at places where
    few edges cross.
    """

    def __init__(self, boxes: Sequence[Box], frames: Sequence[Frame]):
        layer = _layers(boxes)
        chains = _chains(boxes, layer)  # extends `layer` by the points of long edges
        self._layer, self._sizes = layer, [box.size for box in boxes]
        self._sizes += [(0.0, 0.0)] * (len(layer) - len(boxes))
        self._x = self._across(chains, len(boxes))
        self._measure(frames, len(boxes))
        self._inside = [_inside(frame, chains) for frame in frames]
        self._column = self._fold(chains, frames)
        self._gutters = self._spread(frames)
        self.height = float(np.max(self._tops + self._heights)) + FRAME
        middle = self._tops + self._heights / 2
        self.centers = [(self._x[i], middle[layer[i]]) for i in range(len(boxes))]
        self.edges = [self._route(chain, bundle) for bundle, chain in enumerate(chains)]
        self.frames = [self._around(f, i) for f, i in zip(frames, self._inside, strict=True)]

    def _across(self, chains: Sequence[Sequence[int]], boxes: int) -> Float[np.ndarray, "v"]:
        """Horizontal places: igraph's, moved apart by the widths of the boxes."""
        import igraph

        graph = igraph.Graph(len(self._layer), directed=True)
        graph.add_edges([pair for chain in chains for pair in itertools.pairwise(chain)])
        layout = graph.layout_sugiyama(layers=self._layer, maxiter=500)
        wanted = 1.3 * np.array(layout.coords)[:, 0]
        x = wanted.copy()
        for layer in range(max(self._layer) + 1):
            row = [v for v in range(len(x)) if self._layer[v] == layer]
            row.sort(key=lambda v: wanted[v])
            for left, right in itertools.pairwise(row):
                apart = (self._sizes[left][0] + self._sizes[right][0]) / 2 + BOX_GAP
                x[right] = max(wanted[right], x[left] + apart)
            real = [v for v in row if v < boxes]
            x[row] += np.mean(wanted[real] - x[real])
        last = {self._layer[v]: v for v in np.argsort(x, kind="stable").tolist()}
        for chain in chains:  # what passes by on the right goes straight
            between = chain[1:-1]
            if between and all(last[self._layer[v]] == v for v in between):
                x[between] = np.max(x[between])
        return x

    def _measure(self, frames: Sequence[Frame], boxes: int) -> None:
        """Tops and heights of the layers, one below the other."""
        count = max(self._layer) + 1
        self._heights = np.zeros(count)
        for vertex in range(boxes):
            at = self._layer[vertex]
            self._heights[at] = max(self._heights[at], self._sizes[vertex][1])
        before = np.full(count, LAYER_GAP)
        for frame in frames:
            first, last = self._span(frame)
            before[first] += TITLE + FRAME
            if last + 1 < count:
                before[last + 1] += FRAME
        self._before = before
        self._tops = np.cumsum(before + self._heights) - self._heights

    def _span(self, frame: Frame) -> tuple[int, int]:
        layers = [self._layer[v] for v in range(frame.first, frame.last + 1)]
        return min(layers), max(layers)

    def _fold(
        self, chains: Sequence[Sequence[int]], frames: Sequence[Frame]
    ) -> Int[np.ndarray, "layers"]:
        """The column of every layer; tops become those within the column."""
        count, height = len(self._tops), float(self._tops[-1] + self._heights[-1])
        width = float(np.ptp(self._x)) + 1.0 + COLUMN_GAP
        columns = max(1, round(math.sqrt(ASPECT * height / width)))
        cost = np.zeros(count)  # of a column that begins with this layer
        for chain in chains:
            for vertex in chain[1:]:
                cost[self._layer[vertex]] += 0.1
        for frame in frames:
            first, last = self._span(frame)
            cost[first + 1 : last + 1] += 10
        starts = [0]
        for part in range(1, columns):
            far = np.abs(self._tops / height - part / columns)
            far[: starts[-1] + 1] = np.inf
            if np.min(cost + far) < 10:
                starts.append(int(np.argmin(cost + far)))
        column = np.zeros(count, int)
        for start in starts[1:]:
            column[start:] += 1
        for start in starts:
            same = column == column[start]
            self._tops[same] -= self._tops[start] - self._before[start]
        return column

    def _spread(self, frames: Sequence[Frame]) -> list[float]:
        """Sets columns side by side; returns the middle of the gap before each."""
        column = self._column[self._layer]
        halves = np.array([width / 2 for width, _ in self._sizes])
        left, right = self._x - halves, self._x + halves
        gutters, at = [], 0.0
        for number in range(int(self._column[-1]) + 1):
            edges = [self._around(f, i)[::2] for f, i in zip(frames, self._inside, strict=True)]
            framed = [e for e, f in zip(edges, frames, strict=True) if column[f.first] == number]
            low = min([np.min(left[column == number]), *(e[0] for e in framed)])
            high = max([np.max(right[column == number]), *(e[1] for e in framed)])
            self._x = np.where(column == number, self._x + at - low, self._x)
            gutters.append(at - COLUMN_GAP / 2)
            at += float(high - low) + COLUMN_GAP
        self.width = at - COLUMN_GAP
        return gutters

    def _route(self, chain: Sequence[int], bundle: int) -> list[tuple[float, float]]:
        """A line through the points of an edge, from a box's bottom to another's top."""
        points: list[tuple[float, float]] = []
        before = self._layer[chain[0]]
        for vertex in chain:
            layer = self._layer[vertex]
            x, top, height = self._x[vertex], self._tops[layer], self._heights[layer]
            end = vertex in (chain[0], chain[-1])
            inset = (height - self._sizes[vertex][1]) / 2 if end else 0
            if self._column[layer] != self._column[before]:
                turn = 0.05 * (bundle % 5)
                gutter = self._gutters[self._column[layer]] + turn
                under = self._tops[before] + self._heights[before] + 0.15 + turn
                over = top - self._before[layer] + turn
                points += [(points[-1][0], under), (gutter, under), (gutter, over), (x, over)]
            if vertex != chain[0]:
                points.append((x, top + inset))
            if vertex != chain[-1]:
                points.append((x, top + height - inset))
            before = layer
        return points

    def _around(self, frame: Frame, inside: Sequence[int]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a frame."""
        x = [(self._x[v], self._sizes[v][0] / 2) for v in inside]
        first, last = self._span(frame)
        left, right = min(a - h for a, h in x) - FRAME, max(a + h for a, h in x) + FRAME
        right = max(right, left + len(frame.title) * LETTER + PADDING)
        bottom = self._tops[last] + self._heights[last] + FRAME
        return left, self._tops[first] - FRAME / 2 - TITLE, right, bottom


def _inside(frame: Frame, chains: Sequence[Sequence[int]]) -> list[int]:
    """The boxes of a frame, and the points of edges between them."""
    boxes = range(frame.first, frame.last + 1)
    passing = [v for chain in chains if {chain[0], chain[-1]} <= set(boxes) for v in chain[1:-1]]
    return [*boxes, *passing]


def _layers(boxes: Sequence[Box]) -> list[int]:
    """The longest way from a box without inputs."""
    layer: list[int] = []
    for box in boxes:
        layer.append(1 + max((layer[i] for i in box.inputs), default=-1))
    return layer


def _chains(boxes: Sequence[Box], layer: list[int]) -> list[list[int]]:
    """Every edge as its vertices, one a layer; those between its ends are new."""
    chains = []
    for target, box in enumerate(boxes):
        for source in box.inputs:
            between = range(layer[source] + 1, layer[target])
            chains.append([source, *range(len(layer), len(layer) + len(between)), target])
            layer.extend(between)
    return chains
