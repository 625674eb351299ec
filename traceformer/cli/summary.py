"""What a run holds, as a value that prints as text and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from traceformer.cli.terminal import table
from traceformer.sites import ArraySpec
from traceformer.store.hosts import Computed
from traceformer.store.layout import RunLayout
from traceformer.store.meta import Dims, RunMeta
from traceformer.store.objects.path import AnyPath, sizes_in
from traceformer.store.recipes import operands_of
from traceformer.store.run import Run
from traceformer.texts.shown import printable
from traceformer.units import amount_of_bytes

__all__ = ["ArraySummary", "ExperimentSummary", "RunSummary", "summarise", "summarise_experiment"]


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """One array: where it lies, its dimensions (None where each example has its own size), its size on disk.

    What is told of a whole text has no size per token. Patterns by recipe have the version of it, and no size.
    `largest_error` is that of numbers which were rounded to bytes.
    """

    key: str
    path: str
    dims: Mapping[str, int | None]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    bytes: int
    bytes_per_token: float | None
    recipe: int | None = None
    largest_error: float = 0.0

    @property
    def dims_in_words(self) -> str:
        return ", ".join(name if size is None else f"{name} {size}" for name, size in self.dims.items())


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run: what was run on what, how much of it is there, the arrays, and which parts of the model they leave out."""

    run: str
    kind: str
    finished: bool
    model: str
    arch: str
    dataset: str
    split: str
    dtype: str
    codec: str
    attn_codec: str
    rows_codec: str
    time: str
    n_examples: int
    n_tokens: Mapping[str, int]
    longest: Mapping[str, int]
    bytes: int
    arrays: tuple[ArraySummary, ...]
    parts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    computed: tuple[Computed, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "computed": [each.to_json() for each in self.computed]}

    def _stored(self) -> str:
        compressed = "" if self.codec == "none" else f" compressed with {self.codec}"
        rough = ", patterns as sqrt8 (off by up to 0.004)" if self.attn_codec == "sqrt8" else ""
        rows = ", rows as q8 (off by up to 0.4 % of the largest of 32 values)" if self.rows_codec == "q8" else ""
        return f"{self.dtype}{compressed}{rows}{rough}"

    def _source(self) -> tuple[str, str]:
        if self.kind == "generation":
            return "prompts", f"{self.dataset}: {self.n_examples} responses"
        return "data set", f"{self.dataset} {self.split}: {self.n_examples} examples"

    def __str__(self) -> str:
        stacks = [f"{total} {stack} tokens (longest {self.longest[stack]})" for stack, total in self.n_tokens.items()]
        facts = (
            ("run", self.run if self.finished else f"{self.run}  (unfinished: what is committed so far)"),
            ("model", f"{self.model}  ({_ARCHITECTURES[self.arch]})"),
            (self._source()[0], f"{self._source()[1]}, {', '.join(stacks)}"),
            *([("labels", ", ".join(map(printable, self.labels)))] if self.labels else ()),
            ("stored as", f"{self._stored()}, {amount_of_bytes(self.bytes)} on disk, begun {self.time}"),
            *(
                ("computed", "by " + (str(each) if len(self.computed) > 1 else str(each.host)))
                for each in self.computed
            ),
        )
        is_rounded = self.rows_codec == "q8"
        off = ("off by up to",) * is_rounded
        titles = ("array", "dimensions of one example", "on disk", "per token", *off)
        rows = [
            (
                *(array.key, array.dims_in_words),
                *(("by recipe", "-") if array.recipe is not None else _sizes_of(array)),
                *((f"{array.largest_error:.2g}" if array.largest_error else "-",) * is_rounded),
            )
            for array in self.arrays
        ]
        return "\n".join(
            (
                *(f"{name:<11}{fact}" for name, fact in facts),
                "",
                table(titles, rows, numeric=range(2, len(titles))),
                *(("", *self.parts) if self.parts else ()),
            )
        )


@dataclass(frozen=True, slots=True)
class ExperimentSummary:
    """A folder of runs, the newest first."""

    experiment: str
    runs: tuple[RunSummary, ...]

    def to_json(self) -> dict[str, Any]:
        return {"experiment": self.experiment, "runs": [run.to_json() for run in self.runs]}

    def __str__(self) -> str:
        rows = [
            (Path(run.run).name, run.model, run.dataset, str(run.n_examples), amount_of_bytes(run.bytes))
            for run in self.runs
        ]
        return table(("run", "model", "of", "examples", "on disk"), rows, numeric=(3, 4))


def summarise_experiment(runs: Sequence[AnyPath]) -> ExperimentSummary:
    """Returns what each of the runs in one folder holds."""
    return ExperimentSummary(str(runs[0].parent), tuple(summarise(Run(run), run) for run in runs))


_ARCHITECTURES = {"enc": "encoder", "dec": "decoder", "encdec": "encoder-decoder"}


def summarise(store: Run, folder: AnyPath) -> RunSummary:
    """Returns what the run in `folder` holds."""
    about, layout = store.about, store.layout
    lengths = {stack: store.lengths(stack) for stack in layout.stacks}
    totals = {stack: int(of_stack.sum()) for stack, of_stack in lengths.items()}
    sizes, arrays = sizes_in(folder), list[ArraySummary]()
    for spec in layout.arrays:
        path = layout.array_path(spec.key)
        own = tuple(f"{path}{part}/" for part in ("", "_scale", "_massive", "_massive_channel"))
        size = sum(size for name, size in sizes.items() if name.startswith(own))
        recipe = layout.recipes.get(spec.key)
        has_rate = recipe is None and not spec.site.is_per_example
        per_token = size / max(totals[spec.key.token_stack], 1) if has_rate else None
        of = _dims(spec), spec.layers, spec.heads, size, per_token, None if recipe is None else recipe.version
        arrays.append(ArraySummary(str(spec.key), path, *of, store.largest_error(spec.key)))
    parts = (line for spec in layout.arrays for line in _parts(spec, about.dims_of(spec.key.token_stack)))
    return RunSummary(
        run=str(folder),
        kind=about.kind or "extraction",
        finished=store.finished,
        model=about.model_and_adapter or "unknown",
        arch=layout.arch,
        dataset=about.dataset or "unknown",
        split=about.split or "unknown",
        dtype=layout.dtype,
        codec=store.layout.codec,
        attn_codec=store.layout.attn_codec,
        rows_codec=layout.rows_codec,
        time=about.time or "unknown",
        n_examples=store.n,
        n_tokens=dict[str, int](totals),
        longest={stack: int(of_stack.max(initial=0)) for stack, of_stack in lengths.items()},
        bytes=sum(sizes.values()),
        arrays=tuple(arrays),
        parts=(*_row(about), *_edits(about), *dict.fromkeys(parts), *_aliases(layout), *_recipes(layout)),
        labels=about.labels or (),
        computed=store.computed,
    )


def _dims(spec: ArraySpec) -> dict[str, int | None]:
    sizes = {"layer": len(spec.layers), "head": len(spec.heads), "kv_head": len(spec.heads)}
    sizes["hidden_layer"] = len(spec.layers)
    ragged = ("position", "query", "key")
    return {axis: None if axis in ragged else sizes.get(axis, spec.width) for axis in spec.site.axes}


def _parts(spec: ArraySpec, dims: Dims) -> Iterator[str]:
    """Yields a line for each axis on which only some of the model's layers or heads are stored."""
    own = dims.at(spec.layers)
    totals = {"layer": dims.n_layers, "head": own.n_heads, "kv_head": own.n_kv_heads}
    totals["hidden_layer"] = None if dims.n_layers is None else dims.n_layers + 1
    if spec.site.of_attention and dims.without_attention:
        without = f"{', '.join(map(str, dims.without_attention))} of {dims.n_layers}"
        yield f"{spec.key.token_stack}: no attention in layer{'s' * (len(dims.without_attention) > 1)} {without}"
        totals["layer"] = len(dims.attending or ())
    for axis, numbers in zip((a for a in spec.site.axes if a in totals), (spec.layers, spec.heads), strict=False):
        if len(numbers) < (totals[axis] or 0):
            yield f"{spec.key.token_stack}: only {axis} {', '.join(map(str, numbers))} of {totals[axis]}"


def _sizes_of(array: ArraySummary) -> tuple[str, str]:
    """On disk, and per token."""
    rate = array.bytes_per_token
    return amount_of_bytes(array.bytes), "-" if rate is None else amount_of_bytes(rate)


def _recipes(layout: RunLayout) -> Iterator[str]:
    """Yields a line for each array of patterns that are made of q and k."""
    for key, recipe in layout.recipes.items():
        query, keys = operands_of(key)
        yield f"{key}: made anew of {query} and {keys}, in {recipe.stored}, by recipe {recipe.version}"


def _aliases(layout: RunLayout) -> Iterator[str]:
    """Yields a line of the arrays that are not stored whole, since some of their rows are another's."""
    names = dict.fromkeys(str(rows.key) for rows in layout.aliases)
    if names:
        yield f"{', '.join(names)}: rows that are also another array's are stored there, once"


def _edits(about: RunMeta) -> Iterator[str]:
    """Yields a line for each edit that the model ran under."""
    for edit in about.edits or ():
        settings = " ".join(f"{name}={value}" for name, value in edit.items() if name not in ("kind", "site"))
        yield f"edited: {edit.get('kind')} {edit.get('site')} {settings}".rstrip()


def _row(about: RunMeta) -> Iterator[str]:
    """Yields a line of the row that the model was recorded by, where that was not its family's."""
    if about.row is not None:
        row, facts = about.row.get("how"), about.row.get("n_facts")
        proved = f"{facts} facts proved on {about.row.get('tokens')} tokens of its texts"
        yield f"no row for {about.model_type}: {row}, {proved}"
