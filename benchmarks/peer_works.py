"""What other packages do to record what `extract.py` records; runs in an environment that has one of them.

    python benchmarks/peer_works.py NAME MODEL FOLDER TURNS

`peers.py` makes the environments, and reads what this prints last: for each line of the table what was measured, the
ratios to the plain forward pass (SDPA, nothing recorded) of the same turn, and the bytes that were written. Loading and
wrapping the model is not timed. No package of this one is needed but the two files beside it, and `traceformer.heap`.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from extract import HEADS_3X3
from table import delete, in_turn
from transformers import GPT2LMHeadModel, GPT2Model

from traceformer.heap import keep_freed_memory


class Work(NamedTuple):
    """One line of the table: what is recorded, the plain pass beside it, and what records and saves it."""

    what: str
    plain: Callable[[], object]
    record: Callable[[], object]


def ids_of(batch: int, n_tokens: int) -> torch.Tensor:
    return torch.randint(0, 5000, (batch, n_tokens))


def plain_pass(model: Any, ids: torch.Tensor) -> Callable[[], object]:
    """The model's blocks with SDPA; no head."""

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)

    return run


def save(kept: Any, path: Path) -> None:
    with path.open("wb") as file:
        torch.save(kept, file)
        file.flush()
        os.fsync(file.fileno())


def transformer_lens(model: str, out: Path) -> Iterator[Work]:
    """`run_with_cache` of the hooks that are our sites, and `torch.save`."""
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]

    ids = ids_of(8, 128)
    bridge = TransformerBridge.boot_transformers(model, device="cpu")
    names = ("q", "k", "v", "pattern", "embed", "resid_pre", "resid_mid", "resid_post")
    wanted = tuple(f"hook_{name}" for name in names)

    def record() -> None:
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name.endswith(wanted))
        save({name: tensor.half() for name, tensor in cache.items()}, out / "cache.pt")

    plain = plain_pass(GPT2Model.from_pretrained(model).eval(), ids)
    yield Work("8 x 128: TransformerLens, run_with_cache + torch.save", plain, record)


def nnsight(model: str, out: Path) -> Iterator[Work]:
    """A trace that saves what our sites are, of eager attention, and `torch.save`."""
    from nnsight import NNsight  # pyright: ignore[reportMissingImports]

    ids = ids_of(8, 128)
    eager = GPT2Model.from_pretrained(model, attn_implementation="eager").eval()
    wrapped = NNsight(eager)

    def record() -> None:
        kept: list[Any] = []
        with torch.inference_mode(), wrapped.trace(input_ids=ids, use_cache=False):
            for block in wrapped.h:
                kept.append(block.input.save())
                kept.append(block.attn.c_attn.output.save())
                kept.append(block.attn.output[1].save())
                kept.append(block.ln_2.input.save())
                kept.append(block.output.save())
        tensors = [each[0] if isinstance(each, tuple) else each for each in kept]
        save([each.half() for each in tensors], out / "traced.pt")

    plain = plain_pass(GPT2Model.from_pretrained(model).eval(), ids)
    yield Work("8 x 128: nnsight, a trace of these + torch.save", plain, record)


def torchlens(model: str, out: Path) -> Iterator[Work]:
    """`extract_dataset` of softmaxes, of the split projection, and of what enters each norm: the residual stream."""
    import torchlens as tl  # pyright: ignore[reportMissingImports]

    ids = ids_of(8, 128)
    eager = GPT2Model.from_pretrained(model, attn_implementation="eager").eval()
    layers = tl.trace(eager, ids[:1]).layer_list
    wanted = [layer.layer_label for layer in layers if layer.func_name in ("softmax", "split")]
    wanted += sorted({parent for layer in layers if layer.func_name == "layer_norm" for parent in layer.parents})
    settings = {"batch_size": len(ids), "dtype": torch.float16, "progress": False}
    record = partial(tl.extract_dataset, eager, ids, wanted, output_dir=out / "extracted", **settings)
    plain = plain_pass(GPT2Model.from_pretrained(model).eval(), ids)
    yield Work("8 x 128: torchlens, extract_dataset to safetensors", plain, record)


def attnread(model: str, out: Path) -> Iterator[Work]:
    """The patterns of 3 x 3 heads, and `torch.save`; it runs the whole model with its head."""
    from attnread import extract_attention  # pyright: ignore[reportMissingImports]

    whole = GPT2LMHeadModel.from_pretrained(model).eval()
    layers, heads = (HEADS_3X3[axis]["dec"] for axis in ("layers", "heads"))
    chosen = [(layer, head) for layer in layers for head in heads]
    for n_tokens in (128, 256, 512, 1024):
        ids = ids_of(1, n_tokens)

        def record(ids: torch.Tensor = ids) -> None:
            found = extract_attention(whole, {"input_ids": ids}, chosen)
            save({name: pattern.half() for name, pattern in found.items()}, out / "patterns.pt")

        what = f"1 x {n_tokens}: attnread, patterns of 3 layers x 3 heads + torch.save"
        yield Work(what, plain_pass(whole.transformer, ids), record)


def transformers(model: str, out: Path) -> Iterator[Work]:
    """Eager attention, everything returned, and `torch.save`."""
    eager = GPT2Model.from_pretrained(model, attn_implementation="eager").eval()
    usual = GPT2Model.from_pretrained(model).eval()
    for batch, n_tokens in ((8, 128), (2, 1024)):
        ids = ids_of(batch, n_tokens)

        def record(ids: torch.Tensor = ids) -> None:
            with torch.inference_mode():
                made = eager(input_ids=ids, use_cache=False, output_attentions=True, output_hidden_states=True)
            kept = {"attentions": made.attentions, "hidden_states": made.hidden_states}
            save({name: [each.half() for each in values] for name, values in kept.items()}, out / "outputs.pt")

        what = f"{batch} x {n_tokens}: Hugging Face eager, attentions and hidden states + torch.save"
        yield Work(what, plain_pass(usual, ids), record)


WORKS = {work.__name__: work for work in (transformer_lens, nnsight, torchlens, attnread, transformers)}


def measure(name: str, model: str, out: Path, turns: int) -> Iterator[dict[str, Any]]:
    """Yields a line of the table after the other, as JSON has it."""
    for what, plain, record in WORKS[name](model, out):
        ratios = in_turn(plain, {"record": record}, turns, between=lambda: delete(*out.iterdir()))
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        yield {"what": what, "ratios": asdict(ratios["record"]), "written": written}
        delete(*out.iterdir())


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    found = [*measure(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))]
    print(json.dumps(found))
