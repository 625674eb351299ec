"""Everything that can be recorded: one table of sites, and how a user selects from it.

A *site* is a kind of place in a transformer (`resid_mid`, `attn_pattern`). An `ArrayKey` is a site in one
stack of a model (`dec.resid_mid`, `dec.cross.attn_pattern`). An `ArraySpec` is what is recorded there: which
layers, which heads, how wide. A `Selection` is what the user asked for, before any model is known.
"""

import operator
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from traceformer.errors import SelectionError

__all__ = [
    "GROUPS",
    "OUTPUTS",
    "SITES",
    "ArrayKey",
    "ArraySpec",
    "Attention",
    "Numbers",
    "Selection",
    "Site",
    "Stack",
    "as_head",
    "as_indices",
    "choose",
    "expand_sites",
    "parse_indices",
]

Stack: TypeAlias = Literal["enc", "dec"]
Attention: TypeAlias = Literal["self", "cross"]


@dataclass(frozen=True, slots=True)
class Site:
    """One kind of place: its axes within one example (a `layer` axis first where it has one) and its meaning."""

    name: str
    axes: tuple[str, ...]
    meaning: str

    @property
    def per_layer(self) -> bool:
        return self.axes[0] == "layer"

    @property
    def is_matrix(self) -> bool:
        """True for the two sites that are (query, key) squares."""
        return self.axes[-1] == "key"

    @property
    def is_per_token(self) -> bool:
        """True for sites with one row per token (and layer, and head)."""
        return "position" in self.axes

    @property
    def is_per_example(self) -> bool:
        """True for sites with one row per example (and layer, and head): what is told of a whole text."""
        return not self.is_matrix and not self.is_per_token

    @property
    def is_derived(self) -> bool:
        """True for what is computed from another site while the model runs.

        It has a parameter of its own and no group, or (head metrics) a group of its own.
        """
        return self.name in _DERIVED

    @property
    def is_of_patterns(self) -> bool:
        """True for what is made of patterns while the model runs, in place of these."""
        return self.name in _OF_PATTERNS

    @property
    def may_be_nan(self) -> bool:
        """True where NaN is an answer: a metric that has no meaning in some text."""
        return self.name == "head_metrics"

    @property
    def is_in_float32(self) -> bool:
        """True for the few numbers that are stored in float32 whatever the others are."""
        return self.name in ("head_metrics", "attn_topk_rest")

    @property
    def holds_ids(self) -> bool:
        """True where values are ids of tokens, keys or experts, whole numbers of which statistics mean nothing."""
        return self.name in ("lens_topk", "expert_topk", "attn_topk")

    @property
    def holds_features(self) -> bool:
        """True for activations of a token, one for each feature of the model: what may be rounded together."""
        return self.is_per_token and not self.is_derived and self.axes[-1] in _FEATURES

    @property
    def is_ranked(self) -> bool:
        """True where a row is a choice, the first before the second: its ids, or what goes with them."""
        return self.axes[-1] in ("rank", "rest")

    @property
    def of_experts(self) -> bool:
        """True for what only a mixture of experts has, in those layers that are one."""
        return self.name in _OF_EXPERTS

    @property
    def is_routing(self) -> bool:
        """True for what says where tokens go."""
        return self.name in _ROUTING

    @property
    def of_attention(self) -> bool:
        """True where an encoder-decoder's decoder has the site twice: in self- and in cross-attention."""
        return self.name in _OF_ATTENTION

    @property
    def of_values(self) -> bool:
        """True where d_head is the width of values, which that of queries and keys may differ from."""
        return self.name in ("v_proj", "v", "z")

    @property
    def of_few(self) -> bool:
        """True for what models of one kind have, and nobody misses in others."""
        return self.name in _OF_FEW


_LARGEST = 2**31 - 1  # number of a layer or head, or width
_FEATURES = ("d_model", "d_mlp", "d_head", "d_latent", "d_shared")
_ROW = ("layer", "position", "d_model")
_MLP = ("layer", "position", "d_mlp")
_Q = ("layer", "head", "position", "d_head")
_KV = ("layer", "kv_head", "position", "d_head")
_LATENT = ("layer", "position", "d_latent")
_HIDDEN = ("hidden_layer", "position", "d_model")
_SQUARE = ("layer", "head", "query", "key")
_TOP = ("layer", "position", "rank")
_SHARED = ("layer", "position", "d_shared")
_EXPERT = ("layer", "position", "expert")
_TOP_KEYS = ("layer", "head", "position", "rank")

SITES: Mapping[str, Site] = {
    name: Site(name, axes, meaning)
    for name, axes, meaning in (
        ("token_embed", ("position", "d_model"), "output of the token embedding itself"),
        ("embed", ("position", "d_model"), "what enters block 0: token and position embeddings, scaled and normed"),
        ("resid_pre", _ROW, "residual stream entering a block"),
        ("attn_norm", _ROW, "normed input of attention"),
        ("q_proj", _Q, "raw query projection: after bias, before QK-norm and rotary"),
        ("k_proj", _KV, "raw key projection: after bias, before QK-norm and rotary"),
        ("v_proj", _KV, "raw value projection: after bias"),
        ("kv_latent", _LATENT, "normed row that keys and values are made of, which is cached (latent attention)"),
        ("q", _Q, "queries as the dot product sees them: after QK-norm and rotary"),
        ("k", _KV, "keys as the dot product sees them: after QK-norm and rotary"),
        ("v", _KV, "values as the attention pattern mixes them"),
        ("attn_scores", _SQUARE, "scaled (and softcapped) scores with position bias, before the mask"),
        ("attn_pattern", _SQUARE, "softmax after mask (and sink): where each query looks"),
        ("z", _Q, "per-head mix of values, before W_O"),
        ("attn_out", _ROW, "what attention adds to the residual stream (after a post-norm where there is one)"),
        ("resid_mid", _ROW, "residual stream between attention and MLP"),
        ("mlp_norm", _ROW, "normed input of the MLP"),
        ("mlp_up", _MLP, "output of the up projection"),
        ("mlp_act", _MLP, "output of the activation function (of the gate where there is one)"),
        ("mlp_mid", _MLP, "input of the down projection"),
        ("mlp_down", _ROW, "output of the down projection, before any post-norm"),
        ("mlp_out", _ROW, "what the MLP adds to the residual stream (after a post-norm where there is one)"),
        ("router_logits", _EXPERT, "of a mixture of experts: the router's matrix times its input"),
        ("expert_topk", _TOP, "ids of the experts that a token went to, the heaviest first"),
        ("expert_weight", _TOP, "what the outputs of these experts are multiplied by, before they are added up"),
        ("shared_up", _SHARED, "output of the up projection of the expert that all tokens share: not the whole MLP"),
        ("shared_act", _SHARED, "output of that expert's activation function"),
        ("shared_mid", _SHARED, "input of that expert's down projection"),
        ("shared_out", _ROW, "output of that expert, before a gate of its own"),
        ("resid_post", _ROW, "residual stream leaving a block"),
        ("hidden", _HIDDEN, "Hugging Face hidden_states; the last entry is after the final norm"),
        ("final_norm", ("position", "d_model"), "after the final norm"),
        ("logits", ("position", "d_vocab"), "the model's own logits (softcap included)"),
        ("class_logits", ("label",), "a classifier's or reward model's own logits, of the whole text"),
        ("token_class_logits", ("position", "label"), "a token classifier's own logits; start and end of an answer"),
        ("projection", ("layer", "position", "direction"), "rows a along trait vectors v (`project`): (a @ v) / |v|"),
        ("lens_topk", _TOP, "ids of the k likeliest next tokens after the layer, the likeliest first (`lens_top_k`)"),
        ("lens_topk_prob", _TOP, "their probabilities: the softmax over the vocabulary"),
        ("attn_topk", _TOP_KEYS, "the keys that a query looks at most, the largest first; -1 is none (`store_topk`)"),
        ("attn_topk_weight", _TOP_KEYS, "their weights in attn_pattern"),
        ("attn_topk_rest", ("layer", "head", "position", "rest"), "what all other keys of the query have together"),
        (
            "head_metrics",
            ("layer", "head", "metric"),
            "of one text: entropy, sparsity, distance, max_weight, previous_token, first_token, self, duplicate_token, "
            "induction, retrieval, local_mass, effective_span",
        ),
    )
}  # fmt: skip

OUTPUTS = ("logits", "class_logits", "token_class_logits")
"""The sites that are a model's own output, of which its class gives one, or none."""

_OF_PATTERNS = frozenset(("attn_topk", "attn_topk_weight", "attn_topk_rest", "head_metrics"))
_DERIVED = frozenset(("projection", "lens_topk", "lens_topk_prob", *_OF_PATTERNS))
_ROUTING = ("router_logits", "expert_topk", "expert_weight")
_OF_EXPERTS = frozenset((*_ROUTING, "shared_up", "shared_act", "shared_mid", "shared_out"))
_OF_FEW = frozenset(("class_logits", "token_class_logits", "kv_latent", *_OF_EXPERTS))
_OF_ATTENTION = frozenset(
    (
        *("attn_norm", "q_proj", "k_proj", "v_proj", "kv_latent", "q", "k", "v"),
        *("attn_scores", "attn_pattern", "z", "attn_out"),
        *_OF_PATTERNS,
    )
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "attn": ("attn_pattern",),
    "qkv": ("q", "k", "v"),
    "hidden": ("hidden",),
    "resid": ("embed", "resid_pre", "resid_mid", "resid_post"),
    "mlp": ("mlp_up", "mlp_act", "mlp_mid", "mlp_down", "mlp_out"),
    "experts": _ROUTING,
    "norms": ("attn_norm", "mlp_norm", "final_norm"),
    "internals": (
        *("q_proj", "k_proj", "v_proj", "attn_pattern", "resid_pre", "resid_mid", "resid_post"),
        *("mlp_up", "mlp_act", "mlp_down"),
    ),
    "logits": ("logits",),
    "heads": ("head_metrics",),
    "all": tuple(name for name, site in SITES.items() if not site.is_derived),
}


class ArrayKey(NamedTuple):
    """A site in one stack of a model; `attention` says which one, for the sites of attention only."""

    stack: Stack
    attention: Attention | None
    site: str

    def __str__(self) -> str:
        return ".".join(part for part in self if part)

    @classmethod
    def parse(cls, text: str) -> "ArrayKey":
        """Returns the key written as `dec.resid_mid` or `dec.cross.q`, the form that `str` gives."""
        match = re.fullmatch(r"(enc|dec)(?:\.(self|cross))?\.(\w+)", text)
        if not match or match[3] not in SITES or (match[2] is not None) != SITES[match[3]].of_attention:
            raise SelectionError(f"not an array key: {text!r}", hint="write dec.resid_mid or dec.self.q")
        return cls(match[1], match[2], match[3])  # pyright: ignore[reportArgumentType]

    @property
    def token_stack(self) -> Stack:
        """The stack whose tokens the rows belong to: keys and values of cross-attention are the encoder's."""
        return "enc" if self.attention == "cross" and SITES[self.site].axes[1] == "kv_head" else self.stack

    @property
    def key_stack(self) -> Stack:
        """The stack whose tokens a matrix's `key` axis runs over."""
        return "enc" if self.attention == "cross" else self.stack


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array to record.

    `layers` and `heads` are the model's own numbers in storage order (`heads` are kv_heads for `k` and `v`),
    empty where the site has no such axis; `width` is the size of the last axis, 0 for (query, key) squares.
    `part` is set while a run stores an array in several: for what lies beside its codes. No run states it.
    """

    key: ArrayKey
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    width: int = 0
    part: Literal["", "scale", "massive"] = ""

    @property
    def site(self) -> Site:
        return SITES[self.key.site]

    def to_json(self) -> dict[str, Any]:
        return {"key": str(self.key), "layers": list(self.layers), "heads": list(self.heads), "width": self.width}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ArraySpec":
        """Returns the spec that `to_json` wrote.

        Raises:
            KeyError, TypeError: a member is missing, or no numbers from 0.
            SelectionError: there is no such array.
        """
        spec = cls(ArrayKey.parse(data["key"]), tuple(data["layers"]), tuple(data["heads"]), data["width"])
        numbers = (*spec.layers, *spec.heads, spec.width)
        if not all(type(number) is int and 0 <= number <= _LARGEST for number in numbers):
            raise TypeError(f"layers, heads and width of {spec.key} are whole numbers, {_LARGEST} at most")
        return spec


def expand_sites(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the sites that the given sites and groups stand for, in the table's order, each once.

    Raises:
        SelectionError: a name that is neither; the message proposes the nearest one.
    """
    wanted: set[str] = set()
    for name in names:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SelectionError(f"{name!r} is no site", hint=f"groups: {' '.join(GROUPS)}; sites: {' '.join(SITES)}")
        if name in GROUPS:
            wanted.update(GROUPS[name])
        elif name in SITES:
            wanted.add(name)
        else:
            import difflib

            near = difflib.get_close_matches(name, [*GROUPS, *SITES], n=1)
            raise SelectionError(
                f"no site {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"groups: {' '.join(GROUPS)}; sites: {' '.join(SITES)}",
            )
    if not wanted:
        raise SelectionError("nothing to record", hint=f"choose from {' '.join(GROUPS)}, or name sites")
    return tuple(name for name in SITES if name in wanted)


_LARGEST_INDEX = 99_999  # far beyond any model, and small enough to write every number of a range down


def parse_indices(text: str) -> tuple[int, ...]:
    """Returns the sorted, distinct numbers in a list such as `0,3 5-7`: commas or spaces, ranges inclusive.

    Negative numbers are kept, for `choose` to report as out of range.

    Raises:
        SelectionError: anything else in the text, a range that runs backwards, or no number at all.
    """
    numbers: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"(-?\d+)(?:-(\d+))?", part)
        if not match:
            raise SelectionError(f"cannot read {part!r} in the index list {text!r}", hint="write 0,3,5-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last > _LARGEST_INDEX:
            raise SelectionError(f"{last} in the index list {text!r} is no layer or head", hint="write 0,3,5-7")
        if last < first:
            raise SelectionError(f"the range {part!r} runs backwards", hint=f"write {last}-{first}")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


Numbers: TypeAlias = int | Iterable[int] | str | None
"""Layers, heads or positions as a person writes them: one, several, text such as `0,3,5-7`, or None for all."""


def as_indices(numbers: Numbers) -> tuple[int, ...] | None:
    """Returns the numbers that are meant, None for all.

    Raises:
        SelectionError: these are no whole numbers.
    """
    if numbers is None or isinstance(numbers, str):
        return None if numbers is None else parse_indices(numbers)
    written: Any = numbers.tolist() if hasattr(numbers, "tolist") else numbers  # pyright: ignore
    try:
        entries = list(written) if hasattr(written, "__iter__") else [written]
        if any(isinstance(entry, bool) for entry in entries):  # a mask, which would be read as 0 and 1
            raise TypeError
        return tuple(map(operator.index, entries))
    except TypeError:
        raise SelectionError(f"{numbers!r} names no numbers", hint='a whole number, several, or "0,3,5-7"') from None


def as_head(named: Any) -> tuple[int, int]:
    """Returns layer and number of a head that is written `L5H3`, or given as these two.

    Raises:
        SelectionError: it is neither.
    """
    if isinstance(named, str):
        match = re.fullmatch(r"[Ll](\d{1,5})[Hh](\d{1,5})", named)
        numbers = None if match is None else (int(match[1]), int(match[2]))
    else:
        numbers = as_indices(named)
    if numbers is None or len(numbers) != 2:
        raise SelectionError(f"no head {named!r}", hint="layer and head, such as L5H3")
    return numbers[0], numbers[1]


def _by_stack(numbers: Numbers | Mapping[Stack, Numbers]) -> dict[Stack, tuple[int, ...] | None]:
    if isinstance(numbers, Mapping):
        of_stack = cast("Mapping[Stack, Numbers]", numbers)
        for stack in of_stack:
            if stack not in ("enc", "dec"):
                raise SelectionError(f"no stack {stack!r}", hint='"enc" or "dec"')
        return {stack: as_indices(own) for stack, own in of_stack.items()}
    both: tuple[Stack, ...] = ("enc", "dec")
    return dict.fromkeys(both, as_indices(numbers))


def choose(wanted: tuple[int, ...] | None, available: int, what: str) -> tuple[int, ...]:
    """Returns those of `wanted` (all, for None) that lie in 0 .. available-1, in order, each once; warns of the others.

    Raises:
        SelectionError: none is left.
    """
    if wanted is None:
        return tuple(range(available))
    kept = tuple(sorted({index for index in wanted if 0 <= index < available}))
    dropped = [index for index in wanted if index not in kept]
    if not kept:
        raise SelectionError(f"{what} {_listed(dropped)} requested", why=f"there are only {what} 0-{available - 1}")
    if dropped:
        warnings.warn(f"dropping {what} {_listed(dropped)}: valid range is 0-{available - 1}", stacklevel=2)
    return kept


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


@dataclass(frozen=True, slots=True)
class Selection:
    """What a user asks to record: sites or groups, and per stack the layers and heads (None = all).

    `Selection(("attn", "resid_mid"), layers={"dec": (0, 5)})`. `derived` are what is to be computed from rows while the
    model runs (`capture/derived.py`: `Traits`, `LensTopK`), beside the sites or alone.
    """

    capture: tuple[str, ...]
    layers: Mapping[Stack, tuple[int, ...] | None] = field(default_factory=dict[Stack, tuple[int, ...] | None])
    heads: Mapping[Stack, tuple[int, ...] | None] = field(default_factory=dict[Stack, tuple[int, ...] | None])
    hidden_layers: tuple[int, ...] | None = None
    derived: tuple[Any, ...] = ()

    @classmethod
    def of(
        cls,
        capture: "str | Iterable[str] | Selection",
        *,
        layers: "Numbers | Mapping[Stack, Numbers]" = None,
        heads: "Numbers | Mapping[Stack, Numbers]" = None,
        hidden_layers: "Numbers" = None,
        derived: Iterable[Any] = (),
    ) -> "Selection":
        """Returns the selection that is meant by `"attn resid"`, by a list of names, or by a selection itself.

        Layers and heads are numbers, or text such as `0,3,5-7`, for both stacks or by stack (`{"dec": "0-3"}`).

        Raises:
            SelectionError: a name or a list that cannot be read.
        """
        if isinstance(capture, Selection):
            return capture
        several: Any = capture
        names: list[Any] = [several] if isinstance(several, str) or not isinstance(several, Iterable) else [*several]
        if not all(isinstance(name, str) for name in names):
            raise SelectionError(f"`capture={capture!r}`", hint='names of sites or groups, such as "attn resid"')
        sites = tuple(name for text in names for name in re.split(r"[,\s]+", text) if name)
        selection = cls(sites, _by_stack(layers), _by_stack(heads), as_indices(hidden_layers), tuple(derived))
        _ = selection.sites  # a misspelt one fails here, before a model is loaded
        return selection

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites selected, in the table's order; none where only derived ones are to be recorded."""
        return expand_sites(self.capture) if self.capture else ()

    @property
    def needs_head(self) -> bool:
        """Whether a language-model head is needed, which an encoder may be loaded without."""
        return "logits" in self.sites or any(each.needs_head for each in self.derived)

    def is_named(self, name: str) -> bool:
        """Whether a site was asked for by its own name: then a model without it is an error, not an omission."""
        return name in self.capture
