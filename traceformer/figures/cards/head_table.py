"""The metrics of heads as a table with a bar in every cell, a row per head, which a click on a metric sorts.

Sorting is CSS alone: each row states its place by every metric, and the one that is chosen, a radio button in the
table's head, says in which order rows stand. Where a notebook is shown without styles, as on GitHub and in JupyterLab
before a notebook is trusted, this is a plain table by layer and head: what would not work there is `hidden`, and shown
by style.

The form around it keeps its buttons apart from those of other tables; `method=dialog` sends nothing when somebody
presses Enter.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from traceformer.analysis.head_metrics import HeadMetrics
from traceformer.analysis.heads import METRICS
from traceformer.figures.cards.look import card, said, shade
from traceformer.figures.metric_scales import in_words, short, tops
from traceformer.shapes import Float64, Int64

__all__ = ["head_table"]

_BYTES = 50_000  # of all rows
_STYLE = """\
.tf-card.tf-card .heads,.tf-card.tf-card .heads :is(thead,tbody){display:block}
.tf-card.tf-card .heads tbody{display:flex;flex-direction:column}
.tf-card.tf-card .heads tr{display:grid;align-items:end}
.tf-card.tf-card .heads :is(td,th){padding:1px 4px;min-width:0}
.tf-card.tf-card .heads thead :is(td,th){white-space:normal;opacity:1;border-bottom:1px solid rgba(128,128,128,.4)}
.tf-card.tf-card .heads tbody tr:hover{background:rgba(128,128,128,.16)!important}
.tf-card.tf-card .heads td{text-align:right;border:0 solid transparent;border-width:0 6px 1px 0;\
background-clip:padding-box;background-image:linear-gradient(90deg,BAR calc(var(--w)*1%),transparent 0)}
.tf-card.tf-card .heads label{display:block;cursor:pointer;opacity:.75;line-height:1.2}
.tf-card.tf-card .heads label:has(:checked){opacity:1;font-weight:600}
.tf-card.tf-card .heads label:hover{opacity:1}
.tf-card.tf-card .heads label:focus-within{outline:1px solid}
.tf-card.tf-card [hidden]{display:inline}
.tf-card.tf-card .heads input{position:absolute;opacity:0;width:1px;height:1px;margin:0}
""".replace("BAR", shade(0.42))


def head_table(metrics: HeadMetrics) -> str:
    """Returns the card of the metrics of some heads."""
    columns = {name: own for name, own in metrics.values.items() if np.isfinite(own).any()}
    places = {name: _places(own) for name, own in columns.items()}
    lines = _lines(metrics, columns, places)
    chosen = _largest(places, [len(line) for line in lines])
    cut = len(chosen) < len(lines)
    first = (
        f"{len(lines):,} heads"
        if not cut
        else f"the {len(chosen)} of {len(lines):,} heads that are largest in some metric"
    )
    about = metrics.about
    gaps = sorted({layer for layers in about.without.values() for layer in layers})
    without = f"no attention in {', '.join(f'L{layer}' for layer in gaps)}" if gaps else ""
    how = (f"{about.convention} convention" if about.convention else "", *_queries(metrics), without)
    told = ", ".join((first, *filter(None, how)))
    rows = "".join(lines[row] for row in chosen)
    return card(
        f"<p><b>{said(about.model or about.source)}</b> <span class=quiet>{told}</span></p>",
        f"<form method=dialog><table class=heads>{_head(columns)}<tbody>{rows}</tbody></table>"
        "<label hidden class=quiet><input type=checkbox class=up> smallest first</label></form>",
        "<p class=quiet><span hidden>A click on a metric sorts. </span>",
        "<code>to_frame()</code> has all heads. " if cut else "",
        "As a picture: <code>tf.figures.heads</code>.</p>",
        style=_STYLE + _orders(metrics, columns),
    )


def _queries(metrics: HeadMetrics) -> list[str]:
    counts = metrics.about.queries
    several = len(counts) > 1
    return [f"{count:,} queries{f' of {said(attention)}' if several else ''}" for attention, count in counts.items()]


def _places(values: Float64[np.ndarray, "row"]) -> Int64[np.ndarray, "row"]:
    """Each row's place from the largest value on, from 1; 0 where there is none."""
    order = np.argsort(-values, kind="stable")  # NaN comes last
    places = np.zeros(len(values), np.int64)
    places[order] = np.arange(1, len(values) + 1)
    return np.where(np.isfinite(values), places, 0)


def _lines(
    metrics: HeadMetrics,
    columns: Mapping[str, Float64[np.ndarray, "row"]],
    places: Mapping[str, Int64[np.ndarray, "row"]],
) -> list[str]:
    reach = tops(columns)
    lines: list[str] = []
    for row, name in enumerate(metrics.names):
        known = [(number, places[each][row]) for number, each in enumerate(columns) if places[each][row]]
        cells = (
            f"<td style=--w:{round(100 * max(own[row], 0) / reach[each])}>{short(float(own[row]))}"
            if np.isfinite(own[row])
            else "<td>"
            for each, own in columns.items()
        )
        order = ";".join(f"--{number}:{place}" for number, place in known)
        lines.append(f'<tr style="{order}"><th>{said(name)}{"".join(cells)}')
    return lines


def _largest(places: Mapping[str, Int64[np.ndarray, "row"]], sizes: Sequence[int]) -> list[int]:
    """The rows that there is room for, in their order: those of the best place in any metric."""
    if sum(sizes) <= _BYTES or not places:
        return list(range(len(sizes)))
    count = _BYTES // max(sizes)
    last = len(sizes) + 1
    best = np.min([np.where(each > 0, each, last) for each in places.values()], axis=0)
    return sorted(np.argsort(best, kind="stable")[:count].tolist())


def _head(columns: Mapping[str, Float64[np.ndarray, "row"]]) -> str:
    cells = (
        f'<th title="{escape(_meaning(name))}"><label><input hidden type=radio name=by value={number}>'
        f"{said(in_words(name))}</label>"
        for number, name in enumerate(columns)
    )
    first = "<th><label><input hidden type=radio name=by value=head checked>head</label>"
    return f"<thead><tr>{first}{''.join(cells)}</thead>"


def _meaning(name: str) -> str:
    return METRICS.get(name) or METRICS.get(name.rpartition("_")[0], "")


def _orders(metrics: HeadMetrics, columns: Mapping[str, Float64[np.ndarray, "row"]]) -> str:
    """The widths of the columns, and where rows stand when a metric is chosen: those without a number last."""
    longest = max((len(name) for name in metrics.names), default=4)
    widths = (
        f".tf-card.tf-card .heads tr{{grid-template-columns:{longest * 0.62 + 1:.1f}em repeat({len(columns)},5.6em)}}"
    )
    rules = [
        f"form:has([value='{number}']:checked) tr{{order:var(--{number},9999)}}"
        f"form:has([value='{number}']:checked):has(.up:checked) tr{{order:calc(-1*var(--{number},-9999))}}"
        for number in range(len(columns))
    ]
    return "\n".join((widths, *(f".tf-card {rule}" for rule in rules)))
