"""`traceformer inspect`: what a run holds, one example's tokens, one head in the terminal or as a picture."""

import json as json_text
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from traceformer.cli.arguments import FILE_ON_DISK, count, find_example, open_example, parse_head
from traceformer.cli.terminal import table
from traceformer.errors import NotFound, NotRecorded, SelectionError
from traceformer.sites import ArraySpec, Stack
from traceformer.texts.shown import Piece, part_notes, printable, visible

if TYPE_CHECKING:
    import numpy as np

    from traceformer.shapes import Num
    from traceformer.store.objects.path import AnyPath
    from traceformer.store.run import Run

__all__ = ["inspect"]

_TILE = 96  # pixels per head in an atlas
_BEGINNING = 40  # characters of a text in the title of a picture


@dataclass(frozen=True, slots=True)
class _Slice:
    """One example's values at one array, layer and head, with the tokens along its rows and, for a matrix, its keys.

    Of an array with one row per example the rows are that row's entries, one value each, and their names.
    """

    example_id: str
    spec: ArraySpec
    layer: int | None
    head: int | None
    values: 'Num[np.ndarray, "row column"]'
    row_tokens: list[str]
    key_tokens: list[str]

    @property
    def title(self) -> str:
        place = "".join(f"{letter}{n}" for letter, n in (("L", self.layer), ("H", self.head)) if n is not None)
        return "  ".join(part for part in (place, str(self.spec.key), f"example {printable(self.example_id)}") if part)


def inspect(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    example: str | None = None,
    layer: Annotated[int | None, count("L", least=0)] = None,
    head: Annotated[str | None, Parameter(metavar="H|LxHy")] = None,
    site: str | None = None,
    png: Annotated[Path | None, FILE_ON_DISK] = None,
    json: bool = False,
) -> None:
    """Show what a run holds: its arrays, an example, a head.

    Without options: the model, the data set and every array. With --example: its text and tokens. With --head: the
    pattern, drawn in the terminal. With --png and no head: a picture of all heads.

    Example: `traceformer inspect latest --head L2H3`

    Args:
        run: A folder, on disk or in a bucket (s3://bucket/run), the name of a run in ./traces, or `latest`; or a folder
            of runs, which is listed.
        example: An example's id, or its row number; the first one by default.
        layer: A layer's number in the model.
        head: A head's number in the model, or such as L5H3.
        site: Which array: attn_pattern, resid_post, ...; dec.cross.attn_pattern where there are several.
        png: Save a picture of the head, or of all heads, in the format that the ending names.
        json: Print a JSON object.
    """
    from traceformer.cli.summary import summarise, summarise_experiment
    from traceformer.formats.whole import leftovers
    from traceformer.store.folders import find_run, runs_in
    from traceformer.store.layout import META
    from traceformer.store.objects.path import as_path
    from traceformer.store.run import Run

    layer, head_number = parse_head(layer, head)
    place = as_path(run)
    left = [str(path) for path in leftovers(place)] if isinstance(place, Path) else []
    told = f"left by an export that was killed: {', '.join(left)}; the next one there removes it" if left else ""
    at_a_place = not (layer is None and head_number is None and site is None)
    if example is None and png is None and not at_a_place and not (place / META).is_file():
        several = runs_in(place)
        if len(several) > 1:
            experiment = summarise_experiment(several)
            print(json_text.dumps(experiment.to_json(), indent=2) if json else experiment)
            return
    if example is None:
        try:
            folder = find_run(run)
        except NotFound as error:
            raise NotFound(error.message, why="; ".join(filter(None, (error.why, told))), hint=error.hint) from error
        store = Run(folder)
        shown = summarise(store, folder) if png is None and not at_a_place else None
    else:
        store, example = open_example(run, example)
        shown = _example(store, example) if png is None and not at_a_place else None
    if shown is not None:
        print(json_text.dumps(shown.to_json(), indent=2) if json else shown)
        if told:
            print(told, file=sys.stderr)
        return

    spec = _find_array(store, site)
    example_id = find_example(store, example)
    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    if png is not None and layer is None and head_number is None:
        _save_atlas(store, example_id, spec, png)
        picture = f"all heads of {spec.key}, example {printable(example_id)}"
        print(json_text.dumps({"run": str(store.folder), "png": str(png)}) if json else f"{png}: {picture}")
        return
    found = _slice(store, example_id, spec, layer, head_number)
    if png is not None:
        _save_head(found, png)
    if json:
        print(json_text.dumps(_slice_to_json(found, store.folder, png), indent=2))
        return
    print(found.title, end="\n\n")
    print(_draw(found))
    if png is not None:
        print(f"wrote {png}", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class _Example:
    example_id: str
    text: str
    tokens: dict[Stack, list[Piece]]
    names: dict[Stack, list[str]]
    n_prompt: int | None  # of a generation: where its response begins, in the decoder
    segments: list[int | None] | None  # of a pair: which text each token that the first stack reads is of

    def to_json(self) -> dict[str, Any]:
        generated = {} if self.n_prompt is None else {"n_prompt": self.n_prompt}
        pair = {} if self.segments is None else {"segments": self.segments}
        texts = {stack: [piece.text for piece in pieces] for stack, pieces in self.tokens.items()}
        told = {"example_id": self.example_id, "text": self.text, "tokens": texts, "names": self.names}
        return {**told, **pair, **generated}

    def __str__(self) -> str:
        lines = [f"example {printable(self.example_id)}", "", printable(self.text)]
        for stack, pieces in self.tokens.items():
            begins = self.n_prompt if stack == "dec" else None
            notes = part_notes([piece.hex for piece in pieces])
            segments = self.segments if stack == next(iter(self.tokens)) else None
            rows = [
                (
                    str(position),
                    *(() if segments is None else ("" if segments[position] is None else str(segments[position]),)),
                    visible(piece.text),
                    "  ".join(filter(None, (note, "← the response begins" if position == begins else ""))),
                )
                for position, (piece, note) in enumerate(zip(pieces, notes, strict=True))
            ]
            heads = ("position", *(() if segments is None else ("segment",)), f"{stack} token", "")
            lines += ["", table(heads, rows, numeric=(0,))]
        return "\n".join(lines)


def _example(store: "Run", name: str) -> _Example:
    from traceformer.questions.vocabulary import shown_tokens

    example_id, stacks = find_example(store, name), store.layout.stacks
    tokens: dict[Stack, list[Piece]] = {stack: shown_tokens(store, example_id, stack) for stack in stacks}
    names: dict[Stack, list[str]] = {stack: store.tokens_of(example_id, stack) for stack in stacks}
    encodings = store.encodings(example_id)
    of = encodings.get("sequence_ids")
    segments = None if of is None else [None if number is None else int(number) for number in of]
    return _Example(example_id, store.text(example_id), tokens, names, encodings.get("n_prompt"), segments)


def _find_array(store: "Run", site: str | None) -> ArraySpec:
    """Returns the array that `--site` names, the first one of attention for None.

    Raises:
        NotRecorded: the run has no such array, or SelectionError: it has several.
    """
    if site is not None:
        return store.spec(site)
    patterns = [spec for spec in store.layout.arrays if spec.key.site == "attn_pattern"]
    if not patterns:
        stored = f"it has {' '.join(str(spec.key) for spec in store.layout.arrays)}"
        raise NotRecorded("this run holds no attention patterns", why=stored, hint="--site SITE")
    return patterns[0]


def _slice(store: "Run", example_id: str, spec: ArraySpec, layer: int | None, head: int | None) -> _Slice:
    import numpy as np

    for number, stored, what in ((layer, spec.layers, "layer"), (head, spec.heads, "head")):
        if number is None and len(stored) > 1:
            raise SelectionError(f"which {what}?", why=f"{spec.key} has {len(stored)} of them", hint="--head L5H3")
    values = store.get(example_id, spec.key, layer, head)
    if 0 in values.shape:
        raise NotRecorded(f"example {example_id} has no tokens in {spec.key}")
    layer = spec.layers[0] if layer is None and spec.layers else layer
    head = spec.heads[0] if head is None and spec.heads else head
    if spec.site.is_per_example:
        if np.isnan(values).all():
            raise NotRecorded(f"example {example_id} has no tokens, and so no {spec.key}")
        return _Slice(example_id, spec, layer, head, values.reshape(-1, 1), _entries(store, spec), [])
    return _Slice(
        example_id,
        spec,
        layer,
        head,
        values.reshape(values.shape[-2:]),  # without the axis of a layer or head that is the only one
        _texts(store, example_id, spec.key.token_stack),
        _texts(store, example_id, spec.key.key_stack) if spec.site.is_matrix else [],
    )


def _entries(store: "Run", spec: ArraySpec) -> list[str]:
    """What the entries of a row are called: labels by their names, others by their numbers."""
    labels = store.about.labels or ()
    if spec.site.axes[-1] == "metric" and store.about.head_metrics is not None:
        labels = tuple(store.about.head_metrics["names"])
    is_named = spec.site.axes[-1] in ("label", "metric") and len(labels) == spec.width
    return list(labels) if is_named else [str(number) for number in range(spec.width)]


def _texts(store: "Run", example_id: str, stack: Stack) -> list[str]:
    from traceformer.questions.vocabulary import shown_tokens

    return [piece.text for piece in shown_tokens(store, example_id, stack)]


def _draw(found: _Slice) -> str:
    import numpy as np

    if found.spec.site.is_per_example:
        entries = zip(found.row_tokens, found.values[:, 0], strict=True)
        rows = [(printable(name), f"{value:.4g}") for name, value in entries]
        return table((found.spec.site.axes[-1], "value"), rows, numeric=(1,))
    if found.spec.site.is_matrix:
        from traceformer.cli.matrix import draw_matrix

        width = shutil.get_terminal_size((100, 24)).columns
        return draw_matrix(found.values, found.row_tokens, found.key_tokens, width=width)
    if found.spec.site.holds_ids:
        rows = [
            (str(position), visible(token), " ".join(map(str, row)))
            for position, (token, row) in enumerate(zip(found.row_tokens, found.values, strict=True))
        ]
        site = found.spec.site
        ids = "experts" if site.of_experts else "keys" if site.is_of_patterns else "token ids"
        return table(("position", "token", ids), rows, numeric=(0,))
    rows = [
        (str(position), visible(token), f"{np.linalg.norm(row):.4g}", f"{row.min():.4g}", f"{row.max():.4g}")
        for position, (token, row) in enumerate(zip(found.row_tokens, found.values, strict=True))
    ]
    return table(("position", "token", "norm", "min", "max"), rows, numeric=(0, 2, 3, 4))


def _slice_to_json(found: _Slice, folder: "AnyPath | None", png: Path | None) -> dict[str, Any]:
    return {
        "run": str(folder),
        "example_id": found.example_id,
        "array": str(found.spec.key),
        "layer": found.layer,
        "head": found.head,
        **_values_to_json(found),
        **({"png": str(png)} if png is not None else {}),
    }


def _values_to_json(found: _Slice) -> dict[str, Any]:
    if found.spec.site.is_per_example:
        return {f"{found.spec.site.axes[-1]}s": found.row_tokens, "values": found.values[:, 0].tolist()}
    keys = {"key_tokens": found.key_tokens} if found.spec.site.is_matrix else {}
    return {"tokens": found.row_tokens, **keys, "values": found.values.tolist()}


def _save_head(found: _Slice, png: Path) -> None:
    from traceformer.figures.attention import head_figure
    from traceformer.figures.style import save

    if not found.spec.site.is_matrix:
        raise SelectionError(f"{found.spec.key} is no (query, key) matrix", hint="--png with --site attn_pattern")
    save(head_figure(found.values, found.row_tokens, found.key_tokens, title=found.title), png)


def _named(store: "Run", example_id: str) -> str:
    """An example by its number and how its text begins."""
    text = store.text(example_id)
    return f"{store.row(example_id)}: “{printable(text[:_BEGINNING])}{'…' * (len(text) > _BEGINNING)}”"


def _save_atlas(store: "Run", example_id: str, spec: ArraySpec, png: Path) -> None:
    import numpy as np

    from traceformer.figures.attention import atlas_figure, tile
    from traceformer.figures.style import save

    if not spec.site.is_matrix:
        raise SelectionError(f"{spec.key} is no (query, key) matrix", hint="--png with --site attn_pattern")
    # Head by head, so that no more than one whole matrix is in memory.
    tiles = [
        [tile(_slice(store, example_id, spec, layer, head).values, pixels=_TILE) for head in spec.heads]
        for layer in spec.layers
    ]
    title = (
        f"{store.name}  example {_named(store, example_id)}\n{spec.key}: queries downwards, keys to the right; "
        "each head in square-root colours up to its own maximum"
    )
    gaps = store.about.dims_of(spec.key.stack).without_attention
    if gaps and spec.site.of_attention:
        title += f"  (no attention in layers {', '.join(map(str, gaps))})"
    save(atlas_figure(np.array(tiles), layers=spec.layers, heads=spec.heads, title=title), png)
