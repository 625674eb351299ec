"""Examples: which there are, and one's tokens."""

from typing import Any

from traceformer.viewer.arrays import example_asked
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query
from traceformer.viewer.tokens import tokens_of

__all__ = ["example", "examples"]

Json = dict[str, Any]
_SNIPPET = 160  # characters of a text in a list
_MOST = 200  # examples in one answer


def examples(library: Library, query: Query) -> Json:
    """Returns examples in the data set's order: those whose text or id contains `find`, from the `from`-th on."""
    run = library.run(query.text("run"))
    wanted, first = query.text("find", "").casefold(), query.number("from", 0)
    texts = run.table.column("text").to_pylist() if "text" in run.table.column_names else [None] * run.n
    found = [
        row
        for row, (name, text) in enumerate(zip(run.ids, texts, strict=True))
        if wanted in name.casefold() or wanted in (text or "").casefold()
    ]
    return {
        "total": len(found),
        "first": first,
        "examples": [
            {
                "number": row,
                "id": run.ids[row],
                "text": (texts[row] or "")[:_SNIPPET],
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
