"""The role card as one page: the table of heads, massive activations by layer and token, and the strongest edges."""

import html
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.colors import to_hex

from traceformer.analysis.massive import TIMES_MEDIAN, MassiveActivations
from traceformer.analysis.roles import Roles
from traceformer.figures.role_card import COLUMN_NAMES, colours_of
from traceformer.texts.shown import label, visible

__all__ = ["roles_html", "roles_page"]

_EDGES, _TOKENS = 12, 12
_STYLE = """<style>
.role-card {font: 14px/1.45 system-ui, sans-serif; max-width: 70rem; margin: auto}
.role-card h1 {font-size: 1.3rem; margin: .6rem 0 0} .role-card h2 {font-size: 1rem; margin: 1.4rem 0 .3rem}
.role-card p {margin: .3rem 0; opacity: .75} .role-card .scroll {overflow-x: auto}
.role-card table {border-collapse: collapse; font-variant-numeric: tabular-nums}
.role-card th {font-weight: 500; font-size: .78rem; vertical-align: bottom; padding: .2rem .45rem; white-space: pre}
.role-card td {padding: .1rem .45rem; text-align: right; border: 0} .role-card td.word {text-align: left}
.role-card tr.layer td, .role-card tr.layer th {border-top: 1px solid #888}
</style>"""


def roles_page(value: Roles) -> str:
    """Returns a page that stands by itself: no script, nothing from elsewhere."""
    title = html.escape(f"Heads of {value.about.model or value.about.source}")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    light = ' style="color:#222;background:#fff"'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body{light}>{roles_html(value)}</body></html>\n'


def roles_html(value: Roles) -> str:
    """Returns the card as a piece of HTML, its style with it; its text has the colour that is around it."""
    about = value.about
    counts = ", ".join(f"{examples} examples" for examples in about.examples.values())
    queries = ", ".join(f"{count} queries" for count in about.queries.values())
    parts = [
        f"<h1>What each head of {_said(about.model or about.source)} does</h1>",
        f"<p>{_said(', '.join(filter(None, (about.source, counts, queries))))}</p>",
        '<div class="scroll">',
        *_heads_table(value),
        "</div>",
        *(() if value.massive is None else _massive_tables(value.massive)),
        *_edges_table(value),
        *(f"<p>{_said(column)}: {_said(why)}</p>" for column, why in value.notes.items()),
    ]
    return f'{_STYLE}<div class="role-card">{"".join(parts)}</div>'


def _said(text: str) -> str:
    return html.escape(label(text))


def _heads_table(value: Roles) -> Iterator[str]:
    yield "<table><thead><tr><th>head</th><th>role</th>"
    yield "".join(f"<th>{html.escape(COLUMN_NAMES[column])}</th>" for column in value.shown)
    yield "</tr></thead><tbody>"
    scales = {column: colours_of(column, value.values[column]) for column in value.shown}
    for number, (row, name, role) in enumerate(zip(value.rows, value.names, value.roles, strict=True)):
        first = number == 0 or value.rows[number - 1].layer != row.layer
        yield f'<tr{" class=layer" if first else ""}><th>{_said(name)}</th><td class="word">{_said(role)}</td>'
        for column, (colours, span) in scales.items():
            each = float(value.values[column][number])
            if not np.isfinite(each):
                yield "<td></td>"
                continue
            red, green, blue, _ = colours(span(each))
            shade = "#fff" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "#222"
            text = f"{each:.1f}" if column.endswith("rank") else f"{each:.3f}"
            yield f'<td style="background:{to_hex((red, green, blue))};color:{shade}">{text}</td>'
        yield "</tr>"
    yield "</tbody></table>"


def _massive_tables(massive: MassiveActivations) -> Iterator[str]:
    yield "<h2>Massive activations</h2>"
    yield "<p>Entries of the residual stream, in medians of the sizes of all entries of their layer and text.</p>"
    over = [f"over {times:,}" for times in TIMES_MEDIAN]
    layers = zip(massive.layers, massive.shares.tolist(), massive.largest.tolist(), strict=True)
    rows = [(f"L{layer}", *(f"{share:.3g}" for share in shares), f"{largest:.1f}") for layer, shares, largest in layers]
    yield _table(("layer", *over, "largest"), rows)
    if massive.tokens:
        yield "<p></p>"
        tokens = [
            (visible(text) + ("  (first)" if first else ""), *(f"{count / entries:.3g}" for count in counts))
            for text, first, entries, counts in massive.tokens[:_TOKENS]
        ]
        yield _table(("token", *over), tokens)


def _edges_table(value: Roles) -> Iterator[str]:
    if value.circuits is None:
        return
    rows = [(*edge.names, edge.kind, f"{edge.score:.3f}") for edge in value.circuits.strongest(_EDGES)]
    yield "<h2>Strongest compositions, from weights</h2>"
    yield _table(("of", "with", "by", "score"), rows)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headers)
    lines = "".join(
        f'<tr><td class="word">{_said(first)}</td>' + "".join(f"<td>{_said(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
