"""What a test asks of the recorder, as one value that can be varied: model, texts or prompts, selection and place."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from traceformer.capture.derived import LensTopK, Traits
from traceformer.capture.extract import Estimate, estimate, extract, read_texts
from traceformer.capture.generation.generate import answer
from traceformer.capture.generation.prompts import Prompts
from traceformer.capture.generation.sampling import Sampling
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnProgress, quiet
from traceformer.sites import Selection
from traceformer.store.place import Place, Storage
from traceformer.texts.prompts import all_prompt_sets, load_prompt_set, load_prompts, one_prompt

__all__ = ["Answers", "Extraction", "Stopped", "answered", "estimated", "extracted", "stop_after"]


class Stopped(Exception):
    """Ends a run as `stop_after` is told to."""


def stop_after(examples: int) -> Callable[[Any], None]:
    """Returns a progress callback that ends an extraction once so many examples are done."""

    def stop(progress: Any) -> None:
        if progress.examples_done >= examples:
            raise Stopped

    return stop


@dataclass(frozen=True, kw_only=True)
class _Recording:
    model: str
    selection: Selection
    out_dir: Path | None = None
    dtype: Literal["float16", "float32", "bfloat16"] = "float16"
    device: str = "cpu"
    model_dtype: str | None = None
    allow_pickle: bool = False
    traits: Traits | None = None
    lens_top_k: int | None = None
    batch_size: int = 8
    resume: bool = False
    overwrite: bool = False

    def chosen(self) -> Selection:
        derived = (
            *([self.traits] if self.traits else []),
            *([LensTopK(self.lens_top_k)] if self.lens_top_k is not None else []),
        )
        own = self.selection
        return Selection(own.capture, own.layers, own.heads, own.hidden_layers, derived)

    def load(self, *, with_head: bool) -> LoadedModel:
        return load_model(
            self.model,
            device=self.device,
            dtype=self.model_dtype,
            with_head=with_head,
            allow_pickle=self.allow_pickle,
        )


@dataclass(frozen=True, kw_only=True)
class Extraction(_Recording):
    dataset: str = "demo"
    split: str | None = None
    text_column: str | None = None
    targets_file: Path | None = None
    limit: int | None = 32
    max_seq_len: int | Literal["auto"] = 128
    dec_max_len: int = 64
    codec: Literal["none", "zstd", "lz4"] = "none"
    attn_codec: Literal["exact", "sqrt8"] = "exact"
    patterns: Literal["stored", "recipe"] = "stored"
    shard_examples: int | None = None
    batch_tokens: int | Literal["auto"] | None = None
    writer: tuple[int, int] = (0, 1)

    def values(self) -> tuple[Any, ...]:
        place = Place(
            folder=self.out_dir,
            resume=self.resume,
            overwrite=self.overwrite,
            writer=self.writer,
            storage=Storage(self.dtype, self.codec, self.attn_codec, self.shard_examples, patterns=self.patterns),
        )
        place.check()
        texts = read_texts(
            self.dataset,
            self.targets_file,
            split=self.split,
            text_column=self.text_column,
            limit=self.limit,
            max_seq_len=self.max_seq_len,
            dec_max_len=self.dec_max_len,
        )
        selection = self.chosen()
        return self.load(with_head=selection.needs_head), texts, selection, place


def _batches(asked: Extraction) -> dict[str, Any]:
    """How large batches are; its own size of a batch is not meant where tokens bind it."""
    return {"batch_size": asked.batch_size} if asked.batch_tokens is None else {"batch_tokens": asked.batch_tokens}


def extracted(asked: Extraction, progress: OnProgress = quiet) -> Path:
    """Returns the folder of the run."""
    folder = extract(*asked.values(), **_batches(asked), progress=progress).folder
    assert folder is not None
    return folder


def estimated(asked: Extraction) -> Estimate:
    return estimate(*asked.values(), **_batches(asked))


@dataclass(frozen=True, kw_only=True)
class Answers(_Recording):
    experiment: Path | None = None
    prompt: str | None = None
    prompts: Path | None = None
    prompt_set: str | None = None
    all_prompt_sets: bool = False
    category: str | None = None
    chat: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 42
    replay: bool = False
    capture_steps: bool = False

    def read(self) -> Prompts:
        if self.prompt is not None:
            sets = (one_prompt(self.prompt),)
        elif self.prompts is not None:
            sets = (load_prompts(self.prompts),)
        else:
            sets = all_prompt_sets() if self.prompt_set is None else (load_prompt_set(self.prompt_set),)
        return Prompts(sets, self.chat, self.category)


def answered(
    asked: Answers,
    progress: OnProgress = quiet,
    *,
    loaded: LoadedModel | None = None,
    on_text: Callable[[str], None] | None = None,
    on_response: Callable[[Any], None] = quiet,
) -> Path:
    """Returns the folder of the run."""
    place = Place(
        folder=asked.out_dir,
        parent=asked.experiment,
        resume=asked.resume,
        overwrite=asked.overwrite,
        storage=Storage(asked.dtype),
    )
    place.check()
    run = answer(
        loaded or asked.load(with_head=True),
        asked.read(),
        asked.chosen(),
        place,
        sampling=replace(asked.sampling, seed=asked.seed),
        batch_size=asked.batch_size,
        replay=asked.replay,
        capture_steps=asked.capture_steps,
        progress=progress,
        on_text=on_text,
        on_response=on_response,
    )
    assert run.folder is not None
    return run.folder
