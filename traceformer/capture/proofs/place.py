"""What a claim about a recorded array is, and the place where it is tested."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from traceformer.capture.spots import scale_of
from traceformer.models.dims import ModelDims, StackDims
from traceformer.models.family import Architecture, AttentionRow, StackRow
from traceformer.models.mechanisms import layer_config
from traceformer.models.part import stack_config, text_part
from traceformer.models.quantised import holds_codes
from traceformer.shapes import Float, Num
from traceformer.sites import SITES, ArrayKey, Attention, Stack

__all__ = ["Claim", "NotHere", "Place", "Reference", "Rounding", "Scene", "Sides", "apply", "error_between"]


class NotHere(LookupError):
    """The claim does not apply here: the family has no such site, or does it another way."""


class Rounding(Enum):
    """How far from each other the two sides of a true claim can be."""

    NONE = auto()  # the same numbers, seen twice
    FLOAT32 = auto()  # computed here from recorded arrays, in float32 whatever the model's dtype
    MODEL = auto()  # one operation of the model, done again in its dtype
    SOFTMAX = auto()  # through the model's own softmax, which amplifies the rounding of its scores
    BATCH = auto()  # the whole forward pass in a batch of another shape


@dataclass(frozen=True, slots=True)
class Reference:
    """What the model itself returns for a batch while nothing is recorded, padding included.

    `logits` is its own output, whatever its head makes, and None without a head; `hidden` has one tensor per entry,
    `attentions` (eager) one per layer, `router` (logits of experts) one per layer that has experts; a stack whose model
    returns none is not in them.
    """

    logits: Tensor | None
    hidden: Mapping[Stack, tuple[Tensor, ...]]
    attentions: Mapping[tuple[Stack, Attention], tuple[Tensor, ...]]
    router: Mapping[Stack, tuple[Tensor, ...]] = field(default_factory=dict[Stack, tuple[Tensor, ...]])


@dataclass(frozen=True, slots=True)
class Scene:
    """One recorded batch: the model and its row, the examples, what was recorded, and what the model itself says.

    `arrays` holds one tensor per example, cut to its true tokens, in the model's dtype (squares in float32).
    """

    model: PreTrainedModel
    row: Architecture
    dims: ModelDims
    ids: tuple[Mapping[Stack, Tensor], ...]
    arrays: Mapping[tuple[ArrayKey, int | None], list[Tensor]]
    reference: Reference


@dataclass(frozen=True, slots=True)
class Place:
    """One example in one layer of one stack, in one of its attentions; `layer` is None for sites without layers."""

    scene: Scene
    example: int
    stack: Stack
    attention: Attention | None = None
    layer: int | None = None

    def __call__(self, site: str, *, stack: Stack | None = None, attention: Attention | None = None) -> Tensor:
        """Returns what was recorded here: (position, width), (head, position, width), (head, query, key) or (width)."""
        attention = (attention or self.attention) if SITES[site].of_attention else None
        layer = self.layer if SITES[site].per_layer or site == "hidden" else None
        found = self.scene.arrays.get((ArrayKey(stack or self.stack, attention, site), layer))
        if found is None:
            raise NotHere
        return found[self.example]

    def at(self, layer: int, stack: Stack | None = None) -> "Place":
        return Place(self.scene, self.example, stack or self.stack, self.attention, layer)

    @property
    def config(self) -> Any:
        """What the config of this stack says of this layer."""
        return layer_config(stack_config(self.scene.model.config, self.stack), self.layer)

    @property
    def part(self) -> Any:
        """The module that the row's paths count from."""
        return text_part(self.scene.model)

    def beside(self, name: str) -> Any:
        """Returns the module of this name beside the blocks, or else beside what holds them; None where neither is."""
        return next((found for owner in self._around() if (found := getattr(owner, name, None)) is not None), None)

    def _around(self) -> Iterator[Any]:
        path = self.row.blocks
        while path:
            path = path.rpartition(".")[0]
            yield self.part.get_submodule(path)

    @property
    def row(self) -> StackRow:
        return self.scene.row.stacks[self.stack]

    @property
    def scale(self) -> float:
        """What sublayers' outputs are multiplied by before they are added."""
        return scale_of(self.row)

    @property
    def attention_row(self) -> AttentionRow:
        row = self.row.attention_of(self.attention)
        assert row is not None
        return row

    @property
    def dims(self) -> StackDims:
        """The sizes of this layer."""
        return self.scene.dims.stacks[self.stack].at(self.layer)

    def module(self, path: str) -> Any:
        """The module at a path from this block."""
        return self.part.get_submodule(f"{self.row.blocks}.{self.layer}.{path}")

    def apply(self, path: str, rows: Tensor) -> Tensor:
        """Returns what the module at a path from this block makes of (position, width)."""
        return apply(self.module(path), rows)

    def normed(self, path: str, rows: Tensor) -> Tensor:
        """Returns the rows after the module at this path if it is a norm, unchanged if it is not."""
        return self.apply(path, rows) if "norm" in type(self.module(path)).__name__.lower() else rows

    def after_attention(self, attention: Attention, stream: Tensor) -> Tensor:
        """Returns the residual stream after one of the block's attentions, its post-norm included."""
        row = self.row.attention_of(attention)
        assert row is not None
        stream = stream + self("attn_out", attention=attention)
        return stream if row.post_norm is None else self.apply(row.post_norm, stream)

    def last_stream(self) -> Tensor:
        """Returns what the stack hands to the head or to cross-attention: after the final norm where there is one."""
        last = self.at(self.dims.n_layers - 1)
        return last("resid_post") if self.row.final_norm is None else last("final_norm")


def apply(module: Any, rows: Float[Tensor, "position d_in"]) -> Float[Tensor, "position d_out"]:
    """Returns what a module makes of (position, width), given as a batch of one in the module's dtype.

    The weights are those that it multiplies by, whatever it holds: a quantised module's parameters are codes.
    """
    dtype = next((each.dtype for each in module.parameters() if not holds_codes(each)), rows.dtype)
    output = module(rows[None].to(dtype))
    made = output[0] if isinstance(output, tuple) else output
    return (
        made if len(made) == len(rows) > 1 and made.dim() == 2 else made[0]
    )  # some give rows of tokens, without batch


def error_between(actual: Num[Tensor, "..."], expected: Num[Tensor, "..."]) -> float:
    """Returns max |actual - expected| / max(1, max |expected|); inf where the shapes differ, nan is never small."""
    if actual.shape != expected.shape:
        return torch.inf
    if actual.numel() == 0:
        return 0.0
    actual, expected = actual.cpu().double(), expected.cpu().double()
    error = ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    return torch.inf if error != error else error


Sides = tuple[Tensor, Tensor]


class Claim(NamedTuple):
    """One fact about a site; `sides` returns what was recorded and what it must equal, or raises `NotHere`."""

    site: str
    fact: str
    sides: Callable[[Place], Sides]
    rounding: Rounding
