"""What a family of models is to this package: the parts of which its row in `table` is made."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from traceformer.sites import OUTPUTS, SITES, ArrayKey, Attention, Stack

__all__ = [
    "Architecture",
    "AttentionRow",
    "ByFlag",
    "Family",
    "Gated",
    "Latent",
    "MlpKind",
    "Norm",
    "Positions",
    "ReadoutRow",
    "Requires",
    "StackRow",
    "Tap",
    "Tiny",
    "builds",
    "into",
]

MlpKind: TypeAlias = Literal["plain", "gated", "experts"]
Norm: TypeAlias = Literal["layer", "layer_plus_one", "layer_bare", "rms", "rms_plus_one", "rms_bare"]


Part: TypeAlias = Literal[
    "whole",
    "first half",
    "second half",
    "heads' first half",
    "heads' second half",
    "q",
    "k",
    "v",
    "expert ids",
    "expert weights",
]


class Tap(NamedTuple):
    """A tensor at a module: its first output or its first input, whole or a part of the last axis.

    A projection may hold two things for each head, as queries and their gate. For fused projections `part` is q, k or
    v; `fused` says whether the three lie one after the other (`concat`: all q heads, all k heads, all v heads) or head
    by head (`per_head`: kv_head 0's q heads, its k, its v, then those of kv_head 1). Experts are told, beside the
    tokens, where these go and what outputs are multiplied by: `expert ids` and `expert weights` are these.
    """

    path: str
    side: Literal["output", "input"] = "output"
    part: Part = "whole"
    fused: Literal["concat", "per_head"] = "concat"


def into(path: str) -> Tap:
    return Tap(path, "input")


class Latent(NamedTuple):
    """A projection by way of a narrow row for each token (multi-head latent attention): paths of modules in a block.

    `down` makes that row, `norm` norms it, `up` makes heads of it. Of keys and values `down` makes as well, behind the
    row, the part of keys that all heads share; `up` makes, head by head, what else is in a key, and a value.
    """

    down: str
    norm: str
    up: str


class Gated(NamedTuple):
    """A gate before an output projection, which reads the heads' mixed values times the sigmoid of what a tap shows."""

    gate: Tap
    out_proj: str


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """One attention of a block: the module handed to the attention function, its parts, and its sites.

    What a family has no such module for, or none that is known, is None; so is a projection that no module shows,
    position by position, as it enters the scores. With `q_latent` the query projection is the last of its modules; with
    `kv_latent` keys and values have none of their own.
    """

    module: str
    q_proj: Tap | None
    k_proj: Tap | None
    v_proj: Tap | None
    out_proj: str | None
    attn_out: Tap | None
    attn_norm: Tap | None = None
    post_norm: str | None = None  # the norm after the residual addition, in post-norm blocks
    scales_queries: bool = False  # itself, and hands the attention function a scaling of one
    scaling: float | None = None  # of scores, where the module does not say and it is not d_head ** -0.5
    gated: Gated | None = None  # then `out_proj`, which reads mixed values as they are, is None
    q_latent: Latent | None = None
    kv_latent: Latent | None = None

    def tap(self, site: str) -> Tap | None:
        return {
            "attn_norm": self.attn_norm,
            "q_proj": self.q_proj,
            "k_proj": self.k_proj,
            "v_proj": self.v_proj,
            "attn_out": self.attn_out,
            "kv_latent": None if self.kv_latent is None else Tap(self.kv_latent.norm),
        }.get(site)


@dataclass(frozen=True, slots=True)
class StackRow:
    """One stack of blocks; every path is relative to the base model (`blocks` ..) or to a block (`mlp` ..)."""

    blocks: str
    token_embed: str
    attention: AttentionRow
    # resid_mid, mlp_norm, mlp_up, mlp_act, mlp_mid, mlp_down, mlp_out where they exist, and the sites of experts, which
    # may be there in some layers only.
    mlp: Mapping[str, Tap]
    mlp_kind: MlpKind = "plain"
    final_norm: str | None = None
    cross: AttentionRow | None = None
    post_norm: str | None = None  # the norm after the MLP's residual addition, in post-norm blocks
    parallel: bool = False  # attention and MLP both read the block's input
    attends: bool = True  # whether any of its blocks has attention
    scale: float | str = 1.0  # what sublayers make is multiplied by before it is added, or the config's name of that

    def attention_of(self, kind: Attention | None) -> AttentionRow | None:
        return self.cross if kind == "cross" else self.attention if kind == "self" else None


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a model is built: its stacks, and whether its attention passes through an attention function.

    That is transformers' own, or, where `own_attention` names one, that of `models.own_attention`. `refused` are places
    that are not recorded although they seem to be there, and why: each as `str(ArrayKey)`. `only` are places that are
    there in some layers alone, although other blocks have a module of that name, too. `unedited` are places that are
    recorded, but where an edit would not do what it says, and why. `pads_texts` is of models that pad what they are
    given, on the right, up to a length that they can take. `readout` is of a row that was chosen by hand: what its
    family does behind the last block, where it is proved that the model does so, too.
    """

    stacks: Mapping[Stack, StackRow]
    has_attention_function: bool = True
    own_attention: str = ""
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    pads_texts: bool = False
    readout: "ReadoutRow | None" = None
    only: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    unedited: Mapping[str, str] = field(default_factory=dict[str, str])

    def has(self, key: ArrayKey) -> bool:
        """Whether such a model has such a place. Of a model's output it says nothing: its class decides (`outputs`)."""
        row = self.stacks.get(key.stack)
        if row is None or str(key) in self.refused:
            return False
        if key.attention is not None:
            attention = row.attention_of(key.attention)
            if attention is None or not row.attends:
                return False
            if key.site in ("q", "k", "v", "z", "attn_scores", "attn_pattern"):
                return self.has_attention_function
            return attention.tap(key.site) is not None
        if key.site == "final_norm":
            return row.final_norm is not None
        if key.site in ("token_embed", "embed", "resid_pre", "resid_post", "hidden", *OUTPUTS):
            return True
        return key.site in row.mlp

    def keys(self, site: str) -> tuple[ArrayKey, ...]:
        """Returns the places of a site in such a model: encoder before decoder, self before cross."""
        attentions = ("self", "cross") if SITES[site].of_attention else (None,)
        found = (ArrayKey(stack, attention, site) for stack in self.stacks for attention in attentions)
        last = list(self.stacks)[-1]
        return tuple(key for key in found if self.has(key) and (site not in OUTPUTS or key.stack == last))

    def to_json(self) -> dict[str, Any]:
        """Returns all that it is made of, as JSON has it: a tap is [path, side, part, fused]."""
        data = json.loads(json.dumps(asdict(self)))
        for own in data["stacks"].values():
            if own["scale"] == 1:
                del own["scale"]
            for kind in ("attention", "cross"):
                own[kind] = own[kind] and {name: value for name, value in own[kind].items() if not _unsaid(name, value)}
        if self.readout is not None and self.readout.logit_divisor == ("", 1.0):
            del data["readout"]["logit_divisor"]
        return {name: value for name, value in data.items() if value or name not in ("readout", "only", "unedited")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Architecture":
        """Returns what `to_json` made this of.

        Raises:
            KeyError, TypeError: it is nothing that `to_json` makes.
        """
        stacks: dict[Stack, StackRow] = {stack: _stack_row(own) for stack, own in data["stacks"].items()}
        return cls(
            stacks,
            data["has_attention_function"],
            data["own_attention"],
            data["refused"],
            data["pads_texts"],
            _readout_row(data.get("readout")),
            {key: tuple(layers) for key, layers in data.get("only", {}).items()},
            data.get("unedited", {}),
        )


_LATER = ("gated", "q_latent", "kv_latent")


def _unsaid(name: str, value: Any) -> bool:
    """Whether a row is written without this: what came later than other fields, and is nothing in most rows."""
    return value is None and name in _LATER


def _tap(data: Any) -> Tap | None:
    return None if data is None else Tap(*data)


def _readout_row(data: Mapping[str, Any] | None) -> "ReadoutRow | None":
    if data is None:
        return None
    read: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return ReadoutRow(**read)


def _attention_row(data: Mapping[str, Any] | None) -> AttentionRow | None:
    if data is None:
        return None
    read: dict[str, Any] = {name: _tap(data[name]) for name in ("q_proj", "k_proj", "v_proj", "attn_out", "attn_norm")}
    gated = data.get("gated")
    read["gated"] = None if gated is None else Gated(Tap(*gated[0]), gated[1])
    read |= {name: Latent(*data[name]) for name in ("q_latent", "kv_latent") if data.get(name) is not None}
    return AttentionRow(**{**data, **read})


def _stack_row(data: Mapping[str, Any]) -> StackRow:
    read: dict[str, Any] = {name: _attention_row(data[name]) for name in ("attention", "cross")}
    read["mlp"] = {site: Tap(*tap) for site, tap in data["mlp"].items()}
    return StackRow(**{**data, **read})


class ByFlag(NamedTuple):
    """Blocks that come in two builds, chosen by a flag of the config; `default` is what it is where left out.

    Either may in turn be chosen by another flag. A setting that is no flag counts as true where it is `when`.
    """

    flag: str
    when_true: "Architecture | ByFlag"
    when_false: "Architecture | ByFlag"
    default: Any
    when: Any = True

    def choose(self, stated: Any) -> "Architecture | ByFlag":
        """Returns the blocks of a config that states this of the flag."""
        return self.when_true if stated == self.when else self.when_false


def builds(blocks: Architecture | ByFlag) -> Iterator[tuple[str, Architecture]]:
    """Yields the builds that blocks come in, with the flags that choose each: none where there is one build."""
    if isinstance(blocks, Architecture):
        yield "", blocks
        return
    for word, chosen in (("", blocks.when_true), ("not ", blocks.when_false)):
        for flags, each in builds(chosen):
            yield ", ".join(filter(None, (f"{word}{blocks.flag}", flags))), each


class Requires(NamedTuple):
    """What the config must say of a setting, if it says anything, for a row to be right: one of `allowed`.

    Of a list each element must be. `why` is the reason that others are told.
    """

    setting: str
    allowed: tuple[Any, ...]
    why: str

    def is_met(self, stated: Any) -> bool:
        return all(each in self.allowed for each in (stated if isinstance(stated, list | tuple) else (stated,)))


class Positions(NamedTuple):
    """How a model knows where a token stands, and how many positions it has.

    `limit` says how these are counted: as the config states them (`stated`), less those up to the padding id
    (`behind padding`), or not at all, since any length works (`none`). Of a decoder that learned its positions, `table`
    is the module that holds them, from the base model, and `first` the row that is its first position.
    """

    kind: Literal[
        "learned", "sinusoidal", "rotary", "relative bias", "learned, relative bias", "relative", "alibi", "recurrent"
    ]
    limit: Literal["stated", "behind padding", "none"] = "stated"
    table: str = ""
    first: int = 0


@dataclass(frozen=True, slots=True)
class ReadoutRow:
    """What a family does behind its last block.

    Attributes:
        norm: LayerNorm, RMSNorm, Gemma's RMSNorm times 1 + w, or one without weights.
        epsilon: The config's name of the number that the norm adds to the variance (none if it has no name there), and
            the family's default.
        softcap: The config's name of the bound c of logits c tanh(x / c), and the family's default.
        scaled: Whether the stream is divided by sqrt(d_model) behind the norm, where the config says so (T5).
        logit_scale: The config's name of the number that logits are multiplied by, and the family's default.
        logit_divisor: The config's name of the number that logits are divided by, and the family's default.
    """

    norm: Norm = "rms"
    epsilon: tuple[str, float] = ("rms_norm_eps", 1e-6)
    softcap: tuple[str, float | None] = ("", None)
    scaled: bool = False
    logit_scale: tuple[str, float] = ("", 1.0)
    logit_divisor: tuple[str, float] = ("", 1.0)


@dataclass(frozen=True, slots=True)
class Tiny:
    """A tiny random model of a family.

    Attributes:
        model: Its class in transformers, or with its module in front.
        config: What its config says.
        variants: What the configs of its other builds say beside that, by names of their own.
    """

    model: str
    config: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def builds(self, family: str) -> Mapping[str, Mapping[str, Any]]:
        """Returns the configs of all tiny models, by the family's name and those of its other builds."""
        return {family: self.config, **{name: {**self.config, **own} for name, own in self.variants.items()}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """All that this package knows of the models of one `model_type`.

    Attributes:
        blocks: Where each site lives.
        positions: How a model knows where a token stands.
        readout: What stands behind the last block of a decoder; None where that is more than a norm and a matrix.
        tiny: A tiny model of it, for proofs.
        scaled_embedding: Whether token embeddings are multiplied by a constant before they enter block 0.
        sinks: Whether each head has a sink beside its keys, so that rows of its pattern sum to less than 1.
        requires: What its config must say for all this to hold; models of other configs are refused.
    """

    blocks: Architecture | ByFlag
    positions: Positions
    tiny: Tiny
    readout: ReadoutRow | None = None
    scaled_embedding: bool = False
    sinks: bool = False
    requires: tuple[Requires, ...] = ()

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The builds that its blocks come in: one, or several of which flags choose."""
        return tuple(each for _, each in builds(self.blocks))

    @property
    def module(self) -> str:
        """What holds its class, and makes it known to transformers when imported."""
        return self.tiny.model.rpartition(".")[0] or "transformers"

    @property
    def stacks(self) -> tuple[Stack, ...]:
        return tuple(self.architectures[0].stacks)

    @property
    def mlp_kind(self) -> MlpKind | None:
        """The kind of its MLPs; None where a flag decides."""
        kinds: set[MlpKind] = {row.mlp_kind for each in self.architectures for row in each.stacks.values()}
        return kinds.pop() if len(kinds) == 1 else None

    @property
    def is_post_norm(self) -> bool:
        """Whether all its blocks norm the stream after each addition."""
        return all(row.post_norm is not None for each in self.architectures for row in each.stacks.values())
