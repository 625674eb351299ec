"""Direct logit attribution: a logit as the sum of what each part of the model adds to it.

1. At one position the residual stream is the sum of what was added to it: the embedding, what heads and MLPs wrote, and
   biases. `Addition` is what one sublayer adds, part by part.
2. A norm is a linear map once its scale is known: (x - mean(x)) / s * w + b. `split` goes through the sublayers forward
   and takes each scale from the stream as it is there; that of the final norm from the recorded stream.
3. Backward from the unembedding's row (or the difference of two), each norm's transposed map turns the direction that
   counts; a part's contribution is what it adds, times the direction where it is added.
4. The contributions, with the biases of norms and unembedding, add up to the logit. What is left, the remainder, is
   what storing and the model's own rounding did. `explained` bounds that; a larger one means that the parts are not
   those of this stream.

The source is Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021). Contributions are direct: what
a head does to the logit through later layers counts as theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from traceformer.models.block_weights import NormWeights
from traceformer.shapes import Float, Float64
from traceformer.sites import Attention

__all__ = ["Addition", "Kind", "Part", "Split", "explained", "split"]

Kind: TypeAlias = Literal["embed", "head", "attn", "mlp", "bias", "norm"]

_ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_SMALLEST = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 0.0}  # half of a step between the smallest numbers
_STORING, _COMPUTING = 8.0, 32.0


class Part(NamedTuple):
    """A part of a model that adds to the residual stream.

    `kind` is `embed`, `head`, `attn` (all heads of an attention, where they cannot be told apart), `mlp`, `bias` (of
    W_O; without a layer of the unembedding) or `norm` (the bias of a norm; without a layer of the final one).
    `attention` is None of MLPs and what is behind them.
    """

    kind: Kind
    layer: int | None = None
    head: int | None = None
    attention: Attention | None = None

    def __str__(self) -> str:
        place = "" if self.layer is None else f"L{self.layer}"
        cross = " cross" if self.attention == "cross" else ""
        match self.kind:
            case "embed":
                return "embed"
            case "head":
                return f"{place}H{self.head}{cross}"
            case "attn":
                return f"{place}{cross} attn"
            case "mlp":
                return f"{place} MLP"
            case "bias":
                return f"{place}{cross} W_O bias" if place else "unembedding bias"
            case "norm":
                behind = "MLP" if self.attention is None else f"{self.attention} attn"
                return f"{place} norm bias behind {behind}" if place else "final norm bias"


@dataclass(frozen=True, slots=True)
class Addition:
    """What one sublayer adds to the stream at one position.

    Attributes:
        layer: The model's number.
        attention: Which attention; None for the MLP.
        parts: Of what it is the sum.
        outputs: What each part gives.
        norm_of_sum: The norm that the sum goes through before it is added; None for none.
        norm_of_stream: The norm that the stream goes through afterwards; None for none.
    """

    layer: int
    attention: Attention | None
    parts: tuple[Part, ...]
    outputs: Float64[np.ndarray, "part d_model"]
    norm_of_sum: NormWeights | None = None
    norm_of_stream: NormWeights | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """A logit, split.

    Attributes:
        parts: In the order of the model.
        contributions: Theirs to the logit.
        directions: For each sublayer (layer, attention) the direction along which its outputs count.
        total: The logit, from the recorded stream.
        rounded: What one rounding of every number that is added up, by its own size, does to the logit: the root of the
            sum of squares, since roundings are independent of each other.
        steps: The same of an error of one, of any number.
    """

    parts: tuple[Part, ...]
    contributions: Float64[np.ndarray, "part"]
    directions: Mapping[tuple[int, Attention | None], Float64[np.ndarray, "d_model"]]
    total: float
    rounded: float
    steps: float


@dataclass(frozen=True, slots=True)
class _Frozen:
    """A norm at the scale that it had: a linear map, and a bias."""

    gain: Float64[np.ndarray, "d_model"]
    centred: bool
    bias: Float64[np.ndarray, "d_model"] | None

    def of(self, stream: Float64[np.ndarray, "d_model"]) -> Float64[np.ndarray, "d_model"]:
        normed = (stream - stream.mean() if self.centred else stream) * self.gain
        return normed if self.bias is None else normed + self.bias

    def back(self, direction: Float64[np.ndarray, "d_model"]) -> Float64[np.ndarray, "d_model"]:
        """The direction before the norm that counts as this one behind it."""
        turned = direction * self.gain
        return turned - turned.mean() if self.centred else turned


def _frozen(norm: NormWeights, stream: Float64[np.ndarray, "d_model"]) -> _Frozen:
    centred = norm.kind.startswith("layer")
    own = stream - stream.mean() if centred else stream
    gain = np.ones_like(own) if norm.weight is None else norm.weight.astype(np.float64)
    if norm.kind.endswith("plus_one"):
        gain = gain + 1
    scale = np.sqrt(own @ own / len(own) + norm.epsilon)
    return _Frozen(gain / scale, centred, None if norm.bias is None else norm.bias.astype(np.float64))


def split(
    embed: Float[np.ndarray, "d_model"],
    additions: Sequence[Addition],
    last: Float[np.ndarray, "d_model"],
    final: NormWeights | None,
    direction: Float[np.ndarray, "d_model"],
    bias: float | None,
) -> Split:
    """Returns how a logit is made up at one position.

    Args:
        embed: What entered the first block.
        additions: What each sublayer added, in the model's order.
        last: The stream behind the last block, as it was recorded.
        final: The norm behind it; None for none.
        direction: What the unembedding multiplies the normed stream by: its row, or a difference of two.
        bias: What it adds, or the difference; None where it has no bias.
    """
    stream = embed.astype(np.float64)
    stages: list[tuple[_Frozen | None, _Frozen | None, Float64[np.ndarray, "d_model"]]] = []
    for addition in additions:
        added = addition.outputs.sum(axis=0)
        of_sum = None if addition.norm_of_sum is None else _frozen(addition.norm_of_sum, added)
        stream = stream + (added if of_sum is None else of_sum.of(added))
        of_stream = None if addition.norm_of_stream is None else _frozen(addition.norm_of_stream, stream)
        stages.append((of_sum, of_stream, stream))
        stream = stream if of_stream is None else of_stream.of(stream)
    counts = direction.astype(np.float64)
    found: list[tuple[Part, float]] = [] if bias is None else [(Part("bias"), bias)]
    total = 0.0 if bias is None else bias
    recorded = last.astype(np.float64)
    if final is not None:
        frozen = _frozen(final, recorded)
        if frozen.bias is not None:
            found.append((Part("norm"), float(frozen.bias @ counts)))
            total += found[-1][1]
        counts = frozen.back(counts)
    total += float(recorded @ counts)
    squares, steps = float(((recorded * counts) ** 2).sum()), float(counts @ counts)
    directions: dict[tuple[int, Attention | None], Float64[np.ndarray, "d_model"]] = {}
    for addition, (of_sum, of_stream, there) in zip(reversed(additions), reversed(stages), strict=True):
        norm = Part("norm", addition.layer, attention=addition.attention)
        if of_stream is not None:
            if of_stream.bias is not None:
                found.append((norm, float(of_stream.bias @ counts)))
            counts = of_stream.back(counts)
        own = counts
        if of_sum is not None:
            if of_sum.bias is not None:
                found.append((norm, float(of_sum.bias @ counts)))
            own = of_sum.back(counts)
        found.extend(zip(reversed(addition.parts), (addition.outputs[::-1] @ own).tolist(), strict=True))
        directions[addition.layer, addition.attention] = own
        squares += float(((there * counts) ** 2).sum() + ((addition.outputs * own) ** 2).sum())
        steps += float(own @ own) * len(addition.parts)
    found.append((Part("embed"), float(embed.astype(np.float64) @ counts)))
    parts = tuple(part for part, _ in reversed(found))
    contributions = np.array([value for _, value in reversed(found)])
    return Split(parts, contributions, directions, total, squares**0.5, steps**0.5)


def explained(value: Split, stored: Sequence[str], computed: str) -> float:
    """Returns the largest remainder that rounding explains.

    A rounding of every number, as a root of squares, times 8 for the dtypes in which the run stores them, and times 32
    for that in which the model computed, whose sums of products round more than once. Of tiny models of every family
    none left more than once that root.
    """

    def once(dtype: str) -> float:
        known = dtype if dtype in _ROUNDING else "float32"
        return _ROUNDING[known] * value.rounded + _SMALLEST[known] * value.steps

    return _STORING * sum(map(once, stored)) + _COMPUTING * once(computed)
