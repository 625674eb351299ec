"""Measures what recording a generation costs over the same generation without it, in the same run.

    python benchmarks/generate.py [--json FILE] [--folder FOLDER] [--turns 7] [--quick]

GPT-2 small's shape with random weights, on the CPU, greedily, patterns of all heads, the residual stream and MLP
outputs. Every turn times all ways once, next to each other; each figure is the median of the turns' ratios to plain
`generate`. Ours ends with a finished run on the disk, theirs with `torch.save` of the same numbers in float16.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from extract import make_model, make_texts
from table import Row, delete, in_turn, main, row, seconds

CAPTURE = ("attn", "resid", "mlp_out")
PROMPT_TOKENS = 31


class Bench:
    """One model, and ways to let it continue prompts."""

    def __init__(self, folder: Path, model: Path) -> None:
        from traceformer.models.load import load_model

        self.folder = folder
        self.loaded = load_model(str(model), device="cpu", with_head=True)
        self.prompts = make_texts(folder / "one.txt", 1, PROMPT_TOKENS)
        self.out = folder / "run"

    def recording(
        self, tokens: int, prompts: Path | None = None, capture: tuple[str, ...] = CAPTURE, **how: Any
    ) -> Callable[[], object]:
        from traceformer.capture.generation.generate import generate
        from traceformer.progress import quiet

        settings = {"max_tokens": tokens, "temperature": 0.0, "more": {"eos_token_id": None}, "overwrite": True} | how
        return lambda: generate(self.loaded, prompts or self.prompts, capture, out=self.out, progress=quiet, **settings)

    def plain(self, tokens: int, **more: Any) -> Any:
        import torch
        from transformers import GenerationConfig

        ids = torch.tensor([self.loaded.tokenizer(self.prompts.read_text())["input_ids"]])
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0, **more)
        return self.loaded.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)

    def output_attentions(self, tokens: int) -> None:
        """Hugging Face's own way: eager attention, everything returned by `generate`."""
        model = self.loaded.model
        model.set_attn_implementation("eager")
        wanted = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
        out = self.plain(tokens, **wanted)
        model.set_attn_implementation("sdpa")
        self._save({"attentions": _halves(out.attentions), "hidden_states": _halves(out.hidden_states)})

    def context_again(self, tokens: int) -> None:
        """The Gemma capture's way: no cache, the whole context anew for every token, and its square kept each time."""
        import torch

        model = self.loaded.model
        model.set_attn_implementation("eager")
        ids = torch.tensor([self.loaded.tokenizer(self.prompts.read_text())["input_ids"]])
        steps: list[Any] = []
        with torch.inference_mode():
            for _ in range(tokens):
                out = model(ids, use_cache=False, output_attentions=True, output_hidden_states=True, logits_to_keep=1)
                last = [hidden[:, -1:] for hidden in out.hidden_states]
                steps.append({"attentions": _halves(out.attentions), "hidden_states": _halves(last)})
                ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=1)
        model.set_attn_implementation("sdpa")
        self._save(steps)

    def delete(self) -> None:
        """Deletes what any of the ways wrote."""
        delete(self.folder / "run", self.folder / "theirs.pt")

    def _save(self, kept: Any) -> None:
        import torch

        with (self.folder / "theirs.pt").open("wb") as file:
            torch.save(kept, file)
            file.flush()
            os.fsync(file.fileno())


def _halves(value: Any) -> Any:
    return [_halves(each) for each in value] if isinstance(value, tuple | list) else value.half()


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.zarr/**/c.*") if path.is_file())


def measure_one(bench: Bench, turns: int) -> Iterator[Row]:
    works: dict[str, Callable[[], object]] = {
        "recorded": bench.recording(64),
        "replayed": bench.recording(64, replay=True),
        "output_attentions": lambda: bench.output_attentions(64),
        "context again": lambda: bench.context_again(64),
    }
    ratios = in_turn(lambda: bench.plain(64), works, turns, between=bench.delete)
    works["recorded"]()
    ours = bytes_of(bench.folder / "run")
    yield row("31 + 64 tokens, recorded token by token / plain", ratios["recorded"], 1.08, note=f"{ours / 1e6:.1f} MB")
    yield row("  replayed: one pass over the finished text", ratios["replayed"], None, note="the same numbers")
    for name, what in (
        ("output_attentions", "  generate(output_attentions=True) + torch.save"),
        ("context again", "  context run again for every token + torch.save"),
    ):
        works[name]()
        size = (bench.folder / "theirs.pt").stat().st_size
        yield row(what, ratios[name], None, note=f"{size / 1e6:.1f} MB, no mlp_out or resid_mid")


def measure_growth(bench: Bench) -> Iterator[Row]:
    sizes: dict[int, int] = {}
    for tokens in (64, 256):
        bench.recording(tokens)()
        sizes[tokens] = bytes_of(bench.folder / "run")
    grown = sizes[256] / sizes[64]
    # 287 tokens over 95: 3.0 times the rows; 9.1 times the triangle of all patterns; 26 times the sum of squares.
    yield row("bytes of 31 + 256 tokens over those of 31 + 64", [grown], 9.2, note="rows x 3.0, triangle x 9.1")


def measure_batches(bench: Bench, quick: bool) -> Iterator[Row]:
    n, tokens = (16, 8) if quick else (50, 32)
    path = bench.folder / "many.txt"
    lines = (" ".join(f"w{1 + (i * 7919 + j * 104729) % 4999}" for j in range(8 + i % 24)) for i in range(n))
    path.write_text("\n".join(lines), encoding="utf-8")
    batched, single = (bench.recording(tokens, prompts=path, batch_size=size) for size in (8, 1))
    ratios: list[float] = []
    for _ in range(1 if quick else 3):
        took: list[float] = []
        for way in (single, batched):
            bench.delete()
            took.append(seconds(way))
        ratios.append(took[0] / took[1])
    yield row(f"{n} prompts x {tokens} tokens: one by one / batches of 8", ratios, 3, at_least=True)


def measure(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    bench = Bench(folder, make_model(folder / "gpt2-shape"))
    yield from measure_one(bench, 1 if quick else turns)
    yield from measure_growth(bench)
    yield from measure_batches(bench, quick)


if __name__ == "__main__":
    main(__doc__, measure, threads=os.cpu_count())
