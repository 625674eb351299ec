"""Projections at a glance: a curve per direction over the tokens, and the first of them on the text itself."""

from collections.abc import Iterator, Sequence

import numpy as np

from traceformer.analysis.projection import Projections, TextCurves
from traceformer.figures.cards.look import HUES, card, said, signed, spread, token

__all__ = ["trait_card"]

_MOST_PANELS = 6
_MOST_LINES = 6
_POINTS = 2000  # of all curves together
_MOST_TOKENS = 400
_WIDTH, _HEIGHT, _LEFT, _EDGE = 720, 120, 46, 8
_STYLE = """\
.tf-card.tf-card svg{display:block;width:100%;max-width:820px;height:auto;overflow:visible;margin:2px 0 8px}
.tf-card.tf-card svg text{fill:currentColor;font-size:10px;opacity:.75}
.tf-card.tf-card .text{max-width:820px;font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px;\
line-height:1.6;overflow-wrap:anywhere}
.tf-card.tf-card .text .begins{border-left:2px solid;margin-left:2px}
.tf-card.tf-card i{display:inline-block;width:14px;height:3px;vertical-align:middle;margin:0 4px 0 10px}
"""


def trait_card(value: Projections) -> str:
    """Returns the card of the projections of some examples."""
    panels = [(own, direction) for own in value.examples for direction in range(len(own.names))]
    shown = panels[:_MOST_PANELS]
    cut = f" Shown: {len(shown)} of {len(panels)} curves." if len(shown) < len(panels) else ""
    n = len(value.examples)
    told = f"{said(value.array)}, {n:,} example{'' if n == 1 else 's'}: projection of every token.{cut}"
    return card(
        f"<p><b>{said(value.run_name)}</b> <span class=quiet>{told}</span></p>",
        *(_panel(value, own, direction, _POINTS // len(shown)) for own, direction in shown),
        *(_on_the_text(value, *shown[0]) if shown else ()),
        style=_STYLE,
    )


def _panel(value: Projections, own: TextCurves, direction: int, points: int) -> str:
    layers = list(own.by_layer)
    chosen = [layers[number] for number in spread(len(layers), _MOST_LINES)]
    curves = {layer: own.by_layer[layer].values[:, direction] for layer in chosen}
    cut = f" ({len(chosen)} of {len(layers)} layers)" if len(chosen) < len(layers) else ""
    key = "".join(
        f'<i style="background:{HUES[number]}"></i>{"" if layer is None else f"L{layer}"}'
        for number, layer in enumerate(chosen)
    )
    thresholds = [value.threshold(direction, layer) for layer in chosen]
    return (
        f"<p>{said(own.names[direction])} <span class=quiet>example {said(own.example_id)}{cut}</span>{key}</p>"
        + _drawing(list(curves.values()), thresholds, own.n_prompt, points // max(len(chosen), 1))
    )


def _drawing(
    curves: Sequence[np.ndarray], thresholds: Sequence[float | None], n_prompt: int | None, points: int
) -> str:
    """The curves over the tokens as SVG: zero as a line, thresholds dotted, dashed where the response begins."""
    known = np.concatenate([*curves, [number for number in thresholds if number is not None], [0.0]])
    known = known[np.isfinite(known)]
    low, high = float(known.min()), float(known.max())
    if low == high:
        low, high = low - 1, high + 1
    count = max(len(curves[0]), 1)

    def across(place: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _EDGE) * (place / max(count - 1, 1))

    def down(number: float) -> float:
        return _EDGE + (_HEIGHT - 2 * _EDGE) * (high - number) / (high - low)

    def level(number: float, look: str) -> str:
        return f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{down(number):.1f}" y2="{down(number):.1f}" {look}/>'

    parts = [level(0, 'stroke="currentColor" stroke-opacity=".35"')]
    for number in dict.fromkeys((high, 0.0, low)):
        parts.append(f'<text x="{_LEFT - 6}" y="{down(number) + 3:.1f}" text-anchor="end">{number:.3g}</text>')
    for hue, threshold in zip(HUES, thresholds, strict=False):
        if threshold is not None:
            parts.append(level(threshold, f'stroke="{hue}" stroke-dasharray="2 3"'))
    if n_prompt is not None:
        x = f"{across(n_prompt - 0.5):.1f}"
        dashed = 'stroke="currentColor" stroke-dasharray="5 3" stroke-opacity=".6"'
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="0" y2="{_HEIGHT}" {dashed}/><text x="{x}" dx="4" y="8">response</text>'
        )
    for hue, curve in zip(HUES, curves, strict=False):
        for line in _lines(curve, points):
            line = " ".join(f"{across(place):.1f},{down(float(curve[place])):.1f}" for place in line)
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{hue}" stroke-width="1.3" stroke-linecap="round"/>'
            )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="curve">{"".join(parts)}</svg>'


def _lines(curve: np.ndarray, points: int) -> Iterator[list[int]]:
    """Yields the tokens of each piece of a curve that has numbers; of a long one the lowest and highest of each part.

    Where there are more gaps than points, it is drawn over them.
    """
    places = np.flatnonzero(np.isfinite(curve))
    pieces = [piece for piece in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(piece)]
    for piece in pieces if len(pieces) <= points // 2 else [places]:
        room = max(points * len(piece) // len(places), 2)
        if len(piece) > room:
            parts = np.array_split(piece, room // 2)
            piece = np.unique([part[end(curve[part])] for part in parts for end in (np.argmin, np.argmax)])
        # A line of one point would not be seen.
        yield piece.tolist() if len(piece) > 1 else [*piece.tolist(), *piece.tolist()]


def _on_the_text(value: Projections, own: TextCurves, direction: int) -> Iterator[str]:
    """Yields the tokens, each on the colour of its projection."""
    layer, *_ = own.by_layer
    numbers, threshold = own.by_layer[layer].values[:, direction], value.threshold(direction, layer)
    centre = threshold or 0.0
    reach = float(np.nanmax(np.abs(numbers - centre), initial=0)) or 1.0
    where = "the threshold" if threshold is not None else "zero"
    of = "" if layer is None else f" in L{layer}"
    cut = f", its first {_MOST_TOKENS} of {len(own.tokens)} tokens" if len(own.tokens) > _MOST_TOKENS else ""
    yield f"<p class=quiet>{said(own.names[direction])}{of} on the text{cut}: red above {where}, blue below</p>"
    tokens = (
        f"<span{' class=begins' if position == own.n_prompt else ''} "
        f'style="background:{signed(0.8 * (float(number) - centre) / reach)}">{token(text)}</span>'
        + ("<br>" if text.endswith("\n") else "")
        for position, (text, number) in enumerate(zip(own.tokens[:_MOST_TOKENS], numbers, strict=False))
    )
    yield f"<div class=text>{''.join(tokens)}</div>"
