"""The kinds of edits, as a user writes them: `tf.edits`.

    with tf.edit(model, tf.edits.zero("z", layer=2, head=3), tf.edits.add("resid_post", 4, direction, scale=8)):
        run = tf.record(model, texts)

Of each: `layer` and `head` are the model's own numbers, one, several or all (None); `position` is as in `positions`: a
number, a slice, several, a mask, "last", "prompt", "response" or a word of the text; `example` counts the data set's
texts, or the rows of a batch that you run yourself; `stack` is "dec" where a model has both; `attention` is "cross" for
cross-attention.

What is edited is what `tf.record` would show of the site. Edits of one place act in the order that they were given, and
edits of other places on what comes of those before them in the pass.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from traceformer.capture.edits.changes import (
    Add,
    Change,
    Mean,
    Patch,
    ProjectOut,
    Resample,
    Scale,
    Where,
    as_direction,
    zeros,
)
from traceformer.capture.edits.positions import Position, as_positions, told
from traceformer.errors import SelectionError, UsageError, check_is, check_number, check_whole
from traceformer.sites import SITES, ArrayKey, Attention, Numbers, Stack, as_indices, expand_sites
from traceformer.store.run import Run

__all__ = ["Edit", "add", "cut", "function", "mean", "patch", "project_out", "resample", "scale", "zero"]

Examples: TypeAlias = int | Sequence[int] | None

_RUN = "a run that record or open_run gave"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Edit:
    """What is done to a site's numbers, and to which of them.

    Attributes:
        kind: The name of the function that made it.
        site: The site.
        change: What is done.
        layers, heads, examples: Which; all for None.
        position: Which tokens: of rows or, of patterns, of queries.
        stack, attention: Where a model has the site several times.
        keys: Which keys of a pattern.
        settings: What a run's metadata says of it beside that.
        is_told: Whether these settings say all that decides its numbers.
    """

    kind: str
    site: str
    change: Change | None
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    position: Position
    examples: tuple[int, ...] | None
    stack: Stack | None
    attention: Attention
    keys: Position = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_told: bool = True

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.to_json().items() if name != "kind")
        return f"edits.{self.kind}({settings})"

    def to_json(self) -> dict[str, Any]:
        """Returns what a run's metadata says of it; arrays as the digest of their numbers."""
        place = {"layers": self.layers, "heads": self.heads, "examples": self.examples, "stack": self.stack}
        return {
            "kind": self.kind,
            "site": self.site,
            **{
                name: list(value) if isinstance(value, tuple) else value
                for name, value in place.items()
                if value is not None
            },
            **({} if self.position is None else {"position": told(self.position)}),
            **({"attention": self.attention} if self.attention == "cross" else {}),
            **({} if self.keys is None else {"key": told(self.keys)}),
            **self.settings,
        }


def zero(
    site: str,
    layer: Numbers = None,
    head: Numbers = None,
    position: Position = None,
    *,
    example: Examples = None,
    stack: Stack | None = None,
    attention: Attention = "self",
) -> Edit:
    """Returns the edit that puts zeros there."""
    return _edit("zero", site, zeros, layer, head, position, example, stack, attention)


def scale(
    site: str,
    layer: Numbers,
    by: float,
    head: Numbers = None,
    position: Position = None,
    *,
    example: Examples = None,
    stack: Stack | None = None,
    attention: Attention = "self",
) -> Edit:
    """Returns the edit that multiplies by a number."""
    check_number("by", by)
    return _edit("scale", site, Scale(float(by)), layer, head, position, example, stack, attention, {"by": float(by)})


def add(
    site: str,
    layer: Numbers,
    direction: Any,
    scale: float = 1.0,
    head: Numbers = None,
    position: Position = None,
    *,
    example: Examples = None,
    stack: Stack | None = None,
    attention: Attention = "self",
) -> Edit:
    """Returns the edit that adds `scale` times a vector, as it is, to every row: of the site's width, or one a head."""
    check_number("scale", scale)
    vector, scale = as_direction(direction), float(scale)
    settings = {"direction": _digest(vector), "scale": scale}
    return _edit("add", site, Add(vector, scale), layer, head, position, example, stack, attention, settings)


def project_out(
    site: str,
    layer: Numbers,
    directions: Any,
    head: Numbers = None,
    position: Position = None,
    *,
    example: Examples = None,
    stack: Stack | None = None,
    attention: Attention = "self",
) -> Edit:
    """Returns the edit that takes out what lies along a direction, or in the space of several (direction, width)."""
    vectors = np.atleast_2d(as_direction(directions, "directions"))
    _, sizes, rows = np.linalg.svd(vectors, full_matrices=False)
    basis = rows[sizes > sizes.max() * 1e-10] if sizes.max() > 0 else rows[:0]
    if not len(basis):
        raise UsageError("`directions` are zero", hint="a direction that points somewhere")
    settings = {"directions": _digest(vectors)}
    return _edit("project_out", site, ProjectOut(basis), layer, head, position, example, stack, attention, settings)


def patch(
    site: str,
    layer: Numbers,
    source: Any,
    head: Numbers = None,
    position: Position = None,
    *,
    source_example: int | str = 0,
    source_position: int | Sequence[int] | None = None,
    example: Examples = None,
    stack: Stack | None = None,
    attention: Attention = "self",
) -> Edit:
    """Returns the edit that puts other numbers there: an array's, or what a run of the same model holds of the place.

    Args:
        site: The site.
        layer: Which layers.
        source: An array, ([head,] position, width) of what is edited or one row for all positions; or a run.
        head: Which heads.
        position: Which tokens.
        source_example: Which example of the run.
        source_position: Its positions, in the order of those that are edited; the same ones for None.
        example: Which texts are edited.
        stack: Which stack.
        attention: Which attention.
    """
    if isinstance(source, Run):
        source.example_id(source_example)  # refuses one that is not there
        origin: dict[str, Any] = {**_named(source, site, stack, attention), "source_example": source_example}
        change = Patch(source, source_example, as_indices(source_position))
    else:
        values = as_direction(source, "source")
        origin, change = {"values": _digest(values)}, Patch(values)
    if source_position is not None:
        origin["source_position"] = list(as_indices(source_position) or ())
    return _edit("patch", site, change, layer, head, position, example, stack, attention, origin)


def mean(
    site: str,
    layer: Numbers,
    run: Run,
    head: Numbers = None,
    position: Position = None,
    *,
    per_position: bool = False,
    example: Examples = None,
    stack: Stack | None = None,
    attention: Attention = "self",
) -> Edit:
    """Returns the edit that puts a run's mean there: over all its tokens, or `per_position` over its examples."""
    check_is(run, Run, _RUN)
    settings = {**_named(run, site, stack, attention), "per_position": per_position}
    return _edit("mean", site, Mean(run, per_position, {}), layer, head, position, example, stack, attention, settings)


def resample(
    site: str,
    layer: Numbers,
    run: Run,
    head: Numbers = None,
    position: Position = None,
    *,
    seed: int = 0,
    example: Examples = None,
    stack: Stack | None = None,
    attention: Attention = "self",
) -> Edit:
    """Returns the edit that puts what a run holds of another text there: which one follows from seed and text."""
    check_is(run, Run, _RUN)
    check_whole("seed", seed, 0)
    settings = {**_named(run, site, stack, attention), "seed": int(seed)}
    return _edit("resample", site, Resample(run, int(seed)), layer, head, position, example, stack, attention, settings)


def cut(
    layer: Numbers = None,
    head: Numbers = None,
    query: Position = None,
    key: Position = None,
    *,
    renormalise: bool = True,
    example: Examples = None,
    stack: Stack | None = None,
    attention: Attention = "self",
) -> Edit:
    """Returns the edit that takes keys out of the sight of queries.

    Renormalised, what is left of a row of the pattern is as if the keys had been masked; otherwise it is as it was. A
    key that is a query's own is cut, too.
    """
    settings = {"renormalise": renormalise}
    made = _edit("cut", "attn_pattern", None, layer, head, query, example, stack, attention, settings)
    return replace(made, keys=as_positions(key))


def function(
    site: str,
    layer: Numbers,
    f: Callable[[Tensor], Tensor],
    head: Numbers = None,
    position: Position = None,
    *,
    example: Examples = None,
    stack: Stack | None = None,
    attention: Attention = "self",
) -> Edit:
    """Returns the edit that puts f(x) there: x is one text's ([head,] position, width), float32, and f(x) as large.

    A run that is edited so cannot be resumed: what f does is not known from its name.
    """
    if not callable(f):
        raise UsageError("f is no function", hint="a function of a tensor")

    def change(part: Tensor, where: Where) -> Tensor:
        new = f(part.clone())  # which may overwrite what it is given
        if not isinstance(new, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"an edit of {where.key} makes {type(new).__name__}", hint="return a tensor")
        return new

    name = f"{getattr(f, '__module__', '?')}.{getattr(f, '__qualname__', type(f).__name__)}"
    made = _edit("function", site, change, layer, head, position, example, stack, attention, {"function": name})
    return replace(made, is_told=False)


def _edit(
    kind: str,
    site: str,
    change: Change | None,
    layer: Numbers,
    head: Numbers,
    position: Position,
    example: Examples,
    stack: Stack | None,
    attention: Attention,
    settings: Mapping[str, Any] | None = None,
) -> Edit:
    sites = expand_sites([site])
    if sites != (site,):
        raise SelectionError(f"{site!r} is a group of sites", hint=f"edit one of {', '.join(sites)}")
    if head is not None and not {"head", "kv_head"} & set(SITES[site].axes):
        raise SelectionError(f"{site} has no heads", hint="edit z, what each head mixes" if "attn" in site else "")
    if stack not in (None, "enc", "dec"):
        raise UsageError(f"stack={stack!r}", hint="enc or dec")
    if attention not in ("self", "cross"):
        raise UsageError(f"`attention={attention!r}`", hint="self or cross")
    layers, heads, examples = as_indices(layer), as_indices(head), as_indices(example)
    if any(number < 0 for number in examples or ()):
        raise UsageError(f"`example={example!r}`", hint="the number of a text, from 0")
    place = (layers, heads, as_positions(position), examples, stack, attention)
    return Edit(kind, site, change, *place, settings=settings or {})


def _named(run: Run, site: str, stack: Stack | None, attention: Attention) -> dict[str, Any]:
    """What is said of a run that numbers come from, and of what it keeps a site's as."""
    layout = run.layout
    of_attention = site in SITES and SITES[site].of_attention  # `_edit` refuses what is no site
    spec = layout.spec(ArrayKey(stack or layout.stacks[-1], attention if of_attention else None, site))
    return {"run": run.name, "run_dtype": run.dtype if spec is None else layout.stored(spec)}


def _digest(values: np.ndarray) -> str:
    shape = "x".join(map(str, values.shape))
    return f"{shape} {hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()}"
