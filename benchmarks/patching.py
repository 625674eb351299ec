"""Patching and ablating against the loops that people write, and against TransformerLens.

The naive loop runs the whole model for each cell, batched the same, and its model computes the logits of all positions,
as models do. Each cell of it costs the same, so that some are timed and the others counted; ours runs them all. Ratios
are of one turn, in seconds and in processor time, on one thread. TransformerLens is timed where it can be imported, by
the loop behind its own `get_act_patch_resid_pre`, which has one row a pass; some of its cells are timed, too. Memory is
the peak above the loaded model, in a process of its own.
"""

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import ONE_ARENA, Row, in_process, main, memory, row
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import traceformer as tf
from traceformer.models.loaded import LoadedModel

TOKENS, BATCH, TEXTS = 64, 16, 64


def timed(work: Callable[[], object]) -> np.ndarray:
    """Returns seconds, and seconds of the processor."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - start, time.process_time() - used])


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config()).eval()


def naive_patches(model: Any, clean: list[int], corrupt: list[int], layer: int) -> Tensor:
    """The logit difference with each position of what enters one block patched."""
    blocks, metric = model.transformer.h, []
    source: list[Tensor] = []
    keep = blocks[layer].register_forward_pre_hook(lambda _, args: source.append(args[0].clone()))
    with torch.inference_mode():
        model(torch.tensor([clean]))
        keep.remove()
        for start in range(0, TOKENS, BATCH):

            def put(_: Any, args: Any, start: int = start) -> Any:
                rows = args[0].clone()
                for i in range(BATCH):
                    rows[i, start + i] = source[0][0, start + i]
                return (rows, *args[1:])

            hook = blocks[layer].register_forward_pre_hook(put)
            logits = model(torch.tensor([corrupt]).expand(BATCH, -1)).logits[:, -1]
            hook.remove()
            metric.append(logits[:, 5] - logits[:, 9])
    return torch.cat(metric)


def measure_patches(folder: Path, quick: bool, turns: int) -> Iterator[Row]:
    own = gpt2()
    model, n_layers = tf.load_model(own), own.config.n_layer
    clean, corrupt = np.random.default_rng(0).integers(0, 50257, size=(2, TOKENS)).tolist()
    ratios: list[np.ndarray] = []
    errors: list[float] = []
    theirs: list[np.ndarray] = []
    for turn in range(1 if quick else turns):
        found: list[tf.Effects] = []
        whole: list[Tensor] = []
        layer = (5 * turn) % n_layers
        how: dict[str, Any] = {"answer": 5, "wrong": 9, "batch_size": BATCH}
        ours = timed(lambda found=found, how=how: found.append(tf.patch(model, clean, corrupt, **how)))
        loop = timed(lambda whole=whole, layer=layer: whole.append(naive_patches(own, clean, corrupt, layer)))
        ratios.append(n_layers * loop / ours)
        metric = found[0].corrupt[0] + found[0].values[layer] * (found[0].clean[0] - found[0].corrupt[0])
        errors.append(float(np.abs(metric - whole[0].double().numpy()).max()))
        if find_spec("transformer_lens") is not None:
            loop = transformer_lens_loop(folder, own, clean, corrupt, n_cells=32)
            theirs.append(loop * n_layers * TOKENS / 32 / ours)
    what = "all layers and positions of resid_pre, GPT-2 small's shape, 64 tokens"
    for i, kind in enumerate(("seconds", "processor time")):
        values = [float(ratio[i]) for ratio in ratios]
        yield row(f"naive loop over ours: {what}, {kind}", values, 4.0, at_least=True)
        if theirs:
            others = [float(ratio[i]) for ratio in theirs]
            yield row(f"TransformerLens's loop over ours: the same, {kind}", others, 4.0, at_least=True)
    yield row("largest difference of the metric from the naive loop's", errors, 1e-5)


def transformer_lens_loop(
    folder: Path, own: GPT2LMHeadModel, clean: list[int], corrupt: list[int], *, n_cells: int
) -> np.ndarray:
    """The time of some cells of its sweep."""
    import pandas as pd
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    from traceformer.bytelm.tokenizer import ByteTokenizer

    own.save_pretrained(folder)
    ByteTokenizer().save_pretrained(folder)  # it asks for one, and reads no text
    copy = GPT2LMHeadModel.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = TransformerBridge.boot_transformers(str(folder), hf_model=copy, tokenizer=tokenizer)
    with torch.inference_mode():
        _, cache = theirs.run_with_cache(torch.tensor([clean]))
        cells = pd.DataFrame({"layer": [i % 12 for i in range(n_cells)], "pos": [2 * i for i in range(n_cells)]})
        return timed(
            lambda: patching.generic_activation_patch(
                theirs,
                torch.tensor([corrupt]),
                cache,
                lambda logits: logits[0, -1, 5] - logits[0, -1, 9],
                patching.layer_pos_patch_setter,
                "resid_pre",
                index_df=cells,
            )
        )


def naive_ablations(model: Any, layers: Any, projection: str, texts: Tensor, heads: list[tuple[int, int]]) -> float:
    """The loss of all texts without each of some heads."""
    d_head, losses = model.config.hidden_size // model.config.num_attention_heads, 0.0
    with torch.inference_mode():
        for layer, head in heads:

            def drop(_: Any, args: Any, head: int = head) -> Any:
                rows = args[0].clone()
                rows[..., head * d_head : (head + 1) * d_head] = 0
                return (rows,)

            hook = layers[layer].get_submodule(projection).register_forward_pre_hook(drop)
            for part in texts.split(BATCH):
                losses += float(model(part, labels=part).loss)
            hook.remove()
    return losses


def measure_ablations(folder: Path, quick: bool, turns: int) -> Iterator[Row]:
    small, byte = gpt2(), tf.load_model("byte")
    held = tf.load_model(small)
    cases: list[tuple[str, LoadedModel, Any, str, int, float]] = [
        # Of GPT-2's shape a fourth of the texts and of the heads: the whole would take an hour.
        ("GPT-2 small's shape", held, small.transformer.h, "attn.c_proj", 16, 0.75),
        ("byte", byte, byte.model.model.layers, "self_attn.o_proj", TEXTS, 0.65),
    ]
    for name, model, layers, projection, n_texts, target in cases:
        texts = torch.from_numpy(np.random.default_rng(1).integers(0, 256, size=(n_texts, TOKENS)))
        chosen = range(3) if model is held else range(8)
        heads = [(layer, head) for layer in range(len(layers)) for head in chosen]
        ratios: list[np.ndarray] = []
        for _ in range(1 if quick else turns):
            some = heads[:: 4 if model is held else 1]
            ours = timed(lambda: tf.ablate(model, texts.tolist(), how="zero", heads=list(chosen), batch_size=BATCH))  # noqa: B023
            loop = timed(lambda: naive_ablations(model.model, layers, projection, texts, some))  # noqa: B023
            ratios.append(ours / (loop * len(heads) / len(some)))
        for i, kind in enumerate(("seconds", "processor time")):
            values = [float(ratio[i]) for ratio in ratios]
            yield row(f"ours over the naive loop: heads ablated, loss, {n_texts} texts, {name}, {kind}", values, target)


def print_peak(n_pairs: int) -> None:
    """Prints by how many bytes a sweep over so many pairs, four at a time, raises the peak of this process."""
    from traceformer.texts.contrasts import load_contrasts

    torch.set_num_threads(1)
    model, contrasts = tf.load_model("byte"), load_contrasts("repeats")
    pairs = [
        {name: getattr(contrasts[n % len(contrasts)], name) for name in ("clean", "corrupt", "answer", "wrong")}
        for n in range(n_pairs)
    ]
    how: dict[str, Any] = {"layers": [2], "batch_size": 4}
    tf.patch(model, pairs=pairs[:1], **how)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = memory("VmRSS")
    tf.patch(model, pairs=pairs, **how)
    print(memory("VmHWM") - before)


def measure_memory(quick: bool) -> Iterator[Row]:
    sizes = (5, 50) if quick else (5, 50, 500)
    peaks = [in_process(f"import patching; patching.print_peak({n})", **ONE_ARENA) for n in sizes]
    added = (peaks[-1] - peaks[-2]) / (sizes[-1] - sizes[-2]) / 1024
    note = ", ".join(f"{n} pairs: {peak / 2**20:.1f} MiB" for n, peak in zip(sizes, peaks, strict=True))
    # Its tokens and effects; the activations of one pair would be 600 KiB.
    yield row("patching, byte: KiB that each further pair of 36 tokens adds to the peak", [added], 32, note=note)


if __name__ == "__main__":
    main(__doc__, measure_patches, measure_ablations, measure_memory, threads=1)
