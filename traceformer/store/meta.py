"""RunMeta: all that a run says of its model, its texts and its settings, typed; `meta.json` is its written form.

Older runs and imported ones state less. What is missing, or of another type than it should be, is None or empty here,
and what this version does not know is kept as it was.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

from traceformer.sites import Stack
from traceformer.store.names import Arch

__all__ = ["AttentionFacts", "Dims", "RunMeta"]

_OF_THE_STORE = ("format", "format_version", "layout", "configuration")
_WEIGHTS = "model weights"

# What a recorded run states in any case, as null where it does not apply.
_ALWAYS = ("revision", "model_files", "layers_stored", "heads_stored", "projection", "has_targets", "decoder_inputs")

Numbers: TypeAlias = tuple[int, ...] | Mapping[Stack, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one stack of the model, as far as the run states them; an imported run may know a few only.

    `d_value` is stated where values are not as wide as keys, `d_latent` where both are made of a narrower row.
    `attending` are the layers that have attention, stated where not all have, and `by_layer` the sizes of each, where
    they differ.
    """

    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    d_model: int | None = None
    d_embed: int | None = None
    d_head: int | None = None
    d_mlp: int | None = None
    d_vocab: int | None = None
    n_ctx: int | None = None
    d_value: int | None = None
    d_latent: int | None = None
    by_layer: "tuple[Dims, ...]" = ()
    attending: tuple[int, ...] | None = None
    n_experts: int | None = None
    n_chosen: int | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Dims":
        names = [size.name for size in fields(cls)]
        sizes: dict[str, int] = {name: data[name] for name in names if _is_int(data.get(name)) and data[name] > 0}
        if sizes.get("n_heads", 0) % sizes.get("n_kv_heads", 1):  # no head would know which it reads
            del sizes["n_kv_heads"]
        each = data.get("by_layer")
        stated = isinstance(each, list) and all(isinstance(own, Mapping) for own in each)
        by_layer = tuple(cls.from_json(own) for own in each) if stated and each else ()
        return cls(**sizes, attending=_whole_numbers(data.get("attending")), by_layer=by_layer)

    def at(self, layers: Sequence[int]) -> "Dims":
        """Returns the sizes of the layers of an array, which have them in common."""
        if not layers or layers[0] >= len(self.by_layer):
            return self
        return replace(self, **{**self.by_layer[layers[0]].to_json(), "by_layer": ()})

    @property
    def without_attention(self) -> tuple[int, ...]:
        """The layers that have no attention, as far as the run states it."""
        if self.attending is None:
            return ()
        return tuple(layer for layer in range(self.n_layers or 0) if layer not in self.attending)

    def to_json(self) -> dict[str, Any]:
        sizes = {size.name: getattr(self, size.name) for size in fields(self) if size.name != "by_layer"}
        each = {"by_layer": [own.to_json() for own in self.by_layer]} if self.by_layer else {}
        return {name: _plain(size) for name, size in sizes.items() if size is not None} | each


@dataclass(frozen=True, slots=True)
class AttentionFacts:
    """How scores become patterns in the model, as far as its config says.

    Attributes:
        implementation: Whose function computed it: `sdpa`, `eager`, ...
        gqa: Per stack its numbers of heads and kv_heads.
        q_k: What `q` and `k` are, in words.
        pattern: What `attn_pattern` is, in words.
        rotary: Whether positions are rotations of q and k; None where nothing is known of it.
        relative_position_bias: Whether scores have a bias by distance.
        softcap: What scores are capped to.
        sinks: Whether rows may sum to less than 1.
        sliding_window: The keys that a causal layer sees at most, itself included.
        local_attention: The width of the window of an encoder's local layers; of each layer where they differ.
        layer_types: What each layer is, `sliding_attention` or `full_attention`.
    """

    implementation: str | None = None
    gqa: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    q_k: str | None = None
    pattern: str | None = None
    rotary: bool | None = None
    relative_position_bias: bool | None = None
    softcap: float | None = None
    sinks: bool | None = None
    sliding_window: int | None = None
    local_attention: int | tuple[int, ...] | None = None
    layer_types: tuple[str, ...] | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "AttentionFacts":
        return cls(**{name: value for name, read in _FACTS.items() if (value := read(data.get(name))) is not None})

    def to_json(self) -> dict[str, Any]:
        """Returns the facts: all of them, as null where they do not apply, if the model's attention can be recorded."""
        stated = [*_FACTS] if self.pattern is not None else []
        given = [name for name in _FACTS if getattr(self, name) not in (None, {})]
        return {name: _plain(getattr(self, name)) for name in _FACTS if name in stated or name in given}


@dataclass(frozen=True, slots=True)
class RunMeta:
    """What `meta.json` states beside layout and configuration.

    Attributes:
        run_id: The run's name, which is its folder's.
        kind: `generation`, or None for texts that were read.
        model: Where the model came from: a name on the Hub, a folder.
        model_files: The digest of its files.
        adapter: What it had in its layers: `source`, `kind`, and where it came from files `made_for` and `files`.
        row: The row that it was recorded by, where its family has none: `architecture`, the family that it was chosen
            `like`, `how` it was come by, and what proved it: `facts`, their number `n_facts`, the largest `error`, and
            the `tokens` that they were proved on.
        num_layers, num_heads, head_dim: Of the encoder, if there is one.
        layers_stored, heads_stored: The model's numbers: of an encoder, or per stack.
        dtype: How numbers are stored.
        step: How many steps of its training the model had behind it, of a run that is one of several checkpoints.
        left_out: Sites of a group that the model does not have.
        labels: What a classifier's labels are called, in the order of its logits.
        projection: The directions that were projected onto while recording: their `names`, and the `site`.
        head_metrics: How head metrics were worked out while recording: their `names`, the `convention`, the `window` of
            `local_mass`, what patterns were `rounded_to`, and of each attention the layers that look `ahead`.
        dims: The model's sizes per stack.
        model_dtype: How the model computed.
        quantised: How its weights were quantised, if they were.
        byte_level: Whether each character of a token's name is a byte.
        max_seq_len: The most tokens of an example, or that per stack.
        batch_size, batch_tokens: How many texts shared a pass, or how many tokens, padding included: one of them.
        generation: How responses were sampled.
        stream: Of texts that were read as they came: how they were shuffled.
        tokens: How many there were, and how many texts were cut.
        edits: What was done to the model's passes meanwhile, in its order: each as `Edit.to_json` has it.
        imported: The format that the run was imported from, and what it did not say.
        unknown_rows: `NaN` if rows that the imported files do not hold are NaN.
        model_weights: The digest of the loaded weights, from the configuration that a resumed run shares.
        other: What this version does not know.
    """

    run_id: str | None = None
    kind: str | None = None
    model: str | None = None
    model_name: str | None = None
    model_type: str | None = None
    revision: str | None = None
    model_files: str | None = None
    adapter: Mapping[str, str] | None = None
    row: Mapping[str, Any] | None = None
    arch: Arch | None = None
    n_examples: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    head_dim: int | None = None
    layers_stored: Numbers | None = None
    heads_stored: Numbers | None = None
    dtype: str | None = None
    left_out: tuple[str, ...] | None = None
    step: int | None = None
    labels: tuple[str, ...] | None = None
    projection: Mapping[str, Any] | None = None
    head_metrics: Mapping[str, Any] | None = None
    time: str | None = None
    dims: Mapping[Stack, Dims] = field(default_factory=dict[Stack, Dims])
    attention: AttentionFacts = AttentionFacts()
    model_dtype: str | None = None
    quantised: str | None = None
    byte_level: bool | None = None
    device: str | None = None
    versions: Mapping[str, str] | None = None
    python: str | None = None
    dataset: str | None = None
    split: str | None = None
    max_seq_len: int | Mapping[Stack, int | None] | None = None
    capture: tuple[str, ...] | None = None
    has_targets: bool | None = None
    generation: Mapping[str, Any] | None = None
    category: str | None = None
    stream: Mapping[str, Any] | None = None
    tokens: Mapping[str, Any] | None = None
    padding: str | None = None
    decoder_inputs: str | None = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    command_line: str | None = None
    edits: tuple[Mapping[str, Any], ...] | None = None
    imported: Mapping[str, Any] | None = None
    unknown_rows: str | None = None
    model_weights: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunMeta":
        """Returns what `meta.json` states, whoever wrote it."""
        known = {name: value for name, read in _FIELDS.items() if (value := read(data.get(name))) is not None}
        configuration = _mapping(data.get("configuration")) or {}
        other = {
            name: value
            for name, value in data.items()
            if name not in known and name not in _OF_THE_STORE and not (name in _FIELDS and value is None)
        }
        return cls(**known, model_weights=_text(configuration.get(_WEIGHTS)), other=other)

    def to_json(self) -> dict[str, Any]:
        """Returns what `meta.json` states: what is known, and of a recorded run what never applies to it as null."""
        always = _ALWAYS if self.versions and not self.imported else ()
        always = (*always, "category") if self.kind == "generation" else always
        known = {name: _plain(getattr(self, name)) for name in _FIELDS}
        stated = {name: value for name, value in known.items() if name in always or value not in (None, {})}
        return stated | {name: value for name, value in self.other.items() if name not in stated}

    @property
    def model_and_adapter(self) -> str | None:
        """The model's name, and that of the adapter that it had: `gpt2 + my-adapter`."""
        beside = self.adapter and self.adapter.get("source")
        return self.model if self.model is None or not beside or beside == self.model else f"{self.model} + {beside}"

    @property
    def why_no_patterns(self) -> str | None:
        """Why the run can hold no attention patterns: none of its stacks has attention; None where that is not it."""
        stacks = self.dims.values()
        return "this model has no attention" if stacks and all(own.attending == () for own in stacks) else None

    def dims_of(self, stack: Stack) -> Dims:
        """Returns the sizes of a stack, of which the run may state none."""
        return self.dims.get(stack, Dims())


def _plain(value: Any) -> Any:
    """Returns the value as JSON has it."""
    if isinstance(value, Dims | AttentionFacts):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    return value if _is_int(value) else None


def _number(value: Any) -> float | None:
    return value if _is_int(value) or (isinstance(value, float) and math.isfinite(value)) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _mapping(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


def _mappings(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    listed = isinstance(value, list | tuple) and all(isinstance(each, Mapping) for each in value)
    return tuple(value) if listed else None


def _projection(value: Any) -> Mapping[str, Any] | None:
    stated = isinstance(value, Mapping) and isinstance(value.get("site"), str) and bool(_texts(value.get("names")))
    return value if stated else None


def _head_metrics(value: Any) -> Mapping[str, Any] | None:
    if not isinstance(value, Mapping) or not _texts(value.get("names")) or not _is_int(value.get("window")):
        return None
    ahead = value.get("ahead")
    stated = isinstance(ahead, Mapping) and all(_whole_numbers(layers) is not None for layers in ahead.values())
    return value if stated and _text(value.get("convention")) is not None else None


def _texts(value: Any) -> tuple[str, ...] | None:
    listed = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    return tuple(value) if listed else None


def _text_by_name(value: Any) -> Mapping[str, str] | None:
    named = isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values())
    return value if named else None


def _counts(value: Any) -> Mapping[str, Mapping[str, int]] | None:
    if not isinstance(value, Mapping) or not all(isinstance(own, Mapping) for own in value.values()):
        return None
    return value if all(_is_int(count) for own in value.values() for count in own.values()) else None


def _numbers(value: Any) -> Numbers | None:
    if not _by_stack(value):
        return _whole_numbers(value)
    numbers = {stack: _whole_numbers(own) for stack, own in value.items()}
    known = {stack: own for stack, own in numbers.items() if own is not None}
    return known if len(known) == len(numbers) else None


def _whole_numbers(value: Any) -> tuple[int, ...] | None:
    listed = isinstance(value, list | tuple) and all(_is_int(each) for each in value)
    return tuple(value) if listed else None


def _limits(value: Any) -> int | Mapping[Stack, int | None] | None:
    limits = _by_stack(value) and all(limit is None or _is_int(limit) for limit in value.values())
    return value if limits or _is_int(value) else None


def _by_stack(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() <= {"enc", "dec"}


def _arch(value: Any) -> Arch | None:
    return value if isinstance(value, str) and value in ("enc", "dec", "encdec") else None


def _dims(value: Any) -> Mapping[Stack, Dims] | None:
    if not _by_stack(value) or not all(isinstance(sizes, Mapping) for sizes in value.values()):
        return None
    return {stack: Dims.from_json(sizes) for stack, sizes in value.items()}


def _attention(value: Any) -> AttentionFacts | None:
    return AttentionFacts.from_json(value) if isinstance(value, Mapping) else None


def _widths(value: Any) -> int | tuple[int, ...] | None:
    if isinstance(value, list | tuple) and value and all(_is_int(each) for each in value):
        return tuple(value)
    return _whole(value)


_FACTS: Mapping[str, Callable[[Any], Any]] = {
    "implementation": _text,
    "gqa": _counts,
    "q_k": _text,
    "pattern": _text,
    "rotary": _flag,
    "relative_position_bias": _flag,
    "softcap": _number,
    "sinks": _flag,
    "sliding_window": _whole,
    "local_attention": _widths,
    "layer_types": _texts,
}
_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("run_id", "kind", "model", "model_name", "model_type", "revision", "model_files"), _text),
    "adapter": _text_by_name,
    "row": _mapping,
    "arch": _arch,
    **dict.fromkeys(("n_examples", "num_layers", "num_heads", "head_dim"), _whole),
    "step": _whole,
    **dict.fromkeys(("layers_stored", "heads_stored"), _numbers),
    "dtype": _text,
    "left_out": _texts,
    "labels": _texts,
    "projection": _projection,
    "head_metrics": _head_metrics,
    "time": _text,
    "dims": _dims,
    "attention": _attention,
    "model_dtype": _text,
    "quantised": _text,
    "byte_level": _flag,
    "device": _text,
    "versions": _text_by_name,
    "python": _text,
    "dataset": _text,
    "split": _text,
    "max_seq_len": _limits,
    "capture": _texts,
    "has_targets": _flag,
    "generation": _mapping,
    "category": _text,
    "stream": _mapping,
    "tokens": _mapping,
    **dict.fromkeys(("padding", "decoder_inputs"), _text),
    **dict.fromkeys(("batch_size", "batch_tokens"), _whole),
    "command_line": _text,
    "edits": _mappings,
    "imported": _mapping,
    "unknown_rows": _text,
}
"""What reads each entry of `meta.json`, in its order: the value, or None where it is missing or of another type."""
