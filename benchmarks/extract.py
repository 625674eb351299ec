"""Measures what recording costs over the plain forward pass of the same module, in the same run.

    python benchmarks/extract.py [--json FILE] [--folder FOLDER] [--quick]

GPT-2 small's shape with random weights, on the CPU. One extraction of several batches, committed durably, is timed
against as many plain passes (SDPA, no head, nothing recorded, nothing written), turn by turn; what an earlier turn
wrote is deleted beforehand, untimed. Each figure is the median of five such ratios. Memory is the peak of a process of
its own, above that of one that only runs the model.
"""

import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from table import Row, delete, in_process, main, row, seconds

if TYPE_CHECKING:
    from traceformer.capture.extract import Prepared
    from traceformer.capture.tokenizing import Texts
    from traceformer.sites import Selection

REPEATS = 5
EVERYTHING = ("attn", "qkv", "hidden", "resid")
SHAPES = ((8, 128, 8), (2, 1024, 3))  # texts of a batch, tokens of a text, batches
HEADS_3X3 = {"layers": {"dec": (0, 5, 11)}, "heads": {"dec": (0, 1, 7)}}


def make_model(folder: Path) -> Path:
    """Writes GPT-2 small's shape with random weights, and a tokenizer of one token per word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
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

    def __init__(self, folder: Path, model: Path, batch: int, n_tokens: int, n_batches: int) -> None:
        import torch

        from traceformer.models.load import load_model

        self.folder, self.n_batches = folder, n_batches
        self.texts = make_texts(folder / f"texts-{batch}x{n_tokens}.txt", batch * n_batches, n_tokens)
        self.batch, self.n_tokens = batch, n_tokens
        self.loaded = load_model(str(model), device="cpu")
        self.ids = torch.randint(0, 5000, (batch, n_tokens))

    def plain(self) -> None:
        import torch

        model = self.loaded.model.base_model
        with torch.inference_mode():
            for _ in range(self.n_batches):
                model(input_ids=self.ids, use_cache=False)

    def recording(self, capture: tuple[str, ...], **selected: object) -> Callable[[], object]:
        from traceformer.capture.extract import extract
        from traceformer.store.place import Place

        texts, selection = self._asked(capture, **selected)
        place = Place(folder=self.folder / "run", overwrite=True)
        return lambda: extract(self.loaded, texts, selection, place, batch_size=self.batch)

    def prepared(self, capture: tuple[str, ...], **selected: object) -> "Prepared":
        """Returns what such a recording knows before its first batch."""
        from traceformer.capture.extract import prepare
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


def in_turn(
    plain: Callable[[], object],
    others: dict[str, Callable[[], object]],
    repeats: int,
    between: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Returns, for each of `others`, its time over the plain pass's in the same turn; the first turn warms up.

    `between` is called before each of `others`, and is not timed.
    """
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for turn in range(repeats + 1):
        base = seconds(plain)
        for name, work in others.items():
            between()
            took = seconds(work)
            if turn:
                ratios[name].append(took / base)
    return ratios


def measure_time(folder: Path, model: Path, quick: bool) -> Iterator[Row]:
    repeats = 1 if quick else REPEATS
    for (batch, n_tokens, n_batches), bounds in zip(SHAPES, ((1.25, 1.05), (1.4, 1.05)), strict=True):
        bench = Bench(folder, model, batch, n_tokens, n_batches)
        shape = f"{batch} x {n_tokens}"
        works: dict[str, Callable[[], object]] = {
            "everything": bench.recording(EVERYTHING),
            "heads": bench.recording(("attn",), **HEADS_3X3),
            "hf": bench.output_attentions,
        }
        ratios = in_turn(bench.plain, works, repeats, between=bench.delete)
        works["everything"]()
        mine = size_of(folder, "run/**/c.*") / n_batches / 1e6
        theirs = size_of(folder, "hf-*.pt") / n_batches / 1e6
        yield row(
            f"{shape}: attn qkv hidden resid / plain", ratios["everything"], bounds[0], note=f"{mine:.0f} MB a batch"
        )
        yield row(f"{shape}: attn of 3 layers x 3 heads / plain", ratios["heads"], bounds[1])
        note = f"{theirs:.0f} MB a batch: attentions and hidden states only"
        yield row(f"{shape}: output_attentions + torch.save / plain", ratios["hf"], None, note=note)
        bench.delete()


PEAK = """
import warnings
from pathlib import Path
from extract import Bench, EVERYTHING, HEADS_3X3
from table import memory
warnings.simplefilter("ignore")
bench = Bench(Path({folder!r}), Path({model!r}), {batch}, {n_tokens}, {n_batches})
{work}
print(memory("VmHWM"))
"""


def peak(folder: Path, model: Path, batch: int, n_tokens: int, n_batches: int, work: str) -> float:
    """Returns the peak memory of a process that does `work`, in bytes."""
    shape = {"batch": batch, "n_tokens": n_tokens, "n_batches": n_batches}
    return in_process(PEAK.format(folder=str(folder), model=str(model), work=work, **shape))


def measure_memory(folder: Path, model: Path, quick: bool) -> Iterator[Row]:
    repeats = 1 if quick else REPEATS
    everything, heads = "bench.recording(EVERYTHING)()", "bench.recording(('attn',), **HEADS_3X3)()"

    def above(batch: int, n_tokens: int, n_batches: int, work: str) -> list[float]:
        def peaks(work: str) -> list[float]:
            return [peak(folder, model, batch, n_tokens, n_batches, work) for _ in range(repeats)]

        plain = statistics.median(peaks("bench.plain()"))
        return [(each - plain) / 1e6 for each in peaks(work)]

    yield row("8 x 128: MB above plain, everything", above(8, 128, 6, everything), 600)
    asked = 2 * 9 * 1024 * 1024 * 2 / 1e6
    selected = [value / asked for value in above(2, 1024, 4, heads)]
    yield row("2 x 1024: memory over the bytes asked for, 3 x 3 heads", selected, 2, note=f"{asked:.0f} MB asked for")
    few = statistics.median(peak(folder, model, 8, 128, 10, everything) for _ in range(repeats))
    many = 20 if quick else 100
    grown = peak(folder, model, 8, 128, many, everything) / few
    yield row(f"8 x 128: peak of {many} batches over that of 10, everything", [grown], 1.02)


def measure(folder: Path, quick: bool) -> Iterator[Row]:
    model = make_model(folder / "gpt2-shape")
    yield from measure_time(folder, model, quick)
    yield from measure_memory(folder, model, quick)


if __name__ == "__main__":
    main(__doc__, measure, threads=os.cpu_count())
