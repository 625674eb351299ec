"""`traceformer extract`: its flags, and how its progress is shown."""

import json as json_text
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from traceformer.cli.arguments import count
from traceformer.cli.checkpoints import record_checkpoints
from traceformer.cli.choices import (
    HOW,
    MODEL,
    SEVERAL,
    WHERE,
    DerivedChoice,
    EngineChoice,
    Loading,
    PlaceChoice,
    SelectionChoice,
    TextChoice,
)
from traceformer.cli.stopping import keeping
from traceformer.errors import UsageError
from traceformer.progress import LOADING, Totals, progress_shown
from traceformer.units import amount_of_bytes, duration

if TYPE_CHECKING:
    from traceformer.capture.extract import Estimate

__all__ = ["extract"]


def extract(
    *,
    model: Annotated[str | None, Parameter(group=MODEL, show_default="roberta-base")] = None,
    model_path: Annotated[Path | None, Parameter(group=MODEL)] = None,
    checkpoints: Annotated[tuple[str, ...], Parameter(group=MODEL, metavar="FOLDER|REVISION..."), SEVERAL] = (),
    loading: Loading = Loading(),  # noqa: B008
    texts: TextChoice = TextChoice(),  # noqa: B008
    what: SelectionChoice = SelectionChoice(),  # noqa: B008
    computed: DerivedChoice = DerivedChoice(),  # noqa: B008
    where: PlaceChoice = PlaceChoice(),  # noqa: B008
    codec: Annotated[Literal["none", "zstd", "lz4"], Parameter(group=WHERE)] = "none",
    attn_codec: Annotated[Literal["exact", "small", "sqrt8"], Parameter(group=WHERE)] = "exact",
    patterns: Annotated[Literal["stored", "recipe"], Parameter(group=WHERE)] = "stored",
    batch_size: Annotated[int | None, Parameter(group=HOW), count("N")] = None,
    batch_tokens: Annotated[int | Literal["auto"] | None, Parameter(group=HOW), count("N|auto")] = None,
    num_shards: Annotated[int, Parameter(group=HOW), count("W")] = 1,
    shard_index: Annotated[int, Parameter(group=HOW), count("w", least=0)] = 0,
    engine: EngineChoice = EngineChoice(),  # noqa: B008
    dry_run: Annotated[bool, Parameter(group=HOW)] = False,
    json: Annotated[bool, Parameter(group=HOW)] = False,
) -> None:
    """Record a model's internals over a data set into a run.

    The model runs unmodified; what is selected goes to ./traces/RUN, or --out_dir. Every flag may be written with
    underscores or hyphens. Index lists are such as 0,3,5-7.

    Example: `traceformer extract --model byte --dataset demo --capture attn resid`

    Args:
        model: A Hugging Face model name, or a folder that holds a model.
        model_path: A folder that holds a model; goes before --model.
        checkpoints: In place of one model those of a training, a run each, in the folder --out_dir: a folder that holds
            them (checkpoint-500, ...), or revisions of --model (step0 step512).
        codec: Compression of token arrays; patterns are always compressed.
        attn_codec: small takes a fifth less for patterns, and twice as long; sqrt8 stores them in one byte per cell,
            with an error of up to 0.004.
        patterns: recipe stores q and k as the model has them in place of patterns, which are made anew of these when
            they are read.
        batch_size: Texts per forward pass; 8 by default.
        batch_tokens: In its place, the most tokens per forward pass, of which 5 % at most are padding.
        num_shards: How many machines share the work, each with its own --shard-index and the same --out_dir.
        shard_index: Which of them this is, from 0.
        dry_run: Say how many bytes, files and seconds to expect, and stop.
        json: Print the outcome as a JSON object.
    """
    if not 0 <= shard_index < num_shards:
        raise UsageError(f"--shard-index {shard_index} of --num-shards {num_shards}", hint="count from 0")
    selection = what.selection(computed.derived())  # a misspelt site fails here, before torch is imported
    made = where.unchecked if checkpoints else where.place  # a folder of runs may be there, to be gone on with
    place = made(codec=codec, attn_codec=attn_codec, patterns=patterns, writer=(shard_index, num_shards))

    workers = engine.chosen()
    if texts.streaming and (workers is not None or checkpoints):
        raise UsageError(
            f"--streaming with {'--engine' if workers is not None else '--checkpoints'}",
            why="a stream is read once, by one process",
            hint="without it",
        )

    from traceformer.capture import extract as extraction

    name = str(model_path or model or "roberta-base")
    load = partial(loading.load, name, with_head=selection.needs_head)
    batching: dict[str, Any] = {"batch_size": batch_size, "batch_tokens": batch_tokens}
    if checkpoints:
        refused = {
            "--model_path": model_path,
            "--revision": loading.revision,
            "--dry-run": dry_run,
            "--num-shards": num_shards > 1,
            "--engine": workers,
        }
        record_checkpoints(checkpoints, model, loading, texts, selection, place, **batching, json=json, refused=refused)
        return
    if dry_run:
        loaded = load()
        _print_estimate(extraction.estimate(loaded, texts.read(), selection, place, **batching), json)
        return
    totals = Totals()
    with keeping("what was committed is kept"), progress_shown(totals) as progress:
        progress(LOADING)
        if workers is not None:
            run = extraction.extract_on(
                workers, load, texts.read_listed, selection, place, **batching, progress=progress
            )
        else:
            asked = texts.read()
            run = extraction.extract(load(), asked, selection, place, **batching, progress=progress)
    if json:
        print(json_text.dumps({"run": str(run.folder), **asdict(totals)}, indent=2))
        return
    print(
        f"{totals.examples} examples, {totals.tokens} tokens, {amount_of_bytes(totals.bytes)} written in "
        f"{duration(totals.seconds)}; next: traceformer inspect {run.folder}",
        file=sys.stderr,
    )
    print(run.folder)


def _print_estimate(expected: "Estimate", json: bool) -> None:
    if json:
        print(json_text.dumps(asdict(expected), indent=2))
        return
    if expected.left_out:
        print(f"not in this model: {' '.join(expected.left_out)}", file=sys.stderr)
    print(
        f"{expected.examples} examples, {expected.tokens} tokens: {amount_of_bytes(expected.bytes)} in "
        f"{expected.files} files, about {duration(expected.seconds)}"
    )
