"""The Gemma capture's .pt files as a run: those it documents, those its code wrote, and those exported here.

1. A file is one example (`residual`), or one layer of one (`internals`; its name ends in `_L{layer}`). Layers have
   string or integer keys; a response's rows are a list or stacked, with or without an extra dimension; its patterns
   are squares per token, or, as the code wrote them, the last row of each. Texts stand in `prompt` and `response`,
   or beside them.
2. The code recorded the context of each new token and not the token itself: its row i of a response is the position
   before that of token i, so that row 0 repeats the prompt's last row. Files that show this are read so. What it
   called `after_attn` is the MLP's normed input: of such files it becomes `mlp_norm`, of all others `resid_mid`.
3. Where the last token looks is in no corner, so that row of the pattern is NaN in the run, as is every row that a
   file lacks. Patterns averaged over heads become those of one head.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from traceformer.errors import Unreadable
from traceformer.formats.gemma_pt.files import PtFile
from traceformer.formats.incoming import common_dtype, put, token_row, write_run
from traceformer.formats.options import ImportOptions
from traceformer.formats.rows import TokenRow
from traceformer.formats.torch_files import read_torch_file
from traceformer.shapes import Float
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.buffer import ShardBuffer

__all__ = ["read_files", "recognises"]

_ROW_OF_OURS = ("input_ids", "attention_mask", "n_tokens", "shard", "slot")


def recognises(path: Path) -> bool:
    """Returns whether a file's name is that of such a file; what it holds is seen when it is read."""
    return path.suffix == ".pt"


def read_files(files: Sequence[Path], options: ImportOptions) -> Path:
    """Returns the folder of the run that the files make: an example for each prompt, in the files' order.

    Raises:
        NotFound, Unreadable: a file is not there, holds more than tensors, is none of the Gemma capture's, or not
            of the others' arrays.
        RunExists: a run is at the folder asked for.
    """
    grouped: dict[tuple[Path, str], list[Path]] = {}
    for path in files:
        grouped.setdefault((path.parent, re.sub(r"_L\d{1,6}$", "", path.stem)), []).append(path)
    outlines = [_Outline.of(_read(paths), paths) for paths in grouped.values()]
    first, numbers = outlines[0], _TokenNumbers()
    for outline in outlines:
        if (outline.arrays, outline.stack) != (first.arrays, first.stack):
            raise Unreadable(
                f"{outline.paths[0]} holds other arrays than {first.paths[0]}",
                why=f"{outline.in_words()}; {first.in_words()}",
                hint="import them apart",
            )

    def fill(buffer: ShardBuffer, slot: int, index: int) -> TokenRow:
        outline = outlines[index]
        parts = _read(outline.paths)
        for spec in first.arrays:
            put(buffer, slot, spec, _assembled(spec, parts), str(outline.paths[0]), partial=True)
        return _row(parts[0], index, numbers)

    about: dict[str, Any] = {}
    if any(outline.is_mean for outline in outlines):
        about["attention"] = "the mean over heads, as head 0"
    if not all(outline.has_ids for outline in outlines):
        about["token_ids"] = "not in the files: negative numbers in their place, equal where tokens are"
    return write_run(
        files,
        options,
        fill,
        source="pt",
        arch="enc" if first.stack == "enc" else "dec",
        arrays=first.arrays,
        lengths={first.stack: [outline.length for outline in outlines]},
        dtype=common_dtype({dtype for outline in outlines for dtype in outline.dtypes}),
        stated=_without_heads(first.stated) if "attention" in about else first.stated,
        partial=any(outline.is_partial for outline in outlines),
        imported=about,
    )


@dataclass(frozen=True, slots=True)
class _Outline:
    """What the files of one example hold, without their numbers."""

    paths: Sequence[Path]
    stack: Stack
    arrays: tuple[ArraySpec, ...]
    length: int
    dtypes: frozenset[str]
    is_partial: bool
    is_mean: bool
    has_ids: bool
    stated: Mapping[str, Any]

    @classmethod
    def of(cls, parts: Sequence[PtFile], paths: Sequence[Path]) -> "_Outline":
        first = parts[0]
        for part in parts:
            if part.tokens != first.tokens:
                raise Unreadable(f"{part.path} is of another text than {first.path}", hint="import them apart")
        found: dict[ArrayKey, dict[int | None, ArraySpec]] = {}
        for part in parts:
            for spec in part.arrays():
                for layer in spec.layers or (None,):
                    found.setdefault(spec.key, {})[layer] = spec
        arrays = tuple(_joined(layers) for layers in found.values())
        if not arrays:
            raise Unreadable(f"{first.path} holds no activations")
        partial = any(np.isnan(_assembled(spec, parts)).any() for spec in arrays)
        return cls(
            paths,
            first.stack,
            arrays,
            len(first.tokens),
            frozenset(dtype for part in parts for dtype in part.dtypes()),
            partial,
            any(part.is_mean for part in parts),
            all(part.ids is not None for part in parts),
            first.ours.get("run") or {},
        )

    def in_words(self) -> str:
        return ", ".join(f"{spec.key} x {len(spec.layers) or 1} layers" for spec in self.arrays)


def _read(paths: Sequence[Path]) -> list[PtFile]:
    return [PtFile(path, read_torch_file(path)) for path in paths]


def _joined(layers: Mapping[int | None, ArraySpec]) -> ArraySpec:
    """One spec of all layers, in their order."""
    first = next(iter(layers.values()))
    numbers = tuple(sorted(layer for layer in layers if layer is not None))
    return ArraySpec(first.key, numbers, first.heads, first.width)


def _assembled(spec: ArraySpec, parts: Sequence[PtFile]) -> Float[np.ndarray, "..."]:
    """Returns all of an array of an example, as a run has it."""
    for part in parts:
        if spec.key in part.further and not ("layer" in part.ours and spec.site.axes[0] == "layer"):
            return part.further[spec.key]
    return np.stack([_of_layer(spec, layer, parts) for layer in spec.layers])


def _of_layer(spec: ArraySpec, layer: int, parts: Sequence[PtFile]) -> Float[np.ndarray, "..."]:
    for part in parts:
        if spec.key in part.further and "layer" in part.ours and part.layer == layer:
            return part.further[spec.key]
    for part in parts:
        if spec.key.site == "attn_pattern":
            found = part.pattern(layer)
        else:
            found = part.rows(spec.key.site, layer)
            if found is not None and spec.heads:
                found = found.reshape(len(found), len(spec.heads), -1).transpose(1, 0, 2)
        if found is not None:
            return found
    raise Unreadable(f"{parts[0].path} has no layer {layer} of {spec.key}")


class _TokenNumbers:
    """Stand-ins for token ids that the files do not say: negative, and equal where tokens are."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, tokens: Sequence[str]) -> list[int]:
        return [self._known.setdefault(token, -1 - len(self._known)) for token in tokens]


def _row(part: PtFile, index: int, numbers: _TokenNumbers) -> TokenRow:
    of_set, name = part.path.parent.name, re.sub(r"_L\d{1,6}$", "", part.path.stem)
    ids = numbers.of(part.tokens) if part.ids is None else part.ids
    example_id, words = f"{of_set}-{name}" if of_set else name, (part.prompt.text, part.response.text)
    row = token_row(example_id, index, *words, ids, part.n_prompt, part.tokens)
    row |= {"prompt_set": of_set, "prompt_id": name}
    row |= {name: value for name, value in part.ours.get("row", {}).items() if name not in _ROW_OF_OURS}
    return TokenRow(row, part.types)


def _without_heads(stated: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its run, less the dimensions, where its patterns are of one head."""
    return {name: value for name, value in stated.items() if name != "dims"}
