"""What `meta.json` and `tokens.parquet` say of a generation."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from traceformer.capture.encoding import Encoded
from traceformer.capture.generation.prompts import Prompts, ReadPrompt
from traceformer.capture.generation.sampling import Choosing, Sampling
from traceformer.models.loaded import LoadedModel
from traceformer.sites import Stack
from traceformer.store.meta import RunMeta
from traceformer.texts.prompts import digest_of_prompts

__all__ = ["Generated", "generation_configuration", "generation_table", "with_generation"]


@dataclass(frozen=True, slots=True)
class Generated:
    """One response: its prompt, which of the prompt's responses it is, tokens and text, its batch's seed, a label."""

    prompt: ReadPrompt
    sequence: int
    tokens: Sequence[int]
    text: str
    seed: int
    example_id: str
    category: str | None = None


def generation_configuration(
    model: LoadedModel, prompts: Prompts, sampling: Sampling, *, replay: bool
) -> dict[str, Any]:
    """Returns what decides a generation's responses and bytes, beside the model, by name."""
    return {
        "prompts": digest_of_prompts(prompts.sets),
        "category": prompts.category,
        "sampling": _plain(sampling.to_json()),
        "generation config": _plain(model.model.generation_config.to_dict()),  # pyright: ignore
        "chat": prompts.chat,
        **({"chat template": repr(model.tokenizer.chat_template)} if prompts.chat or prompts.has_chats else {}),
        "replay": replay,
    }


def with_generation(
    meta: RunMeta,
    model: LoadedModel,
    prompts: Prompts,
    sampling: Sampling,
    choosing: Choosing,
    *,
    replay: bool,
    capture_steps: bool,
) -> RunMeta:
    """Returns what a run states of its model and, added to it, of its prompts and of how they were answered."""
    n_ctx: dict[Stack, int | None] = {stack: dims.n_ctx or None for stack, dims in model.dims.stacks.items()}
    is_encdec = model.dims.arch == "encdec"
    return replace(
        meta,
        kind="generation",
        dataset=prompts.name,
        split="generated",
        max_seq_len=n_ctx if is_encdec else n_ctx["dec"],
        generation={
            **_plain(sampling.to_json()),
            "seed_of_batch": "seed + shard",
            "chat": prompts.chat,
            "recorded": "in one pass over each finished text" if replay else "token by token",
            "capture_steps": capture_steps,
            "prompt_sets": [prompt_set.name for prompt_set in prompts.sets],
            "replaced": dict(choosing.replaced),
            "model_config": _plain(model.model.generation_config.to_dict()),  # pyright: ignore
        },
        category=prompts.category,
        padding=meta.padding or "a decoder's on the left within batches, with explicit positions; never stored",
        decoder_inputs="[start, y0 .. y(n-1)]" if is_encdec else None,
    )


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """The value as JSON gives it back: tuples are lists there."""
    return json.loads(json.dumps(value, default=str))


def generation_table(
    responses: Sequence[Generated], rows: Sequence[Encoded], numbers: range, sampling: Sampling, *, replay: bool
) -> pa.Table:
    """Returns the rows of `tokens.parquet` for one batch; the writer adds where each example lies.

    Token i of a response is at the decoder's position `n_prompt` + i: after the prompt, or after an
    encoder-decoder's start token.

    Args:
        responses: What came of the prompts.
        rows: Prompts and responses as the model reads them.
        numbers: The examples' numbers in the run.
        sampling: How tokens were chosen.
        replay: Whether each finished text was recorded in one pass.
    """
    is_decoder = "enc" not in rows[0].ids
    stack = "dec" if is_decoder else "enc"
    n, now = len(rows), datetime.now().isoformat(timespec="microseconds")
    texts = [each.prompt.text + (each.text if is_decoder else "") for each in responses]
    columns: dict[str, Any] = {
        "example_id": [each.example_id for each in responses],
        "split": ["generated"] * n,
        "index": [*numbers],
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
        "category": pa.array([each.category for each in responses], pa.string()),
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
        "replayed": [replay] * n,
    }
    return pa.table(columns)
