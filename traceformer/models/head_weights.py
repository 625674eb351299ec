"""The weights of a decoder's attention heads, layer by layer: of a folder without torch, or of a model that is loaded.

1. The row of the family says which modules are q, k, v and out, and how a fused projection is cut into heads.
2. The weights of the norm before them are folded in: what a head multiplies is then the stream divided by its length.
   So is a LayerNorm's centring, whose mean no reader sees, and so are a norm of queries and keys and a norm behind the
   attention (Gemma 2, OLMo 2), each but for the length that it divides by.
3. Heads that share keys and values have each a copy of them. Biases are left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from traceformer.errors import Unreadable, Unsupported
from traceformer.models.dims import ModelDims, StackDims
from traceformer.models.families import architecture_of, family_of
from traceformer.models.family import Architecture, AttentionRow, Family, Norm, StackRow, Tap
from traceformer.models.readout import HeldRows, Readout, Rows, open_readout, readout_of, tensor_at
from traceformer.models.weights import StoredTensor, open_folder, read_config
from traceformer.shapes import Float32

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = ["HeadWeights", "LayerHeads", "head_weights_of", "open_head_weights"]

_NORMS_OF = {"q": ("q_norm", "q_layernorm"), "k": ("k_norm", "k_layernorm")}


@dataclass(frozen=True, slots=True)
class LayerHeads:
    """What the heads of one layer read and write: x W_Q, x W_K, x W_V and z W_O of a normed row x of the stream."""

    query: Float32[np.ndarray, "head d_model d_head"]
    key: Float32[np.ndarray, "head d_model d_head"]
    value: Float32[np.ndarray, "head d_model d_head"]
    out: Float32[np.ndarray, "head d_head d_model"]


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """The weights of all heads of a decoder, and what stands before and behind them.

    Attributes:
        name: The model's.
        dims: Its sizes.
        layer: Reads the heads of a layer, by its number.
        embedding: A row per token.
        readout: The final norm and the unembedding.
        positions: The row that stands in the stream for each position; None where the model learned none.
        kind: How it knows where a token stands: `learned`, `rotary`, ...
    """

    name: str
    dims: StackDims
    layer: Callable[[int], LayerHeads]
    embedding: Rows
    readout: Readout
    positions: Float32[np.ndarray, "position d_model"] | None
    kind: str


class _Source(Protocol):
    """Where weights are: in a folder, or in a model at hand. Paths are those of modules from the base model."""

    def matrix(self, path: str, d_in: int) -> Float32[np.ndarray, "d_in d_out"]:
        """Returns what a linear module multiplies rows by."""
        ...

    def vector(self, path: str) -> Float32[np.ndarray, "..."] | None:
        """Returns the weights of a norm, None where it has none or is not there."""
        ...

    def rows(self, path: str) -> Rows:
        """Returns a table of embeddings."""
        ...


def open_head_weights(folder: Path, architecture: Architecture | None = None) -> HeadWeights:
    """Returns the heads of the model in a folder; `architecture` is another row than its family's own.

    Raises:
        NotFound, Unreadable: the folder holds no safetensors weights, or not these.
        Unsupported: as `head_weights_of` does.
    """
    config = read_config(folder)
    row = architecture or architecture_of(config)
    stack = _decoder_of(row, config["model_type"])
    tensors = open_folder(folder)
    source = _Folder(tensors, str(folder), _is_input_first(tensors, stack, _dims_of(config).d_model))
    readout = open_readout(folder, config, architecture)
    return _assembled(folder.resolve().name, config, _dims_of(config), stack, source, readout)


def head_weights_of(model: "LoadedModel") -> HeadWeights:
    """Returns the heads of a model that is loaded; an adapter, or what a quantised module multiplies by, counts.

    Raises:
        Unsupported: no decoder, one whose row names no projections or no readout, or whose blocks norm the stream
            after each addition.
    """
    stack = _decoder_of(model.built, model.config.model_type)
    return _assembled(
        model.name, model.config, model.dims.stacks["dec"], stack, _Held(model.model), readout_of(model), model.family
    )


def _decoder_of(row: Architecture, model_type: str) -> StackRow:
    """The one stack of a decoder, if its heads read the stream through nothing but a norm."""
    if list(row.stacks) != ["dec"]:
        kind = "encoder" if list(row.stacks) == ["enc"] else "encoder-decoder"
        why = "an encoder predicts no next token" if kind == "encoder" else "it has two residual streams"
        raise Unsupported(f"circuits of an {kind} ({model_type!r})", why=why, hint="a decoder, such as gpt2 or llama")
    stack = row.stacks["dec"]
    attention = stack.attention
    if stack.post_norm is not None or attention.post_norm is not None:
        why = "its blocks norm the stream after each addition, so that what one head writes another reads scaled anew"
        raise Unsupported(f"circuits of a {model_type!r} model with such blocks", why=why, hint="a pre-norm decoder")
    if attention.q_proj is None or attention.k_proj is None or attention.v_proj is None or attention.out_proj is None:
        raise Unsupported(
            f"circuits of a {model_type!r} model",
            why="where the weights of each head lie in its projections is not known",
        )
    return stack


def _dims_of(config: Mapping[str, Any]) -> StackDims:
    return ModelDims.from_config(SimpleNamespace(**config)).stacks["dec"]


def _assembled(
    name: str,
    config: Any,
    dims: StackDims,
    stack: StackRow,
    source: _Source,
    readout: Readout,
    family: Family | None = None,
) -> HeadWeights:
    if readout.project_out is not None or dims.d_embed != dims.d_model or readout.norm is None:
        why = "its embeddings are narrower than its stream" if readout.norm else "no norm stands before its unembedding"
        raise Unsupported(f"circuits of {name}", why=why)
    norm = readout.norm
    positions = (family or family_of(config)).positions
    table = source.rows(positions.table) if positions.table else None
    return HeadWeights(
        name,
        dims,
        lambda layer: _layer_heads(source, stack, dims, norm, layer),
        source.rows(stack.token_embed),
        readout,
        None if table is None else table.rows(positions.first, table.shape[0]),
        positions.kind,
    )


def _layer_heads(source: _Source, stack: StackRow, dims: StackDims, norm: Norm, layer: int) -> LayerHeads:
    """The heads of a layer, with all norms folded in."""
    attention, block = stack.attention, f"{stack.blocks}.{layer}."
    projections = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}
    taps = {name: tap for name, tap in projections.items() if tap is not None}
    whole = {path: source.matrix(block + path, dims.d_model) for path in {tap.path for tap in taps.values()}}
    before = _norm_weights(source, attention.attn_norm, block, norm)
    found: dict[str, Float32[np.ndarray, "head d_model d_head"]] = {}
    for name, tap in taps.items():
        heads = _heads_in(whole[tap.path], tap, dims)
        if before is not None:
            heads = heads * before[:, None]
        if attention.attn_norm is not None and norm.startswith("layer"):
            heads = heads - heads.mean(axis=1, keepdims=True)
        if name in _NORMS_OF:
            heads = _normed_within(source, f"{block}{attention.module}.", name, heads, norm)
        found[name] = heads if name == "q" else heads.repeat(dims.n_heads // len(heads), axis=0)
    out = source.matrix(f"{block}{attention.out_proj}", dims.n_heads * dims.d_head)
    out = out.reshape(dims.n_heads, dims.d_head, dims.d_model)
    behind = _weight_behind(source, attention, block, norm)
    if behind is not None:
        out = out * behind
    if norm.startswith("layer"):
        out = out - out.mean(axis=2, keepdims=True)
    return LayerHeads(found["q"], found["k"], found["v"], out)


def _heads_in(
    weights: Float32[np.ndarray, "d_in d_out"], tap: Tap, dims: StackDims
) -> Float32[np.ndarray, "head d_in d_head"]:
    """The heads of a projection, or of the part of a fused one that a tap names."""
    width, kv_width = dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
    asked = {"q": width, "k": kv_width, "v": kv_width}
    expected = (width, kv_width) if tap.part == "whole" else (width + 2 * kv_width,)
    if weights.shape[1] not in expected:
        raise Unreadable(f"{tap.path} gives {weights.shape[1]} features", why=f"its config states {expected[0]}")
    if tap.part != "whole" and tap.fused == "per_head":
        group = dims.n_heads // dims.n_kv_heads
        grouped = weights.reshape(len(weights), dims.n_kv_heads, group + 2, dims.d_head)
        part = {"q": slice(0, group), "k": slice(group, group + 1), "v": slice(group + 1, group + 2)}[tap.part]
        weights = grouped[:, :, part].reshape(len(weights), -1)
    elif tap.part != "whole":
        start = {"q": 0, "k": width, "v": width + kv_width}[tap.part]
        weights = weights[:, start : start + asked[tap.part]]
    return weights.reshape(len(weights), -1, dims.d_head).transpose(1, 0, 2)


def _norm_weights(source: _Source, tap: Tap | None, block: str, norm: Norm) -> Float32[np.ndarray, "d_model"] | None:
    """What the norm before the attention multiplies features by."""
    if tap is None or norm.endswith("bare"):
        return None
    weight = source.vector(block + tap.path)
    if weight is None:
        raise Unreadable(f"no {block}{tap.path}.weight", why="the norm before the attention needs it")
    return _added(weight, norm)


def _weight_behind(
    source: _Source, attention: AttentionRow, block: str, norm: Norm
) -> Float32[np.ndarray, "d_model"] | None:
    """What a norm behind the attention multiplies features by; what is added to the stream is its output."""
    tap = attention.attn_out
    if tap is None or tap.path == attention.module or tap.path == attention.out_proj:
        return None
    weight = source.vector(block + tap.path)
    return None if weight is None else _added(weight, norm)


def _normed_within(
    source: _Source, module: str, name: str, heads: Float32[np.ndarray, "head d_model d_head"], norm: Norm
) -> Float32[np.ndarray, "head d_model d_head"]:
    """The same with a norm of queries or keys folded in: one for all heads, or weights for each."""
    for path in (module + each for each in _NORMS_OF[name]):
        if source.vector(f"{path}.norms.0") is not None:
            parts = [source.vector(f"{path}.norms.{head}") for head in range(len(heads))]
            weight = np.stack([part for part in parts if part is not None])
        else:
            weight = source.vector(path)
        if weight is None:
            continue
        if norm.startswith("layer"):
            heads = heads - heads.mean(axis=2, keepdims=True)
        return heads * _added(weight.reshape(-1, 1, heads.shape[2]), norm)
    return heads


def _added(weight: Float32[np.ndarray, "..."], norm: Norm) -> Float32[np.ndarray, "..."]:
    return weight + np.float32(1) if norm.endswith("plus_one") else weight


def _is_input_first(tensors: Mapping[str, StoredTensor], stack: StackRow, d_model: int) -> bool:
    """Whether a family's linear modules hold (d_in, d_out), as GPT-2's Conv1D does; all others hold (d_out, d_in).

    A fused projection shows it: it is wider than what it reads.
    """
    tap = stack.attention.q_proj
    name = None if tap is None else tensor_at(tensors, f"{stack.blocks}.0.{tap.path}.weight")
    return name is not None and tensors[name].shape[0] == d_model != tensors[name].shape[-1]


@dataclass(frozen=True, slots=True)
class _Folder:
    """The safetensors of a folder."""

    tensors: Mapping[str, StoredTensor]
    name: str
    input_first: bool

    def matrix(self, path: str, d_in: int) -> Float32[np.ndarray, "d_in d_out"]:
        stored = self._found(path).read()
        weights = stored if self.input_first else stored.T
        if weights.ndim != 2 or weights.shape[0] != d_in:
            raise Unreadable(
                f"{path}.weight in {self.name} is {stored.shape}", why=f"its config states {d_in} features"
            )
        return weights

    def vector(self, path: str) -> Float32[np.ndarray, "..."] | None:
        name = tensor_at(self.tensors, f"{path}.weight")
        return None if name is None else self.tensors[name].read()

    def rows(self, path: str) -> Rows:
        return self._found(path)

    def _found(self, path: str) -> StoredTensor:
        name = tensor_at(self.tensors, f"{path}.weight")
        if name is None:
            raise Unreadable(f"{self.name} holds no {path}.weight", why="its family has one, unquantised")
        return self.tensors[name]


@dataclass(frozen=True, slots=True)
class _Held:
    """A model of transformers."""

    model: Any

    def matrix(self, path: str, d_in: int) -> Float32[np.ndarray, "d_in d_out"]:
        from traceformer.models.quantised import weights_of

        return weights_of(self._module(path)).cpu().numpy()

    def vector(self, path: str) -> Float32[np.ndarray, "..."] | None:
        try:
            weight = getattr(self._module(path), "weight", None)
        except AttributeError:  # torch's, of a path at which no module is
            return None
        return None if weight is None else weight.detach().float().cpu().numpy()

    def rows(self, path: str) -> Rows:
        return HeldRows(self._module(path).weight)

    def _module(self, path: str) -> Any:
        return self.model.base_model.get_submodule(path)
