"""Examples: which there are, and one's tokens."""

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
    texts = library.once(("texts", name, library.state(name)), lambda: _texts(run))
    wanted, first = query.text("find", "").casefold(), max(0, query.number("from", 0))
    found = [
        row
        for row, (name, text) in enumerate(zip(run.ids, texts, strict=True))
        if wanted in name.casefold() or wanted in text.casefold()
    ]
    return {
        "total": len(found),
        "first": first,
        "examples": [
            {
                "number": row,
                "id": run.ids[row],
                "text": _part(texts[row], wanted),
                "lengths": {stack: run.length(row, stack) for stack in run.layout.stacks},
            }
            for row in found[first : first + _MOST]
        ],
    }


def example(library: Library, query: Query) -> Json:
    """Returns an example's tokens in each stack, and where a response begins."""
    run, row = example_asked(library, query)
    encodings = run.encodings(row)
    return {
        "number": row,
        "id": run.ids[row],
        "text": run.text(row),
        "n_prompt": encodings.get("n_prompt"),
        "tokens": {stack: tokens_of(run, row, stack) for stack in run.layout.stacks},
    }


def _texts(run: Run) -> list[str]:
    if "text" not in run.table.column_names:
        return [""] * run.n
    return [text or "" for text in run.table.column("text").to_pylist()]


def _part(text: str, wanted: str) -> str:
    at = text.casefold().find(wanted)
    start = at - _SNIPPET // 4 if at > _SNIPPET // 2 else 0
    return ("…" if start else "") + text[start : start + _SNIPPET] + ("…" if start + _SNIPPET < len(text) else "")
