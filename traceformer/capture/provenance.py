"""Where a run came from: what must be equal to resume it, what `meta.json` states, and its token table."""

import hashlib
import platform
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib import metadata
from typing import Any

import pyarrow as pa
import torch

from traceformer.capture.edits.session import edits_of
from traceformer.capture.encoding import Encoded, tokenizer_digest
from traceformer.capture.measured import stated_metrics
from traceformer.capture.plan import Plan
from traceformer.capture.sharing import is_kept_apart
from traceformer.capture.tokenizing import Rows
from traceformer.models.dims import StackDims
from traceformer.models.loaded import LoadedModel
from traceformer.models.mechanisms import configs_of_layers
from traceformer.models.outputs import label_names
from traceformer.models.part import stack_config
from traceformer.models.placed import devices_of
from traceformer.models.quantised import quantisation_of
from traceformer.models.weights import digest_of_model
from traceformer.sites import ArraySpec, Stack
from traceformer.store.meta import AttentionFacts, Dims, RunMeta
from traceformer.store.tables import as_json
from traceformer.texts.cells import Pair, Words
from traceformer.texts.chats import Chat
from traceformer.texts.examples import Example

__all__ = ["model_configuration", "model_meta", "text_configuration", "token_table", "with_texts"]

_OURS = (
    *("shard", "slot", "dec_slot", "n_prompt"),
    *("sequence_ids", "token_type_ids", "word", "kind"),
    *("dec_input_ids", "dec_attention_mask", "dec_tokens", "dec_labels", "dec_n_tokens", "dec_truncated"),
)
"""Columns of `tokens.parquet` that mean something wherever they occur: no data set's column may be called so."""


@cache  # looking one up takes longer than running a tiny model
def _version(package: str) -> str:
    return metadata.version(package)


def model_configuration(model: LoadedModel, plan: Plan) -> dict[str, Any]:
    """Returns what decides a run's bytes on the model's side, by name: it must be equal for a run to be resumed.

    Threads and the processor's instructions are not in it, though sums may differ by them in their last bits: each
    shard's record states those (`host_here`), so that a run can be gone on with on another machine.
    """
    return {
        "model weights": model.digest,
        **({} if model.adapter is None else {"adapter": model.adapter.files or model.adapter.source}),
        "model config": _sha256(model.config.to_json_string()),
        **({} if model.architecture is None else {"row": model.architecture.to_json()}),
        "tokenizer": tokenizer_digest(model.tokenizer),
        "selection": [_summary(spec) for spec in plan.arrays],
        **plan.settings,
        "attention implementation": _attention_implementation(model),
        "device": _device(model),
        "versions": {name: _version(name) for name in ("traceformer", "torch", "transformers")},
        **({"padding": "none"} if is_kept_apart(model.model) else {}),
        **({"edits": edits} if (edits := [each.to_json() for each in edits_of(model.model)]) else {}),
    }


def text_configuration(rows: Rows) -> dict[str, Any]:
    """Returns what decides a run's bytes on the texts' side."""
    targets, is_chat = rows.texts.targets, rows.texts.source.kind is Chat
    return {
        "texts": rows.texts.source.digest,
        **({"chat template": _sha256(repr(rows.encoder.tokenizer.chat_template))} if is_chat else {}),
        "targets": None if targets is None else _sha256("\n".join(targets)),
        "max_seq_len": rows.encoder.max_tokens,
        "dec_max_len": rows.encoder.max_target_tokens,
    }


def _summary(spec: ArraySpec) -> str:
    """An array in one line: dec.self.q layers 0,5,11 heads 0,1."""
    layers = f" layers {','.join(map(str, spec.layers))}" if spec.layers else ""
    heads = f" heads {','.join(map(str, spec.heads))}" if spec.heads else ""
    return f"{spec.key}{layers}{heads}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _device(loaded: LoadedModel) -> str:
    """Returns the names of the devices that a model runs on, each kind once."""
    names = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"
        for device in devices_of(loaded.model)
    )
    return ", ".join(dict.fromkeys(names))


def _attention_implementation(loaded: LoadedModel) -> str:
    return getattr(loaded.config, "_attn_implementation", None) or "eager"


def model_meta(model: LoadedModel, plan: Plan) -> RunMeta:
    """Returns what a run states of its model, whatever it is run on, and of what was recorded of it."""
    dims = model.dims
    layers: dict[Stack, tuple[int, ...]] = {}
    heads: dict[Stack, tuple[int, ...]] = {}
    for spec in plan.arrays:
        is_partial = spec.site.is_derived or spec.site.of_experts
        if spec.site.per_layer and not is_partial and spec.key.token_stack == spec.key.stack:
            layers.setdefault(spec.key.stack, tuple(spec.layers))
            if "head" in spec.site.axes:
                heads.setdefault(spec.key.stack, tuple(spec.heads))
    single = next(iter(dims.stacks.values())) if len(dims.stacks) == 1 else None
    first, quantised = single or dims.stacks["enc"], quantisation_of(model.model)
    return RunMeta(
        model=model.source,
        model_name=model.name,
        model_type=model.config.model_type,
        revision=model.revision,
        model_files=None if model.held else digest_of_model(model.source, model.revision),
        adapter=None if model.adapter is None else {name: text for name, text in asdict(model.adapter).items() if text},
        row=_row(model),
        arch=dims.arch,
        num_layers=first.n_layers,
        num_heads=first.n_heads,
        head_dim=first.d_head,
        layers_stored=layers.get("enc") if dims.arch == "enc" else layers,
        heads_stored=heads.get("enc") if dims.arch == "enc" else heads,
        left_out=tuple(plan.left_out),
        labels=_labels(model, plan),
        projection=plan.settings["projection"],
        head_metrics=stated_metrics(plan.derived),
        time=time.strftime("%Y-%m-%d %H:%M:%S"),
        dims={stack: _stated_dims(sizes) for stack, sizes in dims.stacks.items()},
        attention=_attention_facts(model),
        model_dtype=str(model.model.dtype).removeprefix("torch."),
        quantised=quantised,
        padding=_no_padding(model, quantised),
        edits=tuple(each.to_json() for each in edits_of(model.model)) or None,
        byte_level=_is_byte_level(model.tokenizer),
        device=_device(model),
        versions={
            name: _version(name)
            for name in ("traceformer", "torch", "transformers", "tokenizers", "tensorstore", "numpy")
        },
        python=platform.python_version(),
    )


def _row(model: LoadedModel) -> dict[str, Any] | None:
    """The row that the model is recorded by, where its family has none, or another's was chosen, and what proved it."""
    if model.architecture is None:
        return None
    proved = model.proved
    about = {} if proved is None else {**asdict(proved), "facts": list(proved.facts), "n_facts": len(proved.facts)}
    return {"like": model.like, **about, "architecture": model.architecture.to_json()}


def _stated_dims(sizes: StackDims) -> Dims:
    each = [{name: size for name, size in own._asdict().items() if size} for own in sizes.by_layer]
    return Dims.from_json({**asdict(sizes), "by_layer": each})


def _no_padding(model: LoadedModel, quantised: str | None) -> str | None:
    """Why no row is padded; None where they are."""
    if quantised is not None:
        return "none: of a quantised model every row runs alone"
    return (
        "none: padding changes this model's numbers, so that every row runs alone"
        if is_kept_apart(model.model)
        else None
    )


def _labels(model: LoadedModel, plan: Plan) -> tuple[str, ...] | None:
    """What the entries of the class logits that were recorded are called; None where there are none."""
    return label_names(model.model) if any(spec.site.axes[-1] == "label" for spec in plan.arrays) else None


def _is_byte_level(tokenizer: Any) -> bool | None:
    """Whether the vocabulary writes bytes as characters, as GPT-2's does; None without a tokenizer."""
    return None if tokenizer is None else tokenizer.convert_tokens_to_string(["Ġ"]) == " "


def with_texts(meta: RunMeta, rows: Rows) -> RunMeta:
    """Returns what a run states of its model and, added to it, of its texts and of how they became tokens."""
    texts, encoder = rows.texts, rows.encoder
    is_encdec, has_targets = encoder.arch == "encdec", texts.targets is not None
    limits: dict[Stack, int | None] = {"enc": encoder.max_tokens, "dec": encoder.max_target_tokens}
    return replace(
        meta,
        dataset=texts.source.dataset,
        split=texts.source.split,
        max_seq_len=limits if is_encdec else encoder.max_tokens,
        has_targets=has_targets if is_encdec else None,
        tokens={
            "total": dict(rows.lengths.total),
            "truncated_texts": rows.lengths.truncated,
            "truncated_targets": rows.lengths.targets_truncated,
        },
        padding=meta.padding or "on the right within batches, never stored",
        decoder_inputs="labels shifted right: [start, y0 .. y(n-2)]" if has_targets else None,
    )


def _attention_facts(model: LoadedModel) -> AttentionFacts:
    """How scores become patterns in this model, as far as its config says; the least where that is not recordable."""
    config, family = stack_config(model.config, "enc" if model.dims.arch == "enc" else "dec"), model.family
    gqa = {stack: {"n_heads": dims.n_heads, "n_kv_heads": dims.n_kv_heads} for stack, dims in model.dims.stacks.items()}
    if not any(dims.n_heads for dims in model.dims.stacks.values()):
        return AttentionFacts()
    if not model.built.has_attention_function:
        return AttentionFacts(_attention_implementation(model), gqa)
    return AttentionFacts(
        _attention_implementation(model),
        gqa,
        q_k="as the dot product sees them: after QK-norm and rotary embedding where the family has them",
        pattern="softmax in float32 of attn_scores, from the model's own q, k, scale, softcap, bias, mask and sinks",
        rotary=None if family is None or family.positions.kind == "recurrent" else family.positions.kind == "rotary",
        relative_position_bias=None if family is None else "relative bias" in family.positions.kind,
        softcap=_of_all_layers(config, "attn_logit_softcapping"),
        sinks=model.has_sinks,
        sliding_window=None if model.dims.arch == "enc" else _of_all_layers(config, "sliding_window"),
        local_attention=_local_attention(config),
        layer_types=None if (types := getattr(config, "layer_types", None)) is None else tuple(types),
    )


def _of_all_layers(config: Any, name: str) -> Any:
    """What a config says of all layers, if it is the same of each."""
    said = {repr(value): value for own in configs_of_layers(config) for value in [getattr(own, name, None)]}
    return next(iter(said.values())) if len(said) == 1 else None


def _local_attention(config: Any) -> int | tuple[int, ...] | None:
    """The width of an encoder's windows, or those of its layers where they are not all as wide."""
    width = getattr(config, "attention_window", None) or _of_all_layers(config, "local_attention")
    return width if width is None or isinstance(width, int) else width[0] if len({*width}) == 1 else tuple(width)


def token_table(rows: Rows, examples: Sequence[Example], part: Sequence[Encoded]) -> pa.Table:
    """Returns the rows of `tokens.parquet` for one shard; the writer adds where each example lies.

    A column of the data set that bears the name of one of ours is kept as `data_NAME`, and one with that name in turn
    as `data_data_NAME`. One whose values are of several types is kept as JSON.
    """
    stack: Stack = "dec" if rows.encoder.arch == "dec" else "enc"
    columns: dict[str, list[Any] | pa.Array] = {
        "example_id": [example.example_id for example in examples],
        "split": [rows.texts.source.split] * len(examples),
        "index": [example.index for example in examples],
        "text": [example.text for example in examples],
        "input_ids": [row.ids[stack] for row in part],
        "attention_mask": [[1] * row.length(stack) for row in part],
        "offset_mapping": [row.offsets and [list(span) for span in row.offsets] for row in part],
        "tokens": [row.tokens[stack] for row in part],
        "n_tokens": [row.length(stack) for row in part],
        "truncated": [row.truncated for row in part],
        "content_hash": [_sha256(example.text) for example in examples],
    }
    columns |= _parts_of_texts(examples, part)
    if rows.given is not None:
        columns["kind"] = [row.kinds for row in part]
    if rows.texts.targets is not None:
        columns |= {
            "dec_input_ids": [row.ids["dec"] for row in part],
            "dec_attention_mask": [[1] * row.length("dec") for row in part],
            "dec_tokens": [row.tokens["dec"] for row in part],
            "dec_labels": [row.labels for row in part],
            "dec_n_tokens": [row.length("dec") for row in part],
            "dec_truncated": [row.target_truncated for row in part],
        }
    for name, kept_as in _kept_as(examples[0].extra, {*columns, *_OURS}).items():
        columns[kept_as] = [example.extra[name] for example in examples]
    return pa.table({name: _column(values) for name, values in columns.items()})


def _parts_of_texts(examples: Sequence[Example], part: Sequence[Encoded]) -> dict[str, list[Any] | pa.Array]:
    """Returns which text of a pair each token is of, and its segment id; or which word, where words are known."""
    columns: dict[str, list[Any] | pa.Array] = {}
    numbers = pa.list_(pa.int32())
    if isinstance(examples[0].parts, Pair):
        columns["text_pair"] = [
            example.parts.second if isinstance(example.parts, Pair) else None for example in examples
        ]
        columns["sequence_ids"] = pa.array([row.sequences for row in part], numbers)
        if part[0].types is not None:
            columns["token_type_ids"] = pa.array([row.types for row in part], numbers)
    elif isinstance(examples[0].parts, Words):
        columns["words"] = [list(example.reading[0]) for example in examples]
        columns["word"] = pa.array([row.words for row in part], numbers)
    elif "word_offsets" in examples[0].extra:
        places = [example.extra["word_offsets"] for example in examples]
        columns["word"] = pa.array([words_at(own, row.offsets) for own, row in zip(places, part, strict=True)], numbers)
    return columns


def words_at(places: Any, offsets: Sequence[tuple[int, int]] | None) -> list[int | None] | None:
    """Returns for each token the first word that it shares a character with, None for a token of no word.

    Args:
        places: The [start, end) of each word in the text, as a data set states them.
        offsets: That of each token.
    """
    if offsets is None or not isinstance(places, list):
        return None
    spans: list[tuple[int, int]] = []
    for place in places:
        if not isinstance(place, list) or [type(end) for end in place] != [int, int]:
            return None
        spans.append((place[0], place[1]))
    return [
        next((n for n, (start, stop) in enumerate(spans) if max(start, own[0]) < min(stop, own[1])), None)
        for own in offsets
    ]


def _kept_as(names: Collection[str], ours: Collection[str]) -> dict[str, str]:
    """Returns a name of its own for each column that a data set adds, beside ours and its other columns."""
    kept: dict[str, str] = {}
    for name in names:
        own = name
        while own in ours or own in kept.values() or (own != name and own in names):
            own = f"data_{own}"
        kept[name] = own
    return kept


def _column(values: list[Any] | pa.Array) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    # What pandas has for a time or a span, where Arrow would drop the nanoseconds.
    if not any(getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0) for value in values):
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):
            pass
    return pa.array(map(as_json, values), pa.string())
