"""Paths as a picture for papers: tokens from left to right as they led to the target, one ribbon lane per path.

1. Across layers a token's column is its layer, in a layer that looks ahead its distance from the target; else it is
   one more than that of the tokens that lead to it.
2. A lane is as wide as its edge's weight times its path's share among all paths; a token is as tall as its lanes.
3. In each column tokens are stacked by the ranks of the paths that run through them, the best on top.
4. An edge that skips a column has a place of its own there, so that no path is drawn through a token it does not visit.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline

from traceformer.analysis.paths.result import Paths, chain
from traceformer.analysis.paths.sankey import SankeyNode, path_weights
from traceformer.errors import check_is
from traceformer.figures.style import category, ink, placed, styled
from traceformer.texts.shown import label, visible

__all__ = ["paths_figure"]

_COLOURS = 7  # the hatch tells the rest
_HATCHES = ("", "//", "..", "xx", "\\\\")
_WIDTH = 7.0  # inches of the whole, more if columns need it
_COLUMN, _NODE_WIDTH = 0.95, 0.1  # inches; columns are wider where there are few
_STACK = 2.6  # inches of the column with the widest lanes
_LEAST = 0.012  # inches: no lane is so thin that it cannot be seen
_LETTERS = 0.07  # inches: a lane this wide has room for the letters of its weight
_GAP = 0.34  # inches between the tokens of a column: two lines of text
_MOST_WEIGHTS = 40  # links whose weight is written on them
_LONGEST_NAME = 14


class _Lane(NamedTuple):
    """One path's part of a link: from one token to the next, as wide as `width`."""

    beam: int
    source: str
    target: str
    width: float
    attention: float
    written: bool = True


class _Box(NamedTuple):
    x: float
    top: float
    height: float


@styled
def paths_figure(result: Paths, *, ax: Axes | None = None) -> Figure:
    """Returns the paths of a result as ribbons."""
    check_is(result, Paths, "what paths gave")
    nodes = {node.id: node for node in result.sankey.nodes}
    lanes = list(_lanes(result))
    columns = _columns(nodes, lanes, across=result.layer == "all")
    lanes, between = _through_columns(lanes, columns)
    columns |= between
    n_columns = max(columns.values(), default=0) + 1
    column = max(_COLUMN, (_WIDTH - _COLUMN) / max(n_columns - 1, 3))
    boxes = _boxes(lanes, columns, column)
    width = column * (n_columns - 1) + _COLUMN
    height = max((box.top + box.height for box in boxes.values()), default=0) + _GAP + 0.2
    # One unit is one inch, so that text keeps its distance whatever the number of tokens.
    below = 0.15 * len(result.beams) + 0.4
    if ax is None:
        figure = Figure(figsize=(max(width, _WIDTH), height + below + 0.3))
        axes = figure.add_axes((0, below / (height + below + 0.3), 1, height / (height + below + 0.3)))
        figure.text(0.02, 0.99, _title(result), fontsize=9, va="top")
    else:
        figure, axes = placed(ax, width, height)
        axes.set_title(_title(result), loc="left", fontsize=9)
    axes.set(xlim=(-0.45, max(width, _WIDTH) - 0.45), ylim=(-height + _GAP, _GAP))
    axes.set_axis_off()
    _draw_lanes(axes, lanes, boxes, _scale(lanes, columns), frozenset(between))
    for name, box in boxes.items():
        if name in between:
            continue
        axes.add_patch(Rectangle((box.x, -box.top - box.height), _NODE_WIDTH, box.height, color=ink(), lw=0))
        axes.text(box.x + _NODE_WIDTH / 2, -box.top + 0.02, _name(nodes[name]), ha="center", va="bottom", fontsize=7)
    if result.layer == "all":
        for number in range(n_columns):
            name = f"L{number - 1}" if number else "input"
            axes.text(number * column + _NODE_WIDTH / 2, -height + _GAP, name, ha="center", va="bottom", fontsize=7)
    handles = [Line2D([], [], color=category(rank), lw=5) for rank in range(len(result.beams))]
    labels = [f"{i + 1}   {beam.score_norm:.3f}   {label(chain(beam, most=10))}" for i, beam in enumerate(result.beams)]
    legend = {"title": "path, score", "alignment": "left", "title_fontsize": 7}
    if ax is None:
        figure.legend(handles, labels, loc="lower left", **legend)
    else:
        ax.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, 0), **legend)
    return figure


def _lanes(result: Paths) -> Iterator[_Lane]:
    shares = path_weights(result.beams)
    for link in result.sankey.links:
        for beam in link.beam_indices:
            yield _Lane(beam, link.source, link.target, shares[beam] * link.attention, link.attention)


def _through_columns(lanes: list[_Lane], columns: Mapping[str, int]) -> tuple[list[_Lane], dict[str, int]]:
    """Returns lanes that go from column to column, and the columns of the places between tokens that this needs."""
    stepwise: list[_Lane] = []
    between: dict[str, int] = {}
    for lane in lanes:
        stops = [lane.source]
        for column in range(columns[lane.source] + 1, columns[lane.target]):
            stops.append(f"{lane.source} to {lane.target} in {column}")
            between[stops[-1]] = column
        stops.append(lane.target)
        for source, target in pairwise(stops):
            stepwise.append(lane._replace(source=source, target=target, written=target == lane.target))
    return stepwise, between


def _columns(nodes: Mapping[str, SankeyNode], lanes: list[_Lane], *, across: bool) -> dict[str, int]:
    if across:
        return {name: node.layer for name, node in nodes.items()}
    steps = {name: node.step for name, node in nodes.items() if node.step is not None}
    if steps:
        return {name: max(steps.values()) - step for name, step in steps.items()}
    columns = dict.fromkeys(nodes, 0)
    # Links never turn back, so that as many rounds as there are tokens are enough.
    for _ in nodes:
        before = dict(columns)
        for lane in lanes:
            columns[lane.target] = max(columns[lane.target], columns[lane.source] + 1)
        if columns == before:
            break
    return columns


def _boxes(lanes: list[_Lane], columns: Mapping[str, int], column_width: float) -> dict[str, _Box]:
    """Returns where each token and each place between tokens stands, in inches; columns are `column_width` apart."""
    scale = _scale(lanes, columns)
    boxes: dict[str, _Box] = {}
    for column in set(columns.values()):
        top = 0.0
        for name in sorted((name for name in columns if columns[name] == column), key=lambda name: _rank(name, lanes)):
            height = max(scale * _sum(lanes, "source", name), scale * _sum(lanes, "target", name), 4 * _LEAST)
            boxes[name] = _Box(column * column_width, top, height)
            top += height + _GAP
    return boxes


def _scale(lanes: list[_Lane], columns: Mapping[str, int]) -> float:
    """Inches per unit of a lane's width: the column with the widest lanes is as high as it may be."""
    widest = 0.0
    for column in set(columns.values()):
        own = [name for name in columns if columns[name] == column]
        widest = max(widest, sum(max(_sum(lanes, "source", name), _sum(lanes, "target", name)) for name in own))
    return _STACK / widest if widest else 1.0


def _sum(lanes: list[_Lane], side: str, name: str) -> float:
    return sum(lane.width for lane in lanes if getattr(lane, side) == name)


def _rank(name: str, lanes: list[_Lane]) -> tuple[float, str]:
    """The mean rank of the paths through a token."""
    ranks = {lane.beam for lane in lanes if name in (lane.source, lane.target)}
    return sum(ranks) / max(len(ranks), 1), name


def _draw_lanes(
    axes: Axes, lanes: list[_Lane], boxes: Mapping[str, _Box], scale: float, between: frozenset[str]
) -> None:
    filled: dict[tuple[str, str], float] = {}
    links = {(lane.source, lane.target) for lane in lanes}
    written: set[tuple[str, str]] = set()
    for lane in sorted(lanes):
        width = max(lane.width * scale, _LEAST)
        starts = [
            filled.get((side, name), boxes[name].top) for side, name in (("out", lane.source), ("in", lane.target))
        ]
        filled["out", lane.source], filled["in", lane.target] = starts[0] + width, starts[1] + width
        x = (
            boxes[lane.source].x + _NODE_WIDTH / (2 if lane.source in between else 1),
            boxes[lane.target].x + (_NODE_WIDTH / 2 if lane.target in between else 0),
        )
        colour, hatch = category(lane.beam), _HATCHES[lane.beam // _COLOURS % len(_HATCHES)]
        outline = _ribbon(x, (-starts[0], -starts[1]), width)
        axes.add_patch(PathPatch(outline, facecolor=colour, alpha=0.75, lw=0, hatch=hatch))
        if lane.written and len(links) <= _MOST_WEIGHTS and (lane.source, lane.target) not in written:
            written.add((lane.source, lane.target))
            # Where it arrives, since no two lanes lie upon each other there.
            middle = -starts[1] - width / 2
            on = "black" if width > _LETTERS else ink()
            axes.text(x[1] - 0.03, middle, f"{lane.attention:.2f}", ha="right", va="center", fontsize=5.5, color=on)


def _ribbon(x: tuple[float, float], tops: tuple[float, float], width: float) -> Outline:
    """The outline of a band that leaves and arrives level."""
    (left, right), (here, there) = x, tops
    middle = (left + right) / 2
    corners = [(left, here), (middle, here), (middle, there), (right, there)]
    below = [(right, there - width), (middle, there - width), (middle, here - width), (left, here - width)]
    codes = [Outline.MOVETO, *[Outline.CURVE4] * 3, Outline.LINETO, *[Outline.CURVE4] * 3]
    return Outline(np.array([*corners, *below]), codes)


def _name(node: SankeyNode) -> str:
    token = visible(node.name)
    token = token if len(token) <= _LONGEST_NAME else f"{token[: _LONGEST_NAME - 1]}…"
    return f"{label(token)}\n{'source ' if node.stack == 'enc' else ''}{node.position}"


def _title(result: Paths) -> str:
    settings = result.settings
    how = {"mean": "mean of heads", "max": "strongest head of each edge", "none": "each head by itself"}
    heads = how.get(settings.get("agg_heads", ""), f"head {settings.get('agg_heads')}")
    layer = "all layers" if result.layer == "all" else f"layer {result.layer}"
    parts = [
        f"What led to {label(visible(result.tokens[result.target_pos]))} ({result.target_pos})",
        str(settings.get("model", "")),
        layer,
        heads,
        f"no attention in layers {', '.join(map(str, gaps))}" if (gaps := settings.get("without_attention")) else "",
    ]
    return "   ".join(part for part in parts if part)
