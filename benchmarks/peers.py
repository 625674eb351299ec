"""Measures what other packages take to record what `extract.py` records, where they are installed.

    pip install transformer-lens    # or torchlens, nnsight, attnread: each in an environment of its own
    python benchmarks/peers.py [--only NAME] [--json FILE] [--folder FOLDER] [--quick]

One batch of 8 x 128 tokens of GPT-2 small's shape, and eight of them: patterns, queries, keys, values and the residual
stream in float16, against the plain forward pass (SDPA) of the same turn. Ours is a whole run, with what is proved
before its first batch. Loading and wrapping the model is not timed. attnread gives patterns alone,
in memory: those of 3 x 3 heads, of one text of 128 to 1,024 tokens.
"""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from extract import HEADS_3X3, Bench, make_model
from table import Row, delete, in_turn, main, row

CAPTURE = ("attn", "qkv", "resid")


def save_durably(tensors: object, path: Path) -> None:
    import torch

    with path.open("wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())


def transformer_lens(bench: Bench, model: Path, out: Path) -> Callable[[], object]:
    """`run_with_cache` of the hooks that are our sites, and `torch.save`."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]

    bridge = TransformerBridge.boot_transformers(str(model), device="cpu")
    names = ("q", "k", "v", "pattern", "embed", "resid_pre", "resid_mid", "resid_post")
    wanted = tuple(f"hook_{name}" for name in names)

    def record() -> None:
        for number in range(bench.n_batches):
            with torch.inference_mode():
                _, cache = bridge.run_with_cache(bench.ids, names_filter=lambda name: name.endswith(wanted))
            save_durably({name: tensor.half() for name, tensor in cache.items()}, out / f"cache-{number}.pt")

    return record


def torchlens(bench: Bench, model: Path, out: Path) -> Callable[[], object]:
    """`extract_dataset` of softmaxes, of the split projection, and of what enters each norm: the residual stream."""
    import torch
    import torchlens as tl  # pyright: ignore[reportMissingImports]
    from transformers import GPT2Model

    eager = GPT2Model.from_pretrained(model, attn_implementation="eager").eval()
    layers = tl.trace(eager, bench.ids[:1]).layer_list
    wanted = [layer.layer_label for layer in layers if layer.func_name in ("softmax", "split")]
    wanted += sorted({parent for layer in layers if layer.func_name == "layer_norm" for parent in layer.parents})
    settings = {"batch_size": len(bench.ids), "dtype": torch.float16, "progress": False}
    texts = bench.ids.repeat(bench.n_batches, 1)
    return lambda: tl.extract_dataset(eager, texts, wanted, output_dir=out / "extracted", **settings)


def nnsight(bench: Bench, model: Path, out: Path) -> Callable[[], object]:
    """A trace that saves patterns (under eager attention), the fused projection, and what enters each norm."""
    import torch
    from nnsight import NNsight, save  # pyright: ignore[reportMissingImports]
    from transformers import GPT2Model

    eager = GPT2Model.from_pretrained(model, attn_implementation="eager").eval()
    traced = NNsight(eager)

    def record() -> None:
        for number in range(bench.n_batches):
            with torch.inference_mode(), traced.trace(bench.ids, use_cache=False):
                kept = save([])
                for block in traced.h:
                    kept.append(block.ln_1.input)
                    kept.append(block.attn.c_attn.output)
                    kept.append(block.attn.output[1])
                    kept.append(block.ln_2.input)
                kept.append(traced.ln_f.input)
            save_durably([tensor.half() for tensor in kept], out / f"trace-{number}.pt")

    return record


PEERS = {"transformer_lens": transformer_lens, "torchlens": torchlens, "nnsight": nnsight}


def measure(folder: Path, quick: bool, only: str | None) -> Iterator[Row]:
    model = make_model(folder / "gpt2-shape")
    if only != "attnread":
        yield from everything(folder, model, quick, only)
    if only in (None, "attnread") and find_spec("attnread"):
        yield from nine_heads(folder, model, quick)


def nine_heads(folder: Path, model: Path, quick: bool) -> Iterator[Row]:
    from attnread import extract_attention  # pyright: ignore[reportMissingImports]

    heads = [(layer, head) for layer in HEADS_3X3["layers"]["dec"] for head in HEADS_3X3["heads"]["dec"]]
    for n_tokens in (128, 256, 512, 1024):
        bench = Bench(folder, model, 1, n_tokens, 1)
        whole, inputs = bench.loaded.model, {"input_ids": bench.ids}
        works = {
            "traceformer": bench.recording(("attn",), **HEADS_3X3),
            "attnread": lambda whole=whole, inputs=inputs: extract_attention(whole, inputs, heads=heads),
        }
        ratios = in_turn(bench.plain, works, 1 if quick else 5, bench.delete)
        for name, values in ratios.items():
            yield row(f"1 x {n_tokens}, 3 x 3 heads: {name} / plain", values, None)


def everything(folder: Path, model: Path, quick: bool, only: str | None) -> Iterator[Row]:
    out = folder / "theirs"
    out.mkdir()
    for n_batches in (1,) if quick else (1, 8):
        bench = Bench(folder, model, 8, 128, n_batches)
        installed = {name: make for name, make in PEERS.items() if find_spec(name) and only in (None, name)}
        works = {"traceformer": bench.recording(CAPTURE)} | {
            n: make(bench, model, out) for n, make in installed.items()
        }

        def between(bench: Bench = bench) -> None:
            bench.delete()
            delete(*out.iterdir())

        ratios = in_turn(bench.plain, works, 1 if quick else 5, between)
        for name, values in ratios.items():
            between()
            works[name]()
            written = sum(
                path.stat().st_size for place in (folder / "run", out) for path in place.rglob("*") if path.is_file()
            )
            batches = "a batch" if n_batches == 1 else f"{n_batches} batches"
            note = f"{written / n_batches / 1e6:.0f} MB a batch"
            yield row(f"{batches} of 8 x 128: {name} / plain", values, None, note=note)
        between()


if __name__ == "__main__":
    main(__doc__, measure, threads=os.cpu_count())
