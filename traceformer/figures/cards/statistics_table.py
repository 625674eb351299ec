"""The statistics of a run: how far every head spreads its attention, how large activations are, what logits expect."""

from collections.abc import Iterator

import numpy as np

from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.run_statistics import AttentionStatistics, RunStatistics
from traceformer.figures.cards.look import card, said, shade, spread, table

__all__ = ["statistics_table"]

_MOST_LAYERS, _MOST_HEADS = 24, 20
_MOST_GRIDS = 3
_MOST_ROWS = 100
_STYLE = """\
.tf-card.tf-card .grid :is(td,th){padding:1px 5px;text-align:center;border-right:1px solid transparent;\
background-clip:padding-box}
"""


def statistics_table(value: RunStatistics) -> str:
    """Returns the card of the statistics of a run."""
    n = len(value.example_ids)
    told = f"{n:,} example{'' if n == 1 else 's'}, {value.convention} convention"
    return card(
        f"<p><b>{said(value.source)}</b> <span class=quiet>{told}</span></p>",
        *(_entropies(own) for own in value.attention[:_MOST_GRIDS]),
        *_activations(value),
        *_logits(value),
        *([f"<p class=quiet>Left out: {said(', '.join(value.left_out))}.</p>"] if value.left_out else ()),
        style=_STYLE,
    )


def _entropies(own: AttentionStatistics) -> str:
    numbers = own.entropy
    layers, heads = spread(len(own.layers), _MOST_LAYERS), spread(len(own.heads), _MOST_HEADS)
    top = float(np.nanmax(numbers, initial=0)) or 1.0
    lines = (
        f"<tr><th>L{own.layers[layer]}" + "".join(_cell(float(numbers[layer, head]), top) for head in heads)
        for layer in layers
    )
    head = "".join(f"<th>H{own.heads[number]}" for number in heads)
    cut = len(layers) * len(heads) < numbers.size
    part = (
        f" {len(layers)} of {len(own.layers)} layers and {len(heads)} of {len(own.heads)} heads are shown."
        if cut
        else ""
    )
    return (
        f"<p>{said(own.key)}: mean entropy of where each head looks, in nats.{part}</p>"
        f"<table class=grid><thead><tr><th>{head}</thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _cell(value: float, top: float) -> str:
    return f'<td style="background-color:{shade(0.8 * max(value, 0) / top)}">{_number(value)}'


def _activations(value: RunStatistics) -> Iterator[str]:
    rules = CONVENTIONS[value.convention]
    rows = [
        (said(each.key), "" if layer is None else f"L{layer}", own)
        for each in value.activations
        for layer, own in zip(each.layers or (None,), each.by_layer, strict=True)
    ]
    if not rows:
        return
    shown = spread(len(rows), _MOST_ROWS)
    cells = (
        (key, layer, f"{own.count:,}", *map(_number, (own.mean, own.std, own.min, own.max, own.sparsity)))
        for key, layer, own in (rows[number] for number in shown)
    )
    heads = ("array", "layer", "numbers", "mean", "std", "min", "max", said(rules.value_sparsity.replace("_", " < ")))
    yield table(heads, cells, numeric=range(2, 8))
    if len(shown) < len(rows):
        yield f"<p class=quiet>{len(shown)} of {len(rows)} layers of arrays are shown.</p>"


def _logits(value: RunStatistics) -> Iterator[str]:
    rows = [
        (
            *(said(each.key), f"{each.positions:,}", _number(each.entropy), f"{each.targets:,}"),
            *map(_number, (each.target_probability, each.target_first, each.perplexity)),
        )
        for each in value.logits
    ]
    if rows:
        heads = (
            "array",
            "positions",
            "entropy (nats)",
            "targets",
            "their probability",
            "likeliest",
            "perplexity",
        )
        yield table(heads, rows, numeric=range(1, 7))


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "–"
