"""Where a run came from: what must be equal to resume it, what `meta.json` states, and its token table."""

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import torch

from traceformer.capture.plan import Plan
from traceformer.capture.prepare import Prepared
from traceformer.capture.tokenizing import Encoded, Encoder
from traceformer.models.families import architecture_of
from traceformer.models.loaded import LoadedModel
from traceformer.models.weights import digest_of_model
from traceformer.sites import ArraySpec, Stack
from traceformer.store.layout import RunLayout
from traceformer.texts.examples import Example

__all__ = ["configuration", "describe", "describe_model", "model_configuration", "token_table"]


def configuration(prepared: Prepared) -> dict[str, Any]:
    """Returns everything that decides a run's bytes, by name: what must be equal for a run to be resumed."""
    encoder, targets = prepared.encoder, prepared.targets
    return {
        **model_configuration(prepared.loaded, encoder, prepared.plan, prepared.layout),
        "texts": prepared.source.digest,
        "targets": None if targets is None else _sha256("\n".join(targets)),
        "max_seq_len": encoder.max_tokens,
        "dec_max_len": encoder.max_target_tokens,
        "batch_size": prepared.batch_size,
    }


def model_configuration(loaded: LoadedModel, encoder: Encoder, plan: Plan, layout: RunLayout) -> dict[str, Any]:
    """Returns the part of `configuration` that is the same whatever the model is run on."""
    return {
        "model weights": loaded.digest,
        "model config": _sha256(loaded.config.to_json_string()),
        "tokenizer": encoder.digest(),
        "selection": [_summary(spec) for spec in layout.arrays],
        "projection": plan.projecting and plan.projecting.to_json(),
        **({} if plan.lensing is None else {"lens top k": plan.lensing.top_k}),
        **{name: value for name, value in layout.to_json().items() if name != "arrays"},
        "attention implementation": _attention_implementation(loaded),
        "device": _device(loaded),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("traceformer", "torch", "transformers")},
    }


def _summary(spec: ArraySpec) -> str:
    """An array in one line: dec.self.q layers 0,5,11 heads 0,1."""
    layers = f" layers {','.join(map(str, spec.layers))}" if spec.layers else ""
    heads = f" heads {','.join(map(str, spec.heads))}" if spec.heads else ""
    return f"{spec.key}{layers}{heads}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _device(loaded: LoadedModel) -> str:
    device = next(loaded.model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def _attention_implementation(loaded: LoadedModel) -> str:
    return getattr(loaded.config, "_attn_implementation", None) or "eager"


def describe(prepared: Prepared, run_id: str) -> dict[str, Any]:
    """Returns what `meta.json` states: document 1's keys, and all that is otherwise folklore."""
    request, is_encdec = prepared.request, prepared.loaded.dims.arch == "encdec"
    limits = {"enc": prepared.encoder.max_tokens, "dec": prepared.encoder.max_target_tokens}
    return {
        "run_id": run_id,
        **describe_model(prepared.loaded, prepared.plan, prepared.layout),
        "dataset": request.dataset,
        "split": prepared.source.split,
        "max_seq_len": limits if is_encdec else prepared.encoder.max_tokens,
        "capture": list(request.selection.capture),
        "has_targets": prepared.targets is not None if is_encdec else None,
        "tokens": {
            "total": dict(prepared.lengths.total),
            "truncated_texts": prepared.lengths.truncated,
            "truncated_targets": prepared.lengths.targets_truncated,
        },
        "padding": "on the right within batches, never stored",
        "decoder_inputs": "labels shifted right: [start, y0 .. y(n-2)]" if prepared.targets is not None else None,
        "batch_size": prepared.batch_size,
        "command_line": request.command_line,
    }


def describe_model(loaded: LoadedModel, plan: Plan, layout: RunLayout) -> dict[str, Any]:
    """Returns the part of `meta.json` that is the same whatever the model is run on."""
    dims = loaded.dims
    stored: dict[str, dict[str, list[int]]] = {"layers": {}, "heads": {}}
    for spec in plan.arrays:
        if spec.site.per_layer and not spec.site.is_derived and spec.key.token_stack == spec.key.stack:
            stored["layers"].setdefault(spec.key.stack, list(spec.layers))
            if "head" in spec.site.axes:
                stored["heads"].setdefault(spec.key.stack, list(spec.heads))
    single = next(iter(dims.stacks.values())) if len(dims.stacks) == 1 else None
    first = single or dims.stacks["enc"]
    return {
        "model": loaded.source,
        "model_name": loaded.name,
        "model_type": loaded.config.model_type,
        "revision": loaded.revision,
        "model_files": digest_of_model(loaded.source, loaded.revision),
        "arch": dims.arch,
        "n_examples": layout.n_examples,
        "num_layers": first.n_layers,
        "num_heads": first.n_heads,
        "head_dim": first.d_head,
        "layers_stored": stored["layers"].get("enc") if dims.arch == "enc" else stored["layers"],
        "heads_stored": stored["heads"].get("enc") if dims.arch == "enc" else stored["heads"],
        "dtype": layout.dtype,
        "left_out": list(plan.left_out),
        "projection": plan.projecting and plan.projecting.to_json(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "dims": dims.to_json(),
        "attention": _attention_meta(loaded),
        "model_dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": _device(loaded),
        "versions": {
            name: version(name)
            for name in ("traceformer", "torch", "transformers", "tokenizers", "tensorstore", "numpy")
        },
        "python": platform.python_version(),
    }


def _attention_meta(loaded: LoadedModel) -> dict[str, Any]:
    """How scores become patterns in this model, as far as its config says; None where that is not recordable."""
    config = loaded.config
    own = {
        "implementation": _attention_implementation(loaded),
        "gqa": {
            stack: {"n_heads": dims.n_heads, "n_kv_heads": dims.n_kv_heads}
            for stack, dims in loaded.dims.stacks.items()
        },
    }
    if not architecture_of(config).has_attention_function:
        return own
    return own | {
        "q_k": "as the dot product sees them: after QK-norm and rotary embedding where the family has them",
        "pattern": "softmax in float32 of attn_scores, from the model's own q, k, scale, softcap, bias, mask and sinks",
        "rotary": bool(getattr(config, "rope_parameters", None)),
        "relative_position_bias": config.model_type in ("t5", "mt5"),
        "softcap": getattr(config, "attn_logit_softcapping", None),
        "sinks": config.model_type == "gpt_oss",
        "sliding_window": None if loaded.dims.arch == "enc" else getattr(config, "sliding_window", None),
        "local_attention": getattr(config, "local_attention", None),
        "layer_types": getattr(config, "layer_types", None),
    }


def token_table(prepared: Prepared, examples: Sequence[Example], rows: Sequence[Encoded]) -> pa.Table:
    """Returns the rows of `tokens.parquet` for one shard; the writer adds where each example lies.

    A column of the data set that bears the name of one of ours is kept as `data_NAME`. One whose values are of
    several types is kept as JSON.
    """
    stack: Stack = "dec" if prepared.loaded.dims.arch == "dec" else "enc"
    columns: dict[str, list[Any]] = {
        "example_id": [example.example_id for example in examples],
        "split": [prepared.source.split] * len(examples),
        "index": [example.index for example in examples],
        "text": [example.text for example in examples],
        "input_ids": [row.ids[stack] for row in rows],
        "attention_mask": [[1] * row.length(stack) for row in rows],
        "offset_mapping": [row.offsets and [list(span) for span in row.offsets] for row in rows],
        "tokens": [row.tokens[stack] for row in rows],
        "n_tokens": [row.length(stack) for row in rows],
        "truncated": [row.truncated for row in rows],
        "content_hash": [_sha256(example.text) for example in examples],
    }
    if prepared.targets is not None:
        columns |= {
            "dec_input_ids": [row.ids["dec"] for row in rows],
            "dec_attention_mask": [[1] * row.length("dec") for row in rows],
            "dec_tokens": [row.tokens["dec"] for row in rows],
            "dec_labels": [row.labels for row in rows],
            "dec_n_tokens": [row.length("dec") for row in rows],
            "dec_truncated": [row.target_truncated for row in rows],
        }
    taken = {*columns, "shard", "slot", "dec_slot"}
    for name in examples[0].extra:
        columns[f"data_{name}" if name in taken else name] = [example.extra[name] for example in examples]
    return pa.table({name: _column(values) for name, values in columns.items()})


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([json.dumps(value, ensure_ascii=False, default=str) for value in values])
