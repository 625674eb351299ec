"""Measures what recording costs over the plain forward pass of the same module, in the same run.

    python benchmarks/extract.py [--json FILE] [--folder FOLDER] [--turns 7] [--quick]

GPT-2 small's shape with random weights and room for 4,096 positions, on the CPU. One extraction of several batches,
committed durably, is timed against as many plain passes (SDPA, no head, nothing recorded, nothing written), turn by
turn; what an earlier turn wrote is deleted beforehand, untimed. A figure is the median of the turns' ratios, by the
clock and in processor seconds.

Memory is measured in processes of their own: the peak above one that only runs the model, with one malloc arena and
fixed thresholds; and what is ours, counted: mapped memory, what Python and numpy allocate, and by how much the most
that torch holds at once exceeds a plain pass's.
"""

import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from table import ONE_ARENA, Row, delete, in_process, in_turn, main, row

if TYPE_CHECKING:
    from traceformer.capture.prepared import Prepared
    from traceformer.capture.tokenizing import Texts
    from traceformer.sites import Selection
    from traceformer.store.recipes import Patterns

EVERYTHING = ("attn", "qkv", "hidden", "resid")
SHAPES = ((8, 128, 8), (2, 1024, 3), (1, 4096, 2))  # texts of a batch, tokens of a text, batches
BY_RECIPE = (2, 1024, (3, 12))  # what a run begins and ends with weighs less in twelve batches
HEADS_3X3 = {"layers": {"dec": (0, 5, 11)}, "heads": {"dec": (0, 1, 7)}}
POSITIONS = 4096


def make_model(folder: Path, positions: int = POSITIONS, **changes: int) -> Path:
    """Writes GPT-2 small's shape with random weights, and a tokenizer of one token per word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_positions=positions, **changes)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, **{f"w{i}": i for i in range(1, 5000)}}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<end>").save_pretrained(folder)
    return folder


def make_texts(path: Path, n_texts: int, n_tokens: int) -> Path:
    lines = (" ".join(f"w{1 + (i * 7919 + j * 104729) % 4999}" for j in range(n_tokens)) for i in range(n_texts))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


class Bench:
    """One shape of batch: a plain pass, and extractions with different selections."""

    def __init__(self, folder: Path, model: Path | str, batch: int, n_tokens: int, n_batches: int) -> None:
        import torch

        from traceformer.models.load import load_model

        self.folder, self.n_batches = folder, n_batches
        self.texts = make_texts(folder / f"texts-{batch}x{n_tokens}.txt", batch * n_batches, n_tokens)
        self.batch, self.n_tokens = batch, n_tokens
        self.loaded = load_model(str(model), device="cpu")
        self.ids = torch.randint(0, min(5000, self.loaded.model.config.vocab_size), (batch, n_tokens))

    def plain(self) -> None:
        import torch

        model = self.loaded.model.base_model
        with torch.inference_mode():
            for _ in range(self.n_batches):
                model(input_ids=self.ids, use_cache=False)

    def recording(
        self, capture: tuple[str, ...], patterns: "Patterns" = "stored", **selected: object
    ) -> Callable[[], object]:
        """Returns what makes a run on the disk."""
        return self._extraction(self.folder / "run", capture, patterns, **selected)

    def in_memory(self, capture: tuple[str, ...], **selected: object) -> Callable[[], object]:
        return self._extraction(None, capture, **selected)

    def _extraction(
        self, folder: Path | None, capture: tuple[str, ...], patterns: "Patterns" = "stored", **selected: object
    ) -> Callable[[], object]:
        from traceformer.capture.extract import extract
        from traceformer.store.place import Place, Storage

        texts, selection = self._asked(capture, **selected)
        place = Place(folder=folder, overwrite=folder is not None, storage=Storage(patterns=patterns))
        return lambda: extract(self.loaded, texts, selection, place, batch_size=self.batch)

    def prepared(self, capture: tuple[str, ...], **selected: object) -> "Prepared":
        """Returns what such a recording knows before its first batch."""
        from traceformer.capture.prepared import prepare
        from traceformer.store.place import Storage

        return prepare(self.loaded, *self._asked(capture, **selected), Storage())

    def _asked(self, capture: tuple[str, ...], **selected: object) -> "tuple[Texts, Selection]":
        from traceformer.capture.extract import read_texts
        from traceformer.sites import Selection

        selection = Selection(capture, **selected)  # pyright: ignore[reportArgumentType]
        return read_texts(self.texts, max_seq_len=self.n_tokens), selection

    def output_attentions(self) -> None:
        """Hugging Face's own way: eager attention, everything returned, `torch.save`."""
        import torch

        model = self.loaded.model.base_model
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            for number in range(self.n_batches):
                out = model(input_ids=self.ids, use_cache=False, output_attentions=True, output_hidden_states=True)
                kept = {"attentions": out.attentions, "hidden_states": out.hidden_states}
                with (self.folder / f"hf-{number}.pt").open("wb") as file:
                    torch.save({name: [each.half() for each in values] for name, values in kept.items()}, file)
                    file.flush()
                    os.fsync(file.fileno())
        model.set_attn_implementation("sdpa")

    def delete(self) -> None:
        """Deletes what any of the ways wrote."""
        delete(self.folder / "run", *self.folder.glob("hf-*.pt"))


def size_of(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def measure_time(folder: Path, model: Path, turns: int, quick: bool) -> Iterator[Row]:
    everything = {(8, 128): (1.15, 116), (2, 1024): (1.30, 430)}  # time over plain, MB a batch
    for batch, n_tokens, n_batches in SHAPES:
        n_batches = 1 if quick else n_batches
        bench = Bench(folder, model, batch, n_tokens, n_batches)
        shape = f"{batch} x {n_tokens}"
        works: dict[str, Callable[[], object]] = {"heads": bench.recording(("attn",), **HEADS_3X3)}
        if (batch, n_tokens) in everything:
            works |= {"everything": bench.recording(EVERYTHING), "hf": bench.output_attentions}
        ratios = in_turn(bench.plain, works, turns, between=bench.delete)
        yield row(f"{shape}: attn of 3 layers x 3 heads / plain", ratios["heads"], 1.03)
        if "everything" in works:
            time, megabytes = everything[batch, n_tokens]
            works["everything"]()
            mine = size_of(folder, "run/**/c.*") / n_batches / 1e6
            theirs = size_of(folder, "hf-*.pt") / n_batches / 1e6
            yield row(f"{shape}: attn qkv hidden resid / plain", ratios["everything"], time)
            yield row(f"{shape}: MB on disk of it, a batch", [mine], megabytes)
            note = f"{theirs:.0f} MB a batch: attentions and hidden states only"
            yield row(f"{shape}: output_attentions + torch.save / plain", ratios["hf"], None, note=note)
        bench.delete()


def measure_recipe(folder: Path, model: Path, turns: int, quick: bool) -> Iterator[Row]:
    batch, n_tokens, batches = BY_RECIPE
    what = f"{batch} x {n_tokens}: attn qkv hidden resid, patterns by recipe"
    for n_batches in (1,) if quick else batches:
        bench = Bench(folder, model, batch, n_tokens, n_batches)
        work = bench.recording(EVERYTHING, "recipe")
        ratios = in_turn(bench.plain, {"recipe": work}, turns, between=bench.delete)
        yield row(f"{what}, {n_batches} batches / plain", ratios["recipe"], 1.10)
        size = size_of(folder, "run/**/c.*") / n_batches / 1e6
        yield row(f"{what}, {n_batches} batches: MB on disk of a batch", [size], 280)
        bench.delete()


WORK = """
import warnings
from pathlib import Path
from counting import OurMemory
from extract import Bench, EVERYTHING, HEADS_3X3
from table import memory
from traceformer.heap import keep_freed_memory
warnings.simplefilter("ignore")
keep_freed_memory()
bench = Bench(Path({folder!r}), Path({model!r}), {batch}, {n_tokens}, {n_batches})
{work}
"""
PEAK = 'print(memory("VmHWM"))'
ALL_OF_IT = "bench.recording(EVERYTHING)()"
HEADS = "bench.recording(('attn',), **HEADS_3X3)()"
COUNTED = f"print(OurMemory().beyond(bench.plain, lambda: {HEADS}))"


def measure_memory(folder: Path, model: Path, turns: int, quick: bool) -> Iterator[Row]:
    def in_bytes(shape: tuple[int, int, int], work: str) -> float:
        batch, n_tokens, n_batches = shape
        n_batches = min(n_batches, 2) if quick else n_batches
        how = {"batch": batch, "n_tokens": n_tokens, "n_batches": n_batches, "work": work}
        return in_process(WORK.format(folder=str(folder), model=str(model), **how), **ONE_ARENA)

    def peaks(shape: tuple[int, int, int], work: str) -> list[float]:
        return [in_bytes(shape, f"{work}\n{PEAK}") for _ in range(min(turns, 5))]

    def above(shape: tuple[int, int, int], work: str) -> list[float]:
        plain = statistics.median(peaks(shape, "bench.plain()"))
        return [(each - plain) / 1e6 for each in peaks(shape, work)]

    asked = 2 * 9 * 1024 * 1024 * 2 / 1e6  # of a batch
    note = f"{asked:.0f} MB a batch"
    counted = [in_bytes((2, 1024, 4), COUNTED) / 1e6 / asked]
    yield row("2 x 1024: memory that is ours over the bytes asked for, 3 x 3 heads", counted, 1.5, note=note)
    selected = [value / asked for value in above((2, 1024, 4), HEADS)]
    yield row("2 x 1024: peak above plain over the bytes asked for, 3 x 3 heads", selected, 2.5, note=note)
    yield row("8 x 128: MB above plain, everything", above((8, 128, 6), ALL_OF_IT), 600)
    few, many = (1, 2) if quick else (10, 100)
    grown = [
        more / less
        for more, less in zip(peaks((8, 128, many), ALL_OF_IT), peaks((8, 128, few), ALL_OF_IT), strict=True)
    ]
    yield row(f"8 x 128: peak of {many} batches over that of {few}, everything", grown, 1.03)


def measure(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    turns = 1 if quick else turns
    model = make_model(folder / "gpt2-shape")
    yield from measure_time(folder, model, turns, quick)
    yield from measure_recipe(folder, model, turns, quick)
    yield from measure_memory(folder, model, turns, quick)


if __name__ == "__main__":
    main(__doc__, measure, threads=os.cpu_count())
