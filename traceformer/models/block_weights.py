"""What the attentions of a decoder write with: output projections and the norms around them, read without torch.

Where they lie the row of the family says. A file holds a projection as (d_out, d_in). Some models hold all of theirs
the other way round (GPT-2's Conv1D): their fused projection, which is not square, tells by the length of its bias.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from traceformer.errors import Unreadable, Unsupported
from traceformer.models.family import Architecture, AttentionRow, Norm
from traceformer.models.readout import epsilon_of, readout_row_of
from traceformer.models.weights import StoredTensor, open_folder
from traceformer.shapes import Float32
from traceformer.sites import Attention

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = ["BlockWeights", "NormWeights", "Projection", "block_weights_of", "open_block_weights"]


class NormWeights(NamedTuple):
    """A norm: its kind, what it multiplies by and adds, where it has that, and what is added to the variance."""

    kind: Norm
    weight: Float32[np.ndarray, "d_model"] | None
    bias: Float32[np.ndarray, "d_model"] | None
    epsilon: float


class Projection(NamedTuple):
    """A linear layer: x @ weight + bias."""

    weight: Float32[np.ndarray, "d_in d_out"]
    bias: Float32[np.ndarray, "d_out"] | None


class _Reader(Protocol):
    """Reads parts of a model by the paths of its modules from the base model."""

    def linear(self, path: str, attention: AttentionRow, block: str) -> Projection: ...

    def vector(self, path: str) -> Float32[np.ndarray, "d_model"] | None: ...


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """The weights around the attentions of a decoder, read when asked for.

    Attributes:
        architecture: Where they lie.
        norm: The kind of its norms.
        epsilon: Theirs.
    """

    architecture: Architecture
    norm: Norm
    epsilon: float
    reader: _Reader

    def output(self, layer: int, attention: Attention) -> Projection:
        """Returns W_O and its bias: the heads' values side by side, in the model's order, to the stream.

        Raises:
            Unsupported: it is not known, or its numbers are codes.
            Unreadable: it is not there.
        """
        row, block = self._attention(attention), self._block(layer)
        if row.out_proj is None:
            raise Unsupported("what each head writes", why="the output projection of this model is not known")
        return self.reader.linear(f"{block}.{row.out_proj}", row, block)

    def norm_of_output(self, layer: int, attention: Attention) -> NormWeights | None:
        """Returns the norm that an attention's output goes through before it is added (Gemma 2); None for none."""
        row = self._attention(attention)
        path = None if row.attn_out is None else row.attn_out.path
        if path is None or path in (row.module, row.out_proj):
            return None
        return self._norm(f"{self._block(layer)}.{path}")

    def norm_of_stream(self, layer: int, attention: Attention | None) -> NormWeights | None:
        """Returns the norm that the stream goes through after the addition of an attention, or for None of the MLP.

        None where blocks norm what they read.
        """
        stack = self.architecture.stacks["dec"]
        path = stack.post_norm if attention is None else self._attention(attention).post_norm
        return None if path is None else self._norm(f"{self._block(layer)}.{path}")

    def _norm(self, path: str) -> NormWeights | None:
        weight = self.reader.vector(f"{path}.weight")
        return (
            None if weight is None else NormWeights(self.norm, weight, self.reader.vector(f"{path}.bias"), self.epsilon)
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
    readout, built = readout_row_of(config, architecture)
    return BlockWeights(built, readout.norm, epsilon_of(config, readout), _Stored(open_folder(folder)))


def block_weights_of(model: "LoadedModel") -> BlockWeights:
    """Returns the weights around attention of a model that is loaded, with what an adapter changes of them.

    Raises:
        Unsupported: a family that is not known, or has no decoder.
    """
    config = model.config.to_dict()
    readout, built = readout_row_of(config, model.architecture)
    return BlockWeights(built, readout.norm, epsilon_of(config, readout), _Held(model.model.base_model))


class _Stored:
    """Tensors in files, whose names may have that of the base model in front."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors
        self._names = _by_path(tensors)

    def linear(self, path: str, attention: AttentionRow, block: str) -> Projection:
        name = self._find(f"{path}.weight")
        if name is None:
            raise Unreadable(f"the model's files hold no {path}.weight", why="what each head writes needs it")
        weight = self._tensors[name].read()
        if not self._holds_d_in_first(attention, block):
            weight = weight.T
        return Projection(weight, self.vector(f"{path}.bias"))

    def vector(self, path: str) -> Float32[np.ndarray, "d_model"] | None:
        name = self._find(path)
        return None if name is None else self._tensors[name].read()

    def _holds_d_in_first(self, attention: AttentionRow, block: str) -> bool:
        tap = attention.q_proj
        if tap is None or tap.part == "whole":
            return False
        weight, bias = (self._find(f"{block}.{tap.path}.{name}") for name in ("weight", "bias"))
        if weight is None or bias is None:
            return False
        d_out = self._tensors[bias].shape[0]
        return self._tensors[weight].shape[0] != d_out == self._tensors[weight].shape[1]

    def _find(self, path: str) -> str | None:
        found = self._names.get(path, [])
        if len(found) > 1:
            raise Unreadable(f"several tensors may be {path}", why=", ".join(sorted(found)))
        return found[0] if found else None


def _by_path(names: Iterable[str]) -> Mapping[str, list[str]]:
    """The tensors that may be meant by a path from the base model: its own name stands before it in some files."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split(".")
        for first in range(min(3, len(parts))):
            found[".".join(parts[first:])].append(name)
    return found


@dataclass(frozen=True, slots=True)
class _Held:
    """Modules of a model that is loaded, whatever is in them: codes, or an adapter."""

    base: Any

    def linear(self, path: str, attention: AttentionRow, block: str) -> Projection:
        from traceformer.models.quantised import weights_of

        module = self.base.get_submodule(path)
        bias = getattr(module, "bias", None)
        return Projection(
            weights_of(module).cpu().numpy(), None if bias is None else bias.detach().float().cpu().numpy()
        )

    def vector(self, path: str) -> Float32[np.ndarray, "d_model"] | None:
        module, _, name = path.rpartition(".")
        tensor = getattr(self.base.get_submodule(module), name, None)
        return None if tensor is None else tensor.detach().float().cpu().numpy()
