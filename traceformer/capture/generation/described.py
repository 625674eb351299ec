"""What `meta.json` and `tokens.parquet` say of a generation."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from traceformer.capture.generation.prepare import PreparedGeneration
from traceformer.capture.generation.prompts import ReadPrompt
from traceformer.capture.provenance import describe_model, model_configuration
from traceformer.capture.tokenizing import Encoded
from traceformer.store.meta import RunMeta
from traceformer.texts.prompts import digest_of_prompts

__all__ = ["Generated", "describe_generation", "generation_configuration", "generation_table", "source_name"]


@dataclass(frozen=True, slots=True)
class Generated:
    """One response: its prompt, which of the prompt's responses it is, its tokens and text, its batch's seed."""

    prompt: ReadPrompt
    sequence: int
    tokens: Sequence[int]
    text: str
    seed: int
    example_id: str


def source_name(prepared: PreparedGeneration) -> str:
    """Returns what stands for the prompts in a run's name."""
    return prepared.sets[0].name if len(prepared.sets) == 1 else "all-prompt-sets"


def generation_configuration(prepared: PreparedGeneration) -> dict[str, Any]:
    """Returns everything that decides a generation's responses and bytes, by name."""
    request = prepared.request
    return {
        **model_configuration(prepared.loaded, prepared.encoder, prepared.plan, prepared.layout),
        "prompts": digest_of_prompts(prepared.sets),
        "category": request.category,
        "sampling": _plain(request.sampling.to_json()),
        "generation config": _plain(prepared.loaded.model.generation_config.to_dict()),  # pyright: ignore
        "seed": request.seed,
        "chat": request.chat,
        "replay": prepared.is_replay,
    }


def describe_generation(prepared: PreparedGeneration, run_id: str) -> RunMeta:
    """Returns what `meta.json` states of a generation."""
    request = prepared.request
    n_ctx = {stack: dims.n_ctx or None for stack, dims in prepared.loaded.dims.stacks.items()}
    return replace(
        describe_model(prepared.loaded, prepared.plan, prepared.layout),
        run_id=run_id,
        kind="generation",
        dataset=source_name(prepared),
        split="generated",
        max_seq_len=n_ctx if prepared.loaded.dims.arch == "encdec" else n_ctx["dec"],
        capture=tuple(request.selection.capture),
        generation={
            **_plain(request.sampling.to_json()),
            "seed": request.seed,
            "seed_of_batch": "seed + shard",
            "chat": request.chat,
            "recorded": "in one pass over each finished text" if prepared.is_replay else "token by token",
            "capture_steps": request.capture_steps,
            "prompt_sets": [prompt_set.name for prompt_set in prepared.sets],
            "model_config": _plain(prepared.loaded.model.generation_config.to_dict()),  # pyright: ignore
        },
        category=request.category,
        padding="a decoder's on the left within batches, with explicit positions; never stored",
        decoder_inputs="[start, y0 .. y(n-1)]" if prepared.loaded.dims.arch == "encdec" else None,
        batch_size=len(prepared.batch(0)),
        command_line=request.command_line,
    )


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """The value as JSON gives it back: tuples are lists there."""
    return json.loads(json.dumps(value, default=str))


def generation_table(
    prepared: PreparedGeneration, shard: int, responses: Sequence[Generated], rows: Sequence[Encoded]
) -> pa.Table:
    """Returns the rows of `tokens.parquet` for one batch; the writer adds where each example lies.

    Token i of a response is at the decoder's position `n_prompt` + i: after the prompt, or after an
    encoder-decoder's start token.
    """
    request = prepared.request
    sampling, is_decoder = request.sampling, prepared.loaded.dims.arch == "dec"
    stack = "dec" if is_decoder else "enc"
    n, now = len(rows), datetime.now().isoformat(timespec="microseconds")
    texts = [each.prompt.text + (each.text if is_decoder else "") for each in responses]
    columns: dict[str, Any] = {
        "example_id": [each.example_id for each in responses],
        "split": ["generated"] * n,
        "index": [*prepared.layout.shard_range(shard)],
        "text": texts,
        "input_ids": [row.ids[stack] for row in rows],
        "attention_mask": [[1] * row.length(stack) for row in rows],
        "tokens": [row.tokens[stack] for row in rows],
        "n_tokens": [row.length(stack) for row in rows],
        "content_hash": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
    }
    if not is_decoder:
        columns |= {
            "dec_input_ids": [row.ids["dec"] for row in rows],
            "dec_attention_mask": [[1] * row.length("dec") for row in rows],
            "dec_tokens": [row.tokens["dec"] for row in rows],
            "dec_n_tokens": [row.length("dec") for row in rows],
        }
    columns |= {
        "n_prompt": [row.length("dec") - len(each.tokens) for each, row in zip(responses, rows, strict=True)],
        "prompt": [each.prompt.prompt.text for each in responses],
        "response": [each.text for each in responses],
        "category": pa.array([request.category] * n, pa.string()),
        "prompt_set": [each.prompt.prompt_set for each in responses],
        "prompt_id": [each.prompt.prompt.prompt_id for each in responses],
        "prompt_note": pa.array([each.prompt.prompt.note for each in responses], pa.string()),
        "sequence": [each.sequence for each in responses],
        "timestamp": [now] * n,
        "seed": [each.seed for each in responses],
        "max_tokens": [sampling.max_tokens] * n,
        "temperature": [float(sampling.temperature)] * n,
        "top_k": [sampling.top_k] * n,
        "top_p": pa.array([sampling.top_p] * n, pa.float64()),
        "num_beams": [sampling.num_beams] * n,
        "replayed": [prepared.is_replay] * n,
    }
    return pa.table(columns)
