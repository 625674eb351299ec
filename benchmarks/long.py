"""Measures long texts, the largest keys of each query, and head metrics that are worked out while a model runs.

    python benchmarks/long.py [--json FILE] [--folder FOLDER] [--turns 3] [--quick] [--only memory|heads|topk]

Long texts: a tiny random llama of one layer and four heads, one text of 32,768 tokens, patterns of all its heads, in a
process of its own with one malloc arena, above one that only runs the model. Head metrics and largest keys: GPT-2
small's shape with random weights, against the plain forward pass of the same texts in the same turn.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from extract import Bench, make_model, make_texts, size_of
from table import ONE_ARENA, Row, in_process, in_turn, main, row

LONG = 32_768
HEADS = 4
SHAPES = ((8, 128, 98), (2, 1024, 49))  # texts of a batch, tokens of a text, batches: 100,352 tokens each
MILLION = (8, 128, 980)  # 1,003,520 tokens, of `byte`
METRICS = 12
K = 32

WORK = """
import warnings
from pathlib import Path
from extract import Bench
from table import memory
from traceformer.heap import keep_freed_memory
warnings.simplefilter("ignore")
keep_freed_memory()
bench = Bench(Path({folder!r}), Path({model!r}), 1, {n_tokens}, 1)
{work}
print(memory("VmHWM"))
"""


def make_long_model(folder: Path, positions: int) -> Path:
    """Writes a tiny random llama of one layer and four heads, and a tokenizer of one token per word."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_model(folder, positions=64, n_layer=1, n_embd=32, n_head=2)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=positions,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def measure_memory(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    from traceformer import open_run

    n_tokens = 4096 if quick else LONG
    model = make_long_model(folder / "long-llama", n_tokens)
    make_texts(folder / f"texts-1x{n_tokens}.txt", 1, n_tokens)

    def peak(work: str) -> float:
        code = WORK.format(folder=str(folder), model=str(model), n_tokens=n_tokens, work=work)
        return in_process(code, **ONE_ARENA) / 1e6

    plain = peak("bench.plain()")
    started = time.perf_counter()
    above = [peak("bench.recording(('attn',))()") - plain]
    note = f"{time.perf_counter() - started:.0f} s, {size_of(folder / 'run', '**/c.*') / 1e9:.2f} GB on disk"
    yield row(f"T = {n_tokens}, 1 layer x {HEADS} heads: MB above the model", above, 1000, note=note)
    run = open_run(folder / "run")
    times: list[float] = []
    for number in range(50):
        first = (number * 7919) % (n_tokens - 1)
        begun = time.perf_counter()
        run.attn(0, layer=0, head=number % HEADS, queries=slice(first, first + 1))
        times.append(1000 * (time.perf_counter() - begun))
    yield row("one row of one head, ms", times, None)
    for capture, work in (("heads", "bench.recording(('heads',))()"), (f"store_topk={K}", _TOPK)):
        started = time.perf_counter()
        above = [peak(work) - plain]
        note = f"{time.perf_counter() - started:.0f} s, {size_of(folder / 'run', '**/c.*') / 1e6:.1f} MB on disk"
        yield row(f"the same, {capture}: MB above the model", above, None, note=note)


_TOPK = f"""
from traceformer.capture.topk import AttentionTopK
bench.recording(("attn",), derived=(AttentionTopK({K}),))()
"""


def measure_heads(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    model = make_model(folder / "gpt2-shape", positions=1024)
    works: list[tuple[str, Path | str, tuple[int, int, int]]] = [
        ("byte", "byte", MILLION),
        *(("GPT-2's shape", model, shape) for shape in SHAPES),
    ]
    for name, model, (batch, n_tokens, n_batches) in works:
        n_batches = 2 if quick else n_batches
        bench = Bench(folder, model, batch, n_tokens, n_batches)
        if model == "byte":  # a token is a byte, of which the words have five times too many
            lines = bench.texts.read_text(encoding="utf-8").splitlines()
            bench.texts.write_text("\n".join(line[:n_tokens].strip().ljust(n_tokens, "w") for line in lines))
        work = bench.recording(("heads",))
        ratios = in_turn(bench.plain, {"heads": work}, turns, between=bench.delete)["heads"]
        what = f"{name}, {batch} x {n_tokens}, {batch * n_tokens * n_batches:,} tokens: capture heads"
        yield row(f"{what} / plain", ratios, 1.25)
        stored = sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file())
        per_example = (stored - size_of(folder, "run/**/*.parquet")) / (batch * n_batches)
        dims = bench.loaded.dims.stacks["dec"]
        note = f"{per_example:.0f} bytes an example, of all files but the token tables"
        bound = 4 * dims.n_layers * dims.n_heads * METRICS
        yield row(f"{what}, bytes over 4 x heads x metrics", [per_example / bound], 1.1, note=note)
        bench.delete()


def measure_topk(folder: Path, turns: int, quick: bool) -> Iterator[Row]:
    from traceformer.capture.topk import AttentionTopK

    model = make_model(folder / "gpt2-shape", positions=1024)
    bench = Bench(folder, model, 2, 1024, 1 if quick else 3)
    works = {
        "topk": bench.recording(("attn",), derived=(AttentionTopK(K),)),
        "attn": bench.recording(("attn",)),
    }
    for name, ratios in in_turn(bench.plain, works, turns, between=bench.delete).items():
        works[name]()
        note = f"{size_of(folder, 'run/**/c.*') / bench.n_batches / 1e6:.0f} MB a batch"
        yield row(f"2 x 1024, all patterns, {name} / plain", ratios, None, note=note)
    bench.delete()


def measure(folder: Path, turns: int, quick: bool, only: str | None) -> Iterator[Row]:
    parts = {"memory": measure_memory, "heads": measure_heads, "topk": measure_topk}
    for name, part in parts.items():
        if only in (None, name):
            yield from part(folder, 1 if quick else turns, quick)


if __name__ == "__main__":
    main(__doc__, measure, threads=os.cpu_count(), turns=3)
