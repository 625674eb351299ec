"""Small runs with known content: every number is a pure function of its array, example and the seed.

`python -m tests.store.runs FOLDER [--writer w W]` writes one, or resumes it, in a process that a test can kill.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import pyarrow as pa

from traceformer import TraceStore
from traceformer.errors import NotFound, RunExists
from traceformer.sites import ArrayKey, ArraySpec, Stack
from traceformer.store.buffer import ShardBuffer
from traceformer.store.layout import RunLayout
from traceformer.store.recipes import Bias, LayerRecipe, Recipe, Seen, operands_of
from traceformer.store.writer import RunWriter

DIMS = {stack: {"n_layers": 6, "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "d_model": 24} for stack in ("enc", "dec")}
META: dict[str, Any] = {"run_id": "run", "model": "tiny", "dims": DIMS}
DIGEST: dict[str, Any] = {"model": "tiny", "sites": ["attn", "q"], "batch_size": 8}

LAYERS, HEADS, KV_HEADS = (1, 4), (0, 2, 3), (0, 1)


def spec(key: str) -> ArraySpec:
    """Returns an array of the tiny model: layers 1 and 4 of 6, heads 0, 2 and 3 of 4, both kv_heads."""
    parsed = ArrayKey.parse(key)
    axes = ArraySpec(parsed).site.axes
    layers = tuple(range(7)) if axes[0] == "hidden_layer" else LAYERS if axes[0] == "layer" else ()
    heads = KV_HEADS if "kv_head" in axes else HEADS if "head" in axes else ()
    width = {"d_head": 8, "d_latent": 4, "d_model": 24, "d_mlp": 40, "d_vocab": 60, "rank": 3, "label": 5, "key": 0}[
        axes[-1]
    ]
    return ArraySpec(parsed, layers, heads, width)


OWN_SITES = ("hidden", "embed", "resid_mid", "mlp_norm", "final_norm", "mlp_up", "mlp_down", "mlp_out")
ATTENTION_SITES = ("attn_pattern", "q", "k", "v", "z", "attn_norm", "attn_out")

ENC = tuple(spec(f"enc.{s}") for s in OWN_SITES) + tuple(spec(f"enc.self.{s}") for s in ATTENTION_SITES)
DEC = (
    *(spec(f"dec.{s}") for s in (*OWN_SITES, "logits", "class_logits", "token_embed", "lens_topk", "lens_topk_prob")),
    *(spec(f"dec.self.{s}") for s in (*ATTENTION_SITES, "attn_scores", "k_proj")),
)
CROSS = tuple(spec(f"dec.cross.{s}") for s in ATTENTION_SITES)
ARRAYS: Mapping[str, tuple[ArraySpec, ...]] = {"enc": ENC, "dec": DEC, "encdec": (*ENC, *DEC, *CROSS)}
FEW = (spec("dec.self.attn_pattern"), spec("dec.self.q"), spec("dec.self.k"), spec("dec.resid_mid"), spec("dec.embed"))

LONGEST: Mapping[str, Mapping[Stack, int]] = {"enc": {"enc": 70}, "dec": {"dec": 70}, "encdec": {"enc": 70, "dec": 40}}


def plan(arch: str = "dec", arrays: Sequence[ArraySpec] | None = None, **options: Any) -> RunLayout:
    """Returns the layout of a small run: 11 examples in shards of 4 unless said otherwise."""
    chosen = {"n_examples": 11, "shard_examples": 4, "longest": LONGEST[arch], **options}
    return RunLayout.plan(arch=arch, arrays=arrays or ARRAYS[arch], **chosen)  # pyright: ignore[reportArgumentType]


def plan_by_recipe(**options: Any) -> RunLayout:
    """Returns the layout of a small run of patterns by recipe; what these are, no function here knows."""
    pattern = ArrayKey("dec", "self", "attn_pattern")
    keys = (pattern, *operands_of(pattern))
    arrays = tuple(replace(spec(str(key)), heads=KV_HEADS if key.site == "k" else (0, 2)) for key in keys)
    values = np.random.default_rng(0).standard_normal((2, 128)).astype(np.float32)
    layers = (
        LayerRecipe(0.5, (Seen(4, 0, (1,)), Seen(behind=0)), softcap=30.0, bias=0),
        LayerRecipe(0.5, (Seen(behind=0, part=4),), sinks=(0.5, -1.0)),
    )
    recipe = Recipe("float16", 2, layers, (Bias.of("key", 0, values),))
    return plan("dec", arrays, recipes={pattern: recipe}, **options)


def lengths(layout: RunLayout, example: int) -> dict[Stack, int]:
    """Returns the example's tokens per stack; example 3 has one."""
    random = np.random.default_rng([7, example])
    return {
        stack: 1 if example == 3 else int(random.integers(1, layout.max_tokens[stack] + 1)) for stack in layout.stacks
    }


def truth(layout: RunLayout, array: ArraySpec, example: int) -> np.ndarray:
    """Returns the numbers of one example as float32, before they are stored."""
    own = lengths(layout, example)
    random = np.random.default_rng([example, *str(array.key).encode()])
    lead = (len(array.layers),) * bool(array.layers) + (len(array.heads),) * bool(array.heads)
    if array.site.is_per_example:
        return random.standard_normal((*lead, array.width), np.float32)
    if array.site.is_matrix:
        return random.random((*lead, own[array.key.stack], own[array.key.key_stack]), np.float32)
    if array.site.holds_ids:  # beyond what float16 and int16 hold
        return random.integers(0, 200_000, (*lead, own[array.key.token_stack], array.width)).astype(np.float32)
    return random.standard_normal((*lead, own[array.key.token_stack], array.width), np.float32)


def as_stored(layout: RunLayout, array: ArraySpec, numbers: np.ndarray) -> np.ndarray:
    """Returns the bits on disk, or before they are rounded to codes, by other means than the package's."""
    stored = layout.held(array)
    if stored == "sqrt8":
        return np.round(np.sqrt(numbers) * 255).astype(np.uint8)
    if stored == "bfloat16":
        return numbers.astype(ml_dtypes.bfloat16).view(np.uint16)
    return numbers.astype(stored)


def as_read(layout: RunLayout, array: ArraySpec, numbers: np.ndarray) -> np.ndarray:
    """Returns what a reader must get: float32, but token ids."""
    stored = layout.stored(array)
    bits = as_stored(layout, array, numbers)
    if stored == "sqrt8":
        return ((bits / 255) ** 2).astype(np.float32)
    if stored == "int32":
        return bits
    return (bits.view(ml_dtypes.bfloat16) if stored == "bfloat16" else bits).astype(np.float32)


def expected(layout: RunLayout, array: ArraySpec, example: int) -> np.ndarray:
    return as_read(layout, array, truth(layout, array, example))


def holds_what_was_written(run: TraceStore) -> bool:
    return all(
        np.array_equal(run.get(name(example), array.key), expected(run.layout, array, example))
        for array in run.layout.arrays
        for example in range(run.n)
    )


def fill(layout: RunLayout, shard: int, buffer: ShardBuffer) -> pa.Table:
    """Fills a buffer with a shard's examples and returns their token table."""
    examples = layout.shard_range(shard)
    own = [lengths(layout, example) for example in examples]
    buffer.begin({stack: [each[stack] for each in own] for stack in layout.stacks})
    for array in layout.kept:
        for b, example in enumerate(examples):
            buffer.put(array, b, as_stored(layout, array, truth(layout, array, example)))
    first = layout.stacks[0]
    return pa.table(
        {
            "example_id": [name(example) for example in examples],
            "text": [f"text {example}" for example in examples],
            "input_ids": [list(range(each[first])) for each in own],
            "n_tokens": [each[first] for each in own],
        }
    )


def name(example: int) -> str:
    return f"example-{example}"


def write_shards(writer: RunWriter, most: int | None = None) -> None:
    for shard in writer.pending[:most]:
        buffer = writer.buffer()
        writer.commit(shard, buffer, fill(writer.layout, shard, buffer))


def write(folder: Path, layout: RunLayout, **options: Any) -> Path:
    """Writes a whole run and returns its folder."""
    with RunWriter.create(folder, layout, META, digest=DIGEST, **options) as writer:
        write_shards(writer)
        return writer.finish()


def begin(folder: Path, shards: int = 0, layout: RunLayout | None = None, **options: Any) -> Path:
    """Writes the first shards of a run and stops; returns the unfinished folder."""
    with RunWriter.create(folder, layout or plan(arrays=FEW), META, digest=DIGEST, **options) as writer:
        write_shards(writer, shards)
        return writer.folder


def complete(folder: Path, layout: RunLayout | None = None, **options: Any) -> Path:
    with RunWriter.resume(folder, layout or plan(arrays=FEW), META, digest=DIGEST, **options) as writer:
        write_shards(writer)
        return writer.finish()


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file of a folder by its path inside."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def long_plan() -> RunLayout:
    """Returns the layout of the run that crash tests write: many shards of little data."""
    return plan(arrays=FEW, n_examples=60, shard_examples=2)


def spawn(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.runs", str(folder), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def interrupt(*_: object, **__: object) -> NoReturn:
    """Stands in for a step that Ctrl-C ends."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0])
    writer = (int(arguments[2]), int(arguments[3])) if len(arguments) > 1 else (0, 1)
    layout = long_plan()
    print("ready", flush=True)
    try:
        opened = _open(folder, layout, writer)
    except RunExists:
        if not folder.exists():
            raise
        return  # another writer has finished it
    with opened:
        write_shards(opened)
        print(opened.finish(), flush=True)


def _open(folder: Path, layout: RunLayout, writer: tuple[int, int]) -> RunWriter:
    try:
        return RunWriter.resume(folder, layout, META, digest=DIGEST, writer=writer)
    except NotFound:
        return RunWriter.create(folder, layout, META, digest=DIGEST, writer=writer)


if __name__ == "__main__":
    main(sys.argv[1:])
