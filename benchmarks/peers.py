"""Measures what other packages take to record what `extract.py` records, where they are installed.

    pip install transformer-lens torchlens
    python benchmarks/peers.py [--json FILE] [--folder FOLDER] [--quick]

One batch of 8 x 128 tokens of GPT-2 small's shape: patterns, queries, keys, values and the residual stream in float16,
against the plain forward pass (SDPA) of the same turn. Ours is a whole run of that one batch. Loading and wrapping the
model is not timed.
"""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from extract import Bench, make_model
from table import Row, delete, in_turn, main, row

CAPTURE = ("attn", "qkv", "resid")


def transformer_lens(bench: Bench, model: Path, out: Path) -> Callable[[], object]:
    """`run_with_cache` of the hooks that are our sites, and `torch.save`."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]

    bridge = TransformerBridge.boot_transformers(str(model), device="cpu")
    names = ("q", "k", "v", "pattern", "embed", "resid_pre", "resid_mid", "resid_post")
    wanted = tuple(f"hook_{name}" for name in names)

    def record() -> None:
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(bench.ids, names_filter=lambda name: name.endswith(wanted))
        with (out / "cache.pt").open("wb") as file:
            torch.save({name: tensor.half() for name, tensor in cache.items()}, file)
            file.flush()
            os.fsync(file.fileno())

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
    return lambda: tl.extract_dataset(eager, bench.ids, wanted, output_dir=out / "extracted", **settings)


PEERS = {"transformer_lens": transformer_lens, "torchlens": torchlens}


def measure(folder: Path, quick: bool) -> Iterator[Row]:
    model = make_model(folder / "gpt2-shape")
    bench = Bench(folder, model, 8, 128, 1)
    out = folder / "theirs"
    out.mkdir()
    installed = {name: make for name, make in PEERS.items() if find_spec(name)}
    works = {"traceformer": bench.recording(CAPTURE)} | {n: make(bench, model, out) for n, make in installed.items()}

    def between() -> None:
        bench.delete()
        delete(*out.iterdir())

    ratios = in_turn(bench.plain, works, 1 if quick else 5, between)
    for name, values in ratios.items():
        between()
        works[name]()
        written = sum(
            path.stat().st_size for place in (folder / "run", out) for path in place.rglob("*") if path.is_file()
        )
        yield row(f"8 x 128: {name} / plain", values, None, note=f"{written / 1e6:.0f} MB")


if __name__ == "__main__":
    main(__doc__, measure, threads=os.cpu_count())
