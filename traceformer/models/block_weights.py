"""What the attentions of a decoder write with: output projections and the norms around them, read without torch.

Where they lie the row of the family says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from traceformer.errors import Unsupported
from traceformer.models.family import Architecture, AttentionRow, Norm
from traceformer.models.module_weights import HeldModules, ModuleWeights, Projection, stored_modules
from traceformer.models.part import text_config, text_part
from traceformer.models.readout import epsilon_of, readout_row_of
from traceformer.shapes import Float32
from traceformer.sites import Attention

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = ["BlockWeights", "NormWeights", "block_weights_of", "open_block_weights", "why_no_output"]


def why_no_output(row: AttentionRow) -> str:
    """Returns why no matrix says what a head writes of its mix of values."""
    if row.gated is None:
        return "the output projection of this model is not known"
    return "its heads' mixed values are multiplied by a gate before the output projection reads them"


class NormWeights(NamedTuple):
    """A norm: its kind, what it multiplies by and adds, where it has that, and what is added to the variance."""

    kind: Norm
    weight: Float32[np.ndarray, "d_model"] | None
    bias: Float32[np.ndarray, "d_model"] | None
    epsilon: float


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """The weights around the attentions of a decoder, read when asked for.

    Attributes:
        architecture: Where they lie.
        norm: The kind of its norms.
        epsilon: Theirs.
        modules: All weights of the model, by their modules.
    """

    architecture: Architecture
    norm: Norm
    epsilon: float
    modules: ModuleWeights

    def output(self, layer: int, attention: Attention) -> Projection:
        """Returns W_O and its bias: the heads' values side by side, in the model's order, to the stream.

        Raises:
            Unsupported: it is not known, or its numbers are codes.
            Unreadable: it is not there.
        """
        row = self._attention(attention)
        if row.out_proj is None:
            raise Unsupported("what each head writes", why=why_no_output(row))
        weight, bias = self.modules.linear(f"{self._block(layer)}.{row.out_proj}")
        if self._scale == 1 or self.norm_of_output(layer, attention) is not None:  # which is scaled in its place
            return Projection(weight, bias)
        return Projection(weight * self._scale, None if bias is None else bias * self._scale)

    def norm_of_output(self, layer: int, attention: Attention) -> NormWeights | None:
        """Returns the norm that an attention's output goes through before it is added (Gemma 2); None for none."""
        row = self._attention(attention)
        path = None if row.attn_out is None else row.attn_out.path
        if path is None or path in (row.module, row.out_proj):
            return None
        norm = self._norm(f"{self._block(layer)}.{path}")
        if norm is None or norm.weight is None or self._scale == 1:
            return norm
        one = np.float32(norm.kind.endswith("plus_one"))
        bias = None if norm.bias is None else norm.bias * self._scale
        return norm._replace(weight=(norm.weight + one) * self._scale - one, bias=bias)

    def norm_of_stream(self, layer: int, attention: Attention | None) -> NormWeights | None:
        """Returns the norm that the stream goes through after the addition of an attention, or for None of the MLP.

        None where blocks norm what they read.
        """
        stack = self.architecture.stacks["dec"]
        path = stack.post_norm if attention is None else self._attention(attention).post_norm
        return None if path is None else self._norm(f"{self._block(layer)}.{path}")

    @property
    def _scale(self) -> np.float32:
        """What a sublayer's output is multiplied by before it is added."""
        scale = self.architecture.stacks["dec"].scale
        assert not isinstance(scale, str)
        return np.float32(scale)

    def _norm(self, path: str) -> NormWeights | None:
        weight = self.modules.vector(f"{path}.weight")
        return (
            None
            if weight is None
            else NormWeights(self.norm, weight, self.modules.vector(f"{path}.bias"), self.epsilon)
        )

    def _block(self, layer: int) -> str:
        return f"{self.architecture.stacks['dec'].blocks}.{layer}"

    def _attention(self, attention: Attention) -> AttentionRow:
        row = self.architecture.stacks["dec"].attention_of(attention)
        assert row is not None
        return row


def open_block_weights(
    folder: Path, config: Mapping[str, Any], architecture: Architecture | None = None
) -> BlockWeights:
    """Returns the weights around attention in a model folder; `architecture` is another row than its family's own.

    Raises:
        Unsupported: a family that is not known, or has no decoder.
        NotFound, Unreadable: the folder holds no safetensors weights.
    """
    own = text_config(config)
    readout, built = readout_row_of(own, architecture)
    return BlockWeights(built, readout.norm, epsilon_of(own, readout), stored_modules(folder, config, built))


def block_weights_of(model: "LoadedModel") -> BlockWeights:
    """Returns the weights around attention of a model that is loaded, with what an adapter changes of them.

    Raises:
        Unsupported: a family that is not known, or has no decoder.
    """
    config = text_config(model.config).to_dict()
    readout, built = readout_row_of(config, model.architecture)
    return BlockWeights(built, readout.norm, epsilon_of(config, readout), HeldModules(text_part(model.model)))
