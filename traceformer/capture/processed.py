"""Batches that a processor made of text, images and sounds, recorded as they are.

1. `rows_of` makes an example of each row: the true tokens that its attention mask has, and which of them stand for an
   image, a sound or a video.
2. Rows that came in one batch share a pass (`passes_of`), and lie in one shard (`rows_in_shard`).
"""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from traceformer.capture.encoding import Encoded, Encoder, Lengths
from traceformer.capture.given import Given, ProcessorBatch
from traceformer.capture.tokenizing import Rows, Texts
from traceformer.errors import UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.models.part import placeholders
from traceformer.sites import Stack
from traceformer.texts.cells import Ids
from traceformer.texts.examples import Example, TextSource, make_id
from traceformer.texts.shown import unnamed

__all__ = ["passes_of", "rows_in_shard", "rows_of", "text_alone"]


def rows_of(model: LoadedModel, batches: Sequence[ProcessorBatch]) -> Rows:
    """Returns the rows of all batches, each an example.

    Raises:
        UsageError: a batch is none that can be recorded, or the model is an encoder-decoder.
    """
    if model.dims.arch == "encdec":
        raise UsageError(
            f"a processor's batch for {model.name}",
            why="it is an encoder-decoder, whose decoder reads targets",
            hint="texts and `targets`",
        )
    given = [Given.of(batch, number) for number, batch in enumerate(batches)]
    stack: Stack = "dec" if model.dims.arch == "dec" else "enc"
    kinds = placeholders(model.config)
    rows = [_encoded(model, stack, kinds, each, row) for each in given for row in range(len(each.spans))]
    examples = [_example(model, number, row.ids[stack]) for number, row in enumerate(rows)]
    source = TextSource("inputs", "all", examples, _digest(given), dataset="a processor's batches", kind=Ids)
    lengths = Lengths({stack: array("I", [row.length(stack) for row in rows])})
    return Rows(Texts(source), Encoder(model, "auto", max_target_tokens=64), lengths, given=rows)


def _encoded(model: LoadedModel, stack: Stack, kinds: Mapping[int, str], given: Given, row: int) -> Encoded:
    ids = given.ids(row)
    names = [None] * len(ids) if model.tokenizer is None else model.tokenizer.convert_ids_to_tokens(ids)
    tokens = [unnamed(each) if name is None else name for each, name in zip(ids, names, strict=True)]
    return Encoded({stack: ids}, {stack: tokens}, None, kinds=[kinds.get(each, "text") for each in ids], given=given)


def _example(model: LoadedModel, number: int, ids: Sequence[int]) -> Example:
    text = Ids(tuple(ids)).text if model.tokenizer is None else model.tokenizer.decode(ids)
    return Example(make_id("inputs", "all", number, text), number, text, {}, Ids(tuple(ids)))


def _digest(given: Sequence[Given]) -> str:
    """A SHA-256 of all that the model is given."""
    digest = hashlib.sha256()
    for each in given:
        for name, value in sorted(each.inputs.items()):
            digest.update(f"{name} {getattr(value, 'shape', '')} {getattr(value, 'dtype', '')} ".encode())
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            else:
                digest.update(repr(value).encode())
    return digest.hexdigest()


def passes_of(rows: Sequence[Encoded]) -> list[list[int]]:
    """Returns the numbers of rows that came in one batch, which share a pass."""
    passes: list[list[int]] = []
    for number, row in enumerate(rows):
        if number and row.given is rows[number - 1].given:
            passes[-1].append(number)
        else:
            passes.append([number])
    return passes


def rows_in_shard(rows: Sequence[Encoded], most: int) -> int:
    """Returns how many examples a shard holds, at most so many if they are enough for a batch: batches lie within one.

    Batches of several sizes all go into one shard.
    """
    sizes = [len(each) for each in passes_of(rows)]
    if len({*sizes[:-1]}) > 1 or sizes[-1] > sizes[0]:
        return len(rows)
    return max(1, most // sizes[0]) * sizes[0]


def text_alone(rows: Sequence[Encoded]) -> list[Encoded]:
    """Returns what rows say in words, as texts by themselves: a model is proved on these before it is given images."""
    return [*_text_alone(rows)]


def _text_alone(rows: Sequence[Encoded]) -> Iterator[Encoded]:
    for row in rows:
        [(stack, ids)] = row.ids.items()
        said = [each for each, kind in zip(ids, row.kinds or (), strict=True) if kind == "text"]
        is_typed = "token_type_ids" in (row.given.inputs if row.given else {})
        yield replace(row, ids={stack: said}, types=[0] * len(said) if is_typed else None, kinds=None, given=None)
