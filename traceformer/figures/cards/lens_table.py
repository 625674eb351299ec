"""The logit lens as a table: a row per layer, the last one on top; below them the tokens that were read."""

from collections.abc import Iterator, Sequence

import numpy as np

from traceformer.analysis.lens import Lens
from traceformer.figures.cards.look import MORE, card, said, spread, token

__all__ = ["lens_table"]

_CELLS = 1200
_MOST_LAYERS = 24
_LONGEST = 9  # characters of a token
_WIDE = 132  # characters that stand beside each other, the room between cells as two
_RED, _GREEN, _BLUE = MORE
_STYLE = f"""\
.tf-card.tf-card .lens :is(td,th){{padding:1px 3px;text-align:center;min-width:10px;border:1px solid transparent;\
background-clip:padding-box;font-family:ui-monospace,Menlo,Consolas,monospace;font-size:11px}}
.tf-card.tf-card .lens td{{background-color:rgba({_RED},{_GREEN},{_BLUE},calc(var(--p)*.85))}}
.tf-card.tf-card .lens .came{{border-color:#e07b00}}
.tf-card.tf-card .lens tfoot th{{border-top-color:rgba(128,128,128,.5);opacity:.85}}
"""


def lens_table(value: Lens) -> str:
    """Returns the card of a lens."""
    n_layers, n_positions = len(value.layers), len(value.positions)
    layers = spread(n_layers, _MOST_LAYERS)
    shown = min(n_positions, _CELLS // max(len(layers), 1))
    parts = [
        f"{len(layers)} of {n_layers} layers" if len(layers) < n_layers else "",
        f"the first {shown} of {n_positions} positions" if shown < n_positions else "",
    ]
    through = "" if value.translated is None else f" through the {said(str(value.translated))}"
    part = f" Shown: {', '.join(filter(None, parts))}." if any(parts) else ""
    read = f"{said(value.key)}{through}"
    return card(
        f"<p><b>Lens</b> of example {said(value.example_id)} <span class=quiet>{read}: the likeliest next "
        f"token after each layer, the stronger its colour the more probable, framed where it came.{part}</span></p>",
        *(_block(value, layers, positions) for positions in _blocks(value, layers, shown)),
        style=_STYLE,
    )


def _blocks(value: Lens, layers: Sequence[int], count: int) -> Iterator[range]:
    """Yields the positions that have room beside each other."""
    start = width = 0
    for position in range(count):
        texts = (value.names[int(value.top_ids[layer, position, 0])] for layer in layers)
        own = 2 + min(max(map(len, (value.tokens[position], *texts))), _LONGEST)
        if width + own > _WIDE:
            yield range(start, position)
            start, width = position, 0
        width += own
    if count > start:
        yield range(start, count)


def _block(value: Lens, layers: Sequence[int], positions: range) -> str:
    rows = (
        f"<tr><th>L{value.layers[layer]}" + "".join(_cell(value, layer, position) for position in positions)
        for layer in reversed(layers)
    )
    first, last = (value.positions[place] for place in (positions[0], positions[-1]))
    tokens = "".join(f"<th>{token(value.tokens[position], _LONGEST)}" for position in positions)
    place = f"{first}" if first == last else f"{first}–{last}"
    return f"<table class=lens><tbody>{''.join(rows)}</tbody><tfoot><tr><th>{place}{tokens}</tfoot></table>"


def _cell(value: Lens, layer: int, position: int) -> str:
    token_id = int(value.top_ids[layer, position, 0])
    probability = np.nan_to_num(float(value.top_probabilities[layer, position, 0]))
    came = " class=came" if token_id == value.targets[position] else ""
    return f"<td{came} style=--p:{probability:.2f}>{token(value.names[token_id], _LONGEST)}"
