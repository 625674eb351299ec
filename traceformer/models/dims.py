"""The sizes of a model in this project's words, whatever names its family's config uses."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from traceformer.errors import Unsupported, UsageError
from traceformer.models.families import own_family
from traceformer.models.family import StackRow
from traceformer.models.mechanisms import attending_layers, configs_of_layers, full_up_to, stated, unstated
from traceformer.models.part import stack_config, text_config
from traceformer.sites import Site, Stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Arch",
    "LayerDims",
    "ModelDims",
    "StackDims",
    "arch_of",
    "arch_of_model",
    "check_positions",
    "has_experts",
    "n_ctx_of",
]

Arch: TypeAlias = Literal["enc", "dec", "encdec"]


class LayerDims(NamedTuple):
    """What of the sizes of a stack may be another in each of its layers."""

    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int


@dataclass(frozen=True, slots=True)
class StackDims:
    """The sizes of one stack; `d_mlp` is 0 where there is no single MLP, `n_ctx` 0 where there is no limit.

    `d_value` is the width of values, 0 where that is d_head; `d_latent` that of the row that keys and values are made
    of, 0 where they are made of attention's input (multi-head latent attention). `attending` are the layers that have
    attention, None where all have; a model without attention has no heads, and no such layer. Where layers differ,
    `by_layer` has what may be another in each, and the sizes themselves are those that most layers with attention
    have; `at` tells one layer's.

    `d_embed` is d_model but in families that embed tokens in fewer dimensions (ELECTRA, OPT-350m). In mixtures of
    experts `n_experts` is how many there are, `n_chosen` to how many of them a token goes; 0 elsewhere.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_embed: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    d_value: int = 0
    d_latent: int = 0
    by_layer: tuple[LayerDims, ...] = ()
    attending: tuple[int, ...] | None = None

    def at(self, layer: int | None) -> "StackDims":
        """Returns the sizes of one layer; those of all for what is behind the last one, or of none."""
        if layer is None or layer >= len(self.by_layer):
            return self
        return replace(self, **self.by_layer[layer]._asdict(), by_layer=())

    def alike(self, site: Site, layers: Sequence[int]) -> tuple[int, ...]:
        """Returns those of the layers that one array has room for: of those as wide, in as many heads, the most.

        That is all of them but where layers differ, and the site has heads.
        """
        if not self.by_layer or not {"head", "kv_head"} & {*site.axes}:
            return tuple(layers)
        shapes = {layer: (self.at(layer).n_heads_of(site), self.at(layer).width_of(site)) for layer in layers}
        [(commonest, _)] = Counter(shapes.values()).most_common(1)
        return tuple(layer for layer in layers if shapes[layer] == commonest)

    def refuse_uneven(self, what: str) -> None:
        """Refuses what takes all layers to have the same heads.

        Raises:
            Unsupported: they have not.
        """
        counts = {(own.n_heads, own.n_kv_heads) for own in self.by_layer}
        if len(counts) > 1:
            said = " or ".join(f"{heads} heads of queries and {own} of keys" for heads, own in sorted(counts))
            raise Unsupported(f"{what} where layers have different heads", why=f"there are {said}")

    def n_heads_of(self, site: Site) -> int:
        """Returns how many heads a site has, 0 where it has none."""
        return self.n_heads if "head" in site.axes else self.n_kv_heads if "kv_head" in site.axes else 0

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that have attention."""
        return tuple(range(self.n_layers)) if self.attending is None else self.attending

    n_experts: int = 0
    n_chosen: int = 0

    def kv_heads_of(self, heads: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the kv_heads that these heads read, each once (grouped-query attention)."""
        group = self.n_heads // max(1, self.n_kv_heads)
        return tuple(sorted({head // group for head in heads}))

    def width_of(self, site: Site) -> int:
        """Returns how wide a site's rows are; 0 where they have no width of their own, as (query, key) squares."""
        if site.name == "token_embed":
            return self.d_embed
        if site.of_values:
            return self.d_value or self.d_head
        widths = {"d_model": self.d_model, "d_head": self.d_head, "d_mlp": self.d_mlp, "d_vocab": self.d_vocab}
        widths |= {"d_latent": self.d_latent, "expert": self.n_experts, "rank": self.n_chosen}
        return widths.get(site.axes[-1], 0)


@dataclass(frozen=True, slots=True)
class ModelDims:
    """The sizes of a model, stack by stack."""

    arch: Arch
    stacks: Mapping[Stack, StackDims]

    @classmethod
    def from_config(cls, config: Any) -> "ModelDims":
        """Returns the sizes that a Hugging Face config states under whatever names its family uses.

        Raises:
            Unsupported: the config states no number of layers, heads or dimensions, as those of several models in one
                do not, or not one for all layers.
        """
        return cls._of(config, arch_of(config), {})

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "ModelDims":
        """Returns the sizes of a model that is at hand: its config's, but for what only a pass of it tells.

        Raises:
            Unsupported: as `from_config` does.
        """
        return cls._of(model.config, arch_of_model(model), _tables_of(model))

    @classmethod
    def _of(cls, config: Any, arch: Arch, tables: Mapping[Stack, int]) -> "ModelDims":
        sides: tuple[Stack, ...] = ("enc", "dec") if arch == "encdec" else (arch,)
        return cls(
            arch, {side: _stack_dims(stack_config(config, side), side, arch, tables.get(side)) for side in sides}
        )

    def to_json(self) -> dict[str, Any]:
        return {stack: _said(asdict(dims)) for stack, dims in self.stacks.items()}


def _said(sizes: dict[str, Any]) -> dict[str, Any]:
    """Sizes as JSON has them: which layers have attention where not all have, how many experts where there are any."""
    return {name: value for name, value in sizes.items() if value or (value is not None and name not in _OF_EXPERTS)}


_OF_EXPERTS = ("n_experts", "n_chosen")


def _first(config: Any, *names: str, default: int | None = None) -> int:
    for name in names:
        value = stated(config, name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    if default is None:
        raise unstated(config, *names)
    return default


def _stack_dims(config: Any, side: Stack, arch: Arch, table: int | None) -> StackDims:
    layers = configs_of_layers(config)
    if len(layers) == 1:
        return _dims_of(config, side, arch, table)
    each = [_dims_of(own, side, arch, table) for own in layers]
    by_layer = [LayerDims(own.n_heads, own.n_kv_heads, own.d_head, own.d_value) for own in each]
    attending = each[0].attention_layers or range(len(each))
    [(commonest, _)] = Counter(by_layer[layer] for layer in attending).most_common(1)
    return replace(each[by_layer.index(commonest)], by_layer=tuple(by_layer) if len({*by_layer}) > 1 else ())


def _dims_of(config: Any, side: Stack, arch: Arch, table: int | None) -> StackDims:
    own = {"enc": "encoder_", "dec": "decoder_"}[side]
    layers = (f"{own}layers", *(("num_decoder_layers",) if side == "dec" and arch == "encdec" else ()))
    n_layers = _first(config, *layers, "num_hidden_layers", "num_layers", "n_layer", "n_layers")
    heads = ("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads")
    attending = attending_layers(config, n_layers)
    attends = attending != () and all(row.attends for row in _rows_of(config, side))
    # Mamba 2 and xLSTM call the parts of their states heads.
    n_heads = _first(config, f"{own}attention_heads", *heads, default=0) if attends else 0
    d_model = _first(config, "hidden_size", "d_model", "n_embd", "dim")
    if min(n_layers, d_model) < 1 or n_heads < 0:
        raise Unsupported(
            f"a model of type {config.model_type!r} without layers, heads or dimensions",
            why=f"its config states {n_layers} layers of {n_heads} heads, {d_model} wide",
        )
    widths = (f"{own}ffn_dim", "intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "n_inner", "expansion_ratio")
    d_mlp = _first(config, *widths, default=4 * d_model)
    if d_mlp == stated(config, "expansion_ratio"):
        d_mlp *= d_model
    latent = _first(config, "kv_lora_rank", default=0)
    d_head = _first(config, "d_kv", "head_dim", default=d_model // max(1, n_heads))
    if latent:  # what such a config calls head_dim may be what is rotated of a key
        d_head = _first(config, "qk_nope_head_dim", default=0) + _first(config, "qk_rope_head_dim", default=0)
    d_value = _first(config, "v_head_dim", default=d_head)
    return StackDims(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=_n_kv_heads(config, n_heads),
        d_model=d_model,
        d_embed=_first(config, "embedding_size", "word_embed_proj_dim", default=d_model),
        d_head=d_head if n_heads else 0,
        d_mlp=0 if _lacks_mlp(config, side) else d_mlp,
        d_vocab=_first(config, "vocab_size"),
        n_ctx=n_ctx_of(config) if table is None else min(table, n_ctx_of(config) or table),
        n_experts=_first(config, *_N_EXPERTS, default=0),
        n_chosen=_first(config, *_N_CHOSEN, default=0) if has_experts(config) else 0,
        d_value=0 if d_value == d_head else d_value,
        d_latent=latent,
        attending=attending if n_heads else (),
    )


def _lacks_mlp(config: Any, side: Stack) -> bool:
    """Whether no layer has one MLP: each has a mixture of experts, or none at all, as its family's row says."""
    if has_experts(config):
        return "mlp" not in (stated(config, "layer_types") or ())
    rows = _rows_of(config, side)
    return bool(rows) and not any(row.mlp for row in rows)


def _rows_of(config: Any, side: Stack) -> list[StackRow]:
    """The rows of a stack in all builds of its family; none where that has no row."""
    family = own_family(config)
    return [] if family is None else [row for built in family.architectures if (row := built.stacks.get(side))]


def _n_kv_heads(config: Any, n_heads: int) -> int:
    """How many heads of keys there are: with multi-query attention one, whatever else is stated."""
    if not n_heads:
        return 0
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    return _first(config, "num_key_value_heads", "num_kv_heads", default=n_heads)


_N_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_N_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k", "top_k_experts")


def has_experts(config: Any) -> bool:
    return any(stated(config, name) for name in _N_EXPERTS)


def n_ctx_of(config: Any) -> int:
    """Returns how many positions the model has, 0 where any length works, as the row of its family counts them.

    Of a family without a row it is what the config states; `ModelDims.of` asks such a model itself.
    """
    config = text_config(config)
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions")
    n_ctx = max(0, _first(config, *names, default=0))
    row = own_family(config)
    limit = "stated" if row is None else row.positions.limit
    if limit == "none":
        return 0
    return n_ctx - config.pad_token_id - 1 if limit == "behind padding" else n_ctx


def arch_of(config: Any) -> Arch:
    """Returns enc, dec or encdec: what kind of stacks a model of this config has, as far as a config tells.

    Of a family without a row it goes by the heads that transformers has for it. `arch_of_model` asks the model.
    """
    said = _stated_arch(config)
    if said is not None:
        return said
    from transformers.models.auto import modeling_auto as auto

    # transformers can also wrap encoders as causal language models: those that it can wrap as masked ones.
    writes = (auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING)
    is_decoder = any(type(each) in mapping for each in (config, text_config(config)) for mapping in writes)
    return "dec" if is_decoder and type(config) not in auto.MODEL_FOR_MASKED_LM_MAPPING else "enc"


def arch_of_model(model: "PreTrainedModel") -> Arch:
    """Returns what kind of stacks a model has: as the row of its family says, or else as it behaves.

    A model whose earlier tokens do not change with a later one is a decoder, whatever its class is called.
    """
    stated = _stated_arch(model.config)
    if stated is not None:
        return stated
    from traceformer.models.behaviour import behaviour_of

    if _is_masked_only(model.config):  # where attention is approximate, a few tokens may not show that it looks ahead
        return "enc"
    looks_ahead = behaviour_of(model).looks_ahead
    return arch_of(model.config) if looks_ahead is None else "enc" if looks_ahead else "dec"


def _is_masked_only(config: Any) -> bool:
    from transformers.models.auto import modeling_auto as auto

    kind = type(config)
    return kind in auto.MODEL_FOR_MASKED_LM_MAPPING and kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING


def _stated_arch(config: Any) -> Arch | None:
    """What a config or the row of its family says outright."""
    if getattr(config, "is_encoder_decoder", False):
        return "encdec"
    row = own_family(config)
    if row is None:
        return None
    if len(row.stacks) > 1:  # one stack of an encoder-decoder, by itself
        return "dec" if getattr(config, "is_decoder", False) else "enc"
    return "dec" if "dec" in row.stacks else "enc"


def check_positions(model: "PreTrainedModel", lengths: Mapping[Stack, int]) -> None:
    """Makes sure that a model has a position for every token of a text with these lengths.

    Raises:
        UsageError: it has a table of positions, and it is too short; or it does not attend to all of so long a text.
    """
    full, longest = full_up_to(model.config), lengths.get("enc", 0)
    if full is not None and longest > full:
        raise UsageError(
            f"a text of {longest} tokens",
            why=f"beyond {full} tokens {type(model).__name__} attends to blocks of keys, some of them chosen at random",
            hint=f"cut it to {full} tokens, or load the model with attention_type='original_full'",
        )
    row = own_family(model.config)
    kinds = ("learned", "learned, relative bias", "alibi")
    is_table = row is not None and row.positions.limit != "none" and row.positions.kind in kinds
    tables = _tables_of(model)
    for stack, length in lengths.items():
        most = n_ctx_of(model.config) if is_table else tables.get(stack, 0)
        if most and length > most:
            raise UsageError(
                f"a text of {length} tokens",
                why=f"{type(model).__name__} has positions for {most}",
                hint=f"cut it to {most} tokens",
            )


def _tables_of(model: "PreTrainedModel") -> Mapping[Stack, int]:
    """How many positions the tables of a model have whose family has no row."""
    if own_family(model.config) is not None:
        return {}
    from traceformer.models.behaviour import behaviour_of

    return behaviour_of(model).positions
