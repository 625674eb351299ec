"""Examples: which there are, and one's tokens."""

from collections.abc import Sequence
from typing import Any

from traceformer.store.run import Run
from traceformer.viewer.arrays import example_asked
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query
from traceformer.viewer.tokens import tokens_of

__all__ = ["example", "examples"]

Json = dict[str, Any]
_SNIPPET = 160  # characters of a text in a list
_MOST = 100  # examples in one answer


def examples(library: Library, query: Query) -> Json:
    """Returns examples in the data set's order: those whose text or id contains `find`, from the `from`-th on.

    Of a text the part is told that contains it.
    """
    name = query.text("run")
    run = library.run(name)
    wanted, first = query.text("find", "").casefold(), max(0, query.number("from", 0))
    found: Sequence[int] = range(run.n)
    if wanted:
        ids, texts = library.once(("texts", name, library.state(name)), lambda: (run.ids, _texts(run, None)))
        found = [
            row for row, told in enumerate(zip(ids, texts, strict=True)) if any(wanted in t.casefold() for t in told)
        ]
    shown = found[first : first + _MOST]
    return {
        "total": len(found),
        "first": first,
        "examples": [
            {
                "number": row,
                "id": run.example_id(row),
                "text": _part(text, wanted),
                "lengths": {stack: run.length(row, stack) for stack in run.layout.stacks},
            }
            for row, text in zip(shown, _texts(run, shown), strict=True)
        ],
    }


def example(library: Library, query: Query) -> Json:
    """Returns an example's tokens in each stack, and where a response begins."""
    run, row = example_asked(library, query)
    encodings = run.encodings(row)
    return {
        "number": row,
        "id": run.example_id(row),
        "text": run.text(row),
        "n_prompt": encodings.get("n_prompt"),
        "tokens": {stack: tokens_of(run, row, stack) for stack in run.layout.stacks},
    }


def _texts(run: Run, rows: Sequence[int] | None) -> list[str]:
    """The texts of some rows, or of all."""
    table = run.columns_of(["text"]) if rows is None else run.table_of(rows)
    if "text" not in table.column_names:
        return [""] * (run.n if rows is None else len(rows))
    return [text or "" for text in table.column("text").to_pylist()]


def _part(text: str, wanted: str) -> str:
    at = text.casefold().find(wanted)
    start = at - _SNIPPET // 4 if at > _SNIPPET // 2 else 0
    return ("…" if start else "") + text[start : start + _SNIPPET] + ("…" if start + _SNIPPET < len(text) else "")
