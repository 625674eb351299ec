"""Everything that is known of an extraction before its first byte is written.

`prepare` finds the texts, loads the model, tokenises everything once to learn the longest example, and plans the
arrays and the run's layout from the selection.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from traceformer.capture.plan import Plan, plan_arrays
from traceformer.capture.projecting import Traits
from traceformer.capture.tokenizing import Encoded, Encoder, Lengths
from traceformer.errors import UsageError
from traceformer.models.families import architecture_of
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.sites import Selection, Stack
from traceformer.store.layout import RunLayout
from traceformer.texts.examples import Example, TextSource
from traceformer.texts.load import load_targets, load_texts

__all__ = ["ExtractRequest", "Prepared", "prepare"]


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """What to extract; the fields are the flags of `traceformer extract`, with document 1's defaults.

    `limit` None takes the whole split, `max_seq_len` "auto" the longest text that the model can read.
    `writer` is (w, W) when W processes share one run. `shard_examples` None lets the store choose.
    `traits` are projected onto, and of each layer the `lens_top_k` likeliest next tokens recorded, beside what is
    selected, or alone where nothing is.
    """

    selection: Selection
    model: str = "roberta-base"
    model_path: Path | None = None
    dataset: str = "ud_ewt"
    split: str | None = None
    limit: int | None = 32
    max_seq_len: int | Literal["auto"] = 128
    dec_max_len: int = 64
    batch_size: int = 8
    dtype: Literal["float16", "float32", "bfloat16"] = "float16"
    targets_file: Path | None = None
    out_dir: Path | None = None
    device: str | None = None
    model_dtype: str | None = None
    revision: str | None = None
    codec: Literal["none", "zstd", "lz4"] = "none"
    attn_codec: Literal["exact", "sqrt8"] = "exact"
    resume: bool = False
    overwrite: bool = False
    allow_pickle: bool = False
    text_column: str | None = None
    writer: tuple[int, int] = (0, 1)
    shard_examples: int | None = None
    traits: Traits | None = None
    lens_top_k: int | None = None
    command_line: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The texts, the model, and what will be recorded of it in which layout."""

    request: ExtractRequest
    source: TextSource
    targets: Sequence[str] | None
    loaded: LoadedModel
    encoder: Encoder
    lengths: Lengths
    plan: Plan
    layout: RunLayout

    @property
    def batch_size(self) -> int:
        """Texts per forward pass: what was asked for, but a batch lies within one shard."""
        return min(self.request.batch_size, self.layout.shard_examples)

    def shard(self, number: int) -> tuple[list[Example], list[Encoded]]:
        """The examples of one shard and their tokens."""
        rows = self.layout.shard_range(number)
        examples = list(self.source.examples[rows.start : rows.stop])
        targets = None if self.targets is None else self.targets[rows.start : rows.stop]
        return examples, self.encoder.encode([example.text for example in examples], targets)


def prepare(request: ExtractRequest, loaded: LoadedModel | None = None) -> Prepared:
    """Returns all that an extraction needs, with the model that is loaded already if there is one; writes nothing.

    Raises:
        NotFound: no such model, data set, split or file.
        Unreadable: one of them is not what it should be.
        UsageError, Unsupported: a selection or limit that this model has no place for.
    """
    source = load_texts(request.dataset, split=request.split, limit=request.limit, text_column=request.text_column)
    targets = None if request.targets_file is None else _targets(request.targets_file, source)
    loaded = loaded or load_model(
        str(request.model_path or request.model),
        revision=request.revision,
        device=request.device,
        dtype=request.model_dtype,
        with_head="logits" in request.selection.sites or request.lens_top_k is not None,
        allow_pickle=request.allow_pickle,
    )
    if targets is not None and loaded.dims.arch != "encdec":
        raise UsageError(f"--targets_file is for encoder-decoders, and {loaded.name} is none")
    stacks: tuple[Stack, ...] = (
        ("enc",) if loaded.dims.arch == "encdec" and targets is None else tuple(loaded.dims.stacks)
    )
    plan = plan_arrays(
        request.selection,
        architecture_of(loaded.config),
        loaded.dims,
        stacks=stacks,
        has_head=loaded.model.get_output_embeddings() is not None,
        traits=request.traits,
        lens_top_k=request.lens_top_k,
        model=loaded.model,
    )
    if plan.left_out:
        warnings.warn(f"{loaded.name} has no {', '.join(plan.left_out)}: left out", stacklevel=2)
    encoder = Encoder(loaded, request.max_seq_len, request.dec_max_len)
    lengths = encoder.measure(_TextsOf(source.examples), targets)
    if lengths.truncated:
        can_read = loaded.dims.stacks[stacks[0]].n_ctx
        why = "all that the model can read" if encoder.max_tokens == can_read else "--max_seq_len auto takes more"
        warnings.warn(
            f"texts are cut to {encoder.max_tokens} tokens ({why}): {lengths.truncated} of {len(source.examples)}",
            stacklevel=2,
        )
    if lengths.targets_truncated:
        warnings.warn(
            f"targets are cut to {encoder.max_target_tokens} tokens (--dec_max_len takes more): "
            f"{lengths.targets_truncated} of {len(source.examples)}",
            stacklevel=2,
        )
    if source.skipped:
        warnings.warn(f"blank texts are passed over: {source.skipped}", stacklevel=2)
    layout = RunLayout.plan(
        arch=loaded.dims.arch,
        arrays=plan.arrays,
        n_examples=len(source.examples),
        longest=lengths.longest,
        mean=lengths.mean,
        dtype=request.dtype,
        attn_codec=request.attn_codec,
        codec=request.codec,
        shard_examples=request.shard_examples,
    )
    return Prepared(request, source, targets, loaded, encoder, lengths, plan, layout)


def _targets(path: Path, source: TextSource) -> list[str]:
    """Each example's target: the line of its row, blank texts counted."""
    lines = load_targets(path, source.examples[-1].index + 1)
    return [lines[example.index] for example in source.examples]


class _TextsOf(Sequence[str]):
    """The texts of a sequence of examples, each read when it is asked for."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [example.text for example in self._examples[index]]
        return self._examples[index].text
