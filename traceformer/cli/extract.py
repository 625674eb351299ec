"""`traceformer extract`: its flags, and how its progress is shown."""

import json as json_text
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import count
from traceformer.cli.progress import Totals, progress_shown
from traceformer.cli.units import amount_of_bytes, duration
from traceformer.errors import UsageError
from traceformer.sites import Selection, Stack, parse_indices

__all__ = ["extract"]

_MODEL = Group.create_ordered("The model")
_TEXTS = Group.create_ordered("The texts it reads")
_RECORD = Group.create_ordered("What to record")
_WHERE = Group.create_ordered("Where it goes")
_HOW = Group.create_ordered("How it runs")

_ModelDtype = Literal["float32", "bfloat16", "float16"]
_Several = Parameter(consume_multiple=(1, None))
_DEFAULT = ("attn", "qkv")
# A leading hyphen is let through, so that `--layers -1` is told its valid range like any other number.
_Indices = Annotated[str | None, Parameter(group=_RECORD, allow_leading_hyphen=True, metavar="I,J-K")]


def extract(
    *,
    model: Annotated[str, Parameter(group=_MODEL)] = "roberta-base",
    model_path: Annotated[Path | None, Parameter(group=_MODEL)] = None,
    revision: Annotated[str | None, Parameter(group=_MODEL)] = None,
    allow_pickle: Annotated[bool, Parameter(group=_MODEL)] = False,
    dataset: Annotated[str, Parameter(group=_TEXTS)] = "ud_ewt",
    split: Annotated[str | None, Parameter(group=_TEXTS, show_default="validation")] = None,
    text_column: Annotated[str | None, Parameter(group=_TEXTS)] = None,
    targets_file: Annotated[Path | None, Parameter(group=_TEXTS)] = None,
    limit: Annotated[int | Literal["all"], Parameter(group=_TEXTS), count("N|all")] = 32,
    max_seq_len: Annotated[int | Literal["auto"], Parameter(group=_TEXTS), count("N|auto")] = 128,
    dec_max_len: Annotated[int, Parameter(group=_TEXTS), count("N")] = 64,
    capture: Annotated[
        tuple[str, ...], Parameter(group=_RECORD, metavar="SITE...", show_default=" ".join(_DEFAULT)), _Several
    ] = (),
    layers: _Indices = None,
    heads: _Indices = None,
    layers_enc: _Indices = None,
    heads_enc: _Indices = None,
    layers_dec: _Indices = None,
    heads_dec: _Indices = None,
    hidden_layers: _Indices = None,
    project: Annotated[tuple[Path, ...], Parameter(group=_RECORD, metavar="FILE..."), _Several] = (),
    project_site: Annotated[str, Parameter(group=_RECORD, metavar="SITE")] = "resid_post",
    lens_top_k: Annotated[int | None, Parameter(group=_RECORD), count("K")] = None,
    out_dir: Annotated[Path | None, Parameter(group=_WHERE)] = None,
    dtype: Annotated[Literal["float16", "float32", "bfloat16"], Parameter(group=_WHERE)] = "float16",
    codec: Annotated[Literal["none", "zstd", "lz4"], Parameter(group=_WHERE)] = "none",
    attn_codec: Annotated[Literal["exact", "sqrt8"], Parameter(group=_WHERE)] = "exact",
    resume: Annotated[bool, Parameter(group=_WHERE)] = False,
    overwrite: Annotated[bool, Parameter(group=_WHERE)] = False,
    batch_size: Annotated[int, Parameter(group=_HOW), count("N")] = 8,
    device: Annotated[str | None, Parameter(group=_HOW)] = None,
    model_dtype: Annotated[_ModelDtype | None, Parameter(group=_HOW)] = None,
    num_shards: Annotated[int, Parameter(group=_HOW), count("W")] = 1,
    shard_index: Annotated[int, Parameter(group=_HOW), count("w", least=0)] = 0,
    dry_run: Annotated[bool, Parameter(group=_HOW)] = False,
    json: Annotated[bool, Parameter(group=_HOW)] = False,
) -> None:
    """Record a model's internals over a data set into a run.

    The model runs unmodified; what is selected goes to ./traces/RUN, or --out_dir. Every flag may be written with
    underscores or hyphens. Index lists are such as 0,3,5-7.

    Example: `traceformer extract --model byte --dataset demo --capture attn resid`

    Args:
        model: A Hugging Face model name, or a folder that holds a model.
        model_path: A folder that holds a model; goes before --model.
        revision: The commit, tag or branch of the model on the Hub.
        allow_pickle: Load weights from pickle files, which can run code of whoever made them.
        dataset: demo, ud_ewt, go_emotions, csqa, wikitext; hf:NAME[:CONFIG]; or a file or folder of .txt, .jsonl,
            .csv, .parquet or .conllu.
        split: Which part of the data set.
        text_column: The column that holds the text, where the data set does not say.
        targets_file: One target per line, for the decoder of an encoder-decoder; without it only the encoder runs.
        limit: The first N texts.
        max_seq_len: Cut texts after N tokens; `auto` is the longest text, up to what the model can take.
        dec_max_len: Cut targets after N tokens.
        capture: Groups attn qkv hidden resid mlp norms internals logits all, or names of sites.
        layers: Which layers, in both stacks; all of them by default.
        heads: Which heads, in both stacks; all of them by default.
        layers_enc: Which layers of the encoder.
        heads_enc: Which heads of the encoder.
        layers_dec: Which layers of the decoder.
        heads_dec: Which heads of the decoder.
        hidden_layers: Which entries of `hidden`; all layers and the embedding by default.
        project: Record projections onto the trait vectors in these files; alone, unless --capture asks for more.
        project_site: What to project.
        lens_top_k: Record the K likeliest next tokens of each layer (lens); alone, unless --capture asks for more.
        out_dir: The run's folder, in place of one named after time, model and data set.
        dtype: How values are stored; one that float16 cannot hold stops the run.
        codec: Compression of token arrays; patterns are always compressed.
        attn_codec: sqrt8 stores patterns in one byte per cell, with an error of up to 0.004.
        resume: Go on with an interrupted run of the same configuration.
        overwrite: Replace a finished run that is in the way.
        batch_size: Texts per forward pass.
        device: cpu, cuda, cuda:1, mps; the fastest there is by default.
        model_dtype: What the model computes in; what its weights are stored in by default.
        num_shards: How many machines share the work, each with its own --shard-index and the same --out_dir.
        shard_index: Which of them this is, from 0.
        dry_run: Say how many bytes, files and seconds to expect, and stop.
        json: Print the outcome as a JSON object.
    """
    if not 0 <= shard_index < num_shards:
        raise UsageError(f"--shard-index {shard_index} of --num-shards {num_shards}", hint="count from 0")
    both, both_heads = _indices(layers), _indices(heads)
    layers_of: dict[Stack, tuple[int, ...] | None] = {
        "enc": _indices(layers_enc) or both,
        "dec": _indices(layers_dec) or both,
    }
    heads_of: dict[Stack, tuple[int, ...] | None] = {
        "enc": _indices(heads_enc) or both_heads,
        "dec": _indices(heads_dec) or both_heads,
    }
    sites = tuple(name for names in capture for name in names.split(",") if name)
    sites = sites or (() if project or lens_top_k else _DEFAULT)
    selection = Selection(sites, layers_of, heads_of, _indices(hidden_layers))
    _ = selection.sites  # a misspelt site fails here, before torch is imported

    from traceformer.cli.project import read_traits

    traits = read_traits(project, project_site) if project else None

    from traceformer.capture.extract import estimate
    from traceformer.capture.extract import extract as run_extraction
    from traceformer.capture.prepare import ExtractRequest

    request = ExtractRequest(
        model=model,
        model_path=model_path,
        dataset=dataset,
        split=split,
        limit=None if limit == "all" else limit,
        max_seq_len=max_seq_len,
        dec_max_len=dec_max_len,
        batch_size=batch_size,
        selection=selection,
        dtype=dtype,
        targets_file=targets_file,
        out_dir=out_dir,
        device=device,
        revision=revision,
        allow_pickle=allow_pickle,
        model_dtype=model_dtype,
        codec=codec,
        attn_codec=attn_codec,
        resume=resume,
        overwrite=overwrite,
        text_column=text_column,
        traits=traits,
        lens_top_k=lens_top_k,
        writer=(shard_index, num_shards),
        command_line=shlex.join(["traceformer", *sys.argv[1:]]),
    )
    if dry_run:
        expected = estimate(request)
        if json:
            print(json_text.dumps(asdict(expected), indent=2))
            return
        if expected.left_out:
            print(f"not in this model: {' '.join(expected.left_out)}", file=sys.stderr)
        print(
            f"{expected.examples} examples, {expected.tokens} tokens: {amount_of_bytes(expected.bytes)} in "
            f"{expected.files} files, about {duration(expected.seconds)}"
        )
        return
    totals = Totals()
    try:
        with progress_shown(totals) as progress:
            folder = run_extraction(request, progress=progress)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("interrupted; what was committed is kept", "the same command with --resume") from stop
    if json:
        print(json_text.dumps({"run": str(folder), **asdict(totals)}, indent=2))
        return
    print(
        f"{totals.examples} examples, {totals.tokens} tokens, {amount_of_bytes(totals.bytes)} written in "
        f"{duration(totals.seconds)}; next: traceformer inspect {folder}",
        file=sys.stderr,
    )
    print(folder)


def _indices(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else parse_indices(text)
