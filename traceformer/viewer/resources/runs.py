"""Which runs there are, and what one holds."""

from typing import Any

from traceformer.questions.heads import attention_name
from traceformer.store.names import public_name
from traceformer.store.run import Run
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query

__all__ = ["run", "runs"]

Json = dict[str, Any]


def runs(library: Library, query: Query) -> Json:
    """Returns the runs' names and what each says of itself, the newest first."""
    return {"runs": [_row(library, name) for name in library.names()]}


def run(library: Library, query: Query) -> Json:
    """Returns what the run of a name holds."""
    opened = library.run(query.text("run"))
    about = opened.about
    return {
        **_summary(opened),
        "name": query.text("run"),
        "stacks": {stack: about.dims_of(stack).to_json() for stack in opened.layout.stacks},
        "arrays": [
            {**spec.to_json(), "name": public_name(spec.key), "meaning": spec.site.meaning}
            for spec in opened.layout.arrays
        ],
        "attentions": [
            {
                "name": attention_name(spec.key),
                "stack": spec.key.stack,
                "key_stack": spec.key.key_stack,
                "layers": list(spec.layers),
                "heads": list(spec.heads),
                "n_layers": about.dims_of(spec.key.stack).n_layers,
                "triangle": opened.layout.is_triangle(spec),
            }
            for spec in opened.layout.arrays
            if spec.key.site == "attn_pattern"
        ],
        "settings": {
            name: value
            for name, value in {
                "model": about.model_and_adapter,
                "data set": about.dataset,
                "recorded": about.time,
                "numbers": opened.dtype,
                "edits": None if about.edits is None else len(about.edits),
            }.items()
            if value is not None
        },
    }


def _row(library: Library, name: str) -> Json:
    try:
        return {"name": name, "problem": "", **_summary(library.run(name))}
    except (ValueError, OSError) as error:  # CorruptRun and Unreadable, NotFound if it went meanwhile
        return {"name": name, "problem": str(error)}


def _summary(opened: Run) -> Json:
    return {
        "model": opened.about.model_and_adapter,
        "data_set": opened.about.dataset,
        "kind": opened.about.kind,
        "arch": opened.arch,
        "n_examples": opened.n,
        "finished": opened.finished,
    }
