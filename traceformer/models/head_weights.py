"""The weights of a decoder's attention heads, layer by layer: of a folder without torch, or of a model that is loaded.

1. The row of the family says which modules are q, k, v and out, and how a fused projection is cut into heads.
2. The weights of the norm before them are folded in: what a head multiplies is then the stream divided by its length.
   So is a LayerNorm's centring, whose mean no reader sees, and so are a norm of queries and keys and a norm behind the
   attention (Gemma 2, OLMo 2), each but for the length that it divides by.
3. Heads that share keys and values have each a copy of them. Biases are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from traceformer.errors import Unreadable, Unsupported
from traceformer.models.block_weights import BlockWeights, block_weights_of, open_block_weights
from traceformer.models.dims import StackDims
from traceformer.models.families import architecture_of, family_of
from traceformer.models.family import Architecture, Family, Norm, Tap
from traceformer.models.module_weights import ModuleWeights, decoder_dims
from traceformer.models.readout import Readout, Rows, open_readout, readout_of
from traceformer.models.weights import read_config
from traceformer.shapes import Float32
from traceformer.sites import SITES

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = ["HeadWeights", "LayerHeads", "head_weights_of", "open_head_weights"]

_NORMS_OF = {"q": ("q_norm", "q_layernorm"), "k": ("k_norm", "k_layernorm")}


@dataclass(frozen=True, slots=True)
class LayerHeads:
    """What the heads of one layer read and write: x W_Q, x W_K, x W_V and z W_O of a normed row x of the stream."""

    query: Float32[np.ndarray, "head d_model d_head"]
    key: Float32[np.ndarray, "head d_model d_head"]
    value: Float32[np.ndarray, "head d_model d_value"]
    out: Float32[np.ndarray, "head d_value d_model"]


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


def open_head_weights(folder: Path, architecture: Architecture | None = None) -> HeadWeights:
    """Returns the heads of the model in a folder; `architecture` is another row than its family's own.

    Raises:
        NotFound, Unreadable: the folder holds no safetensors weights, or not these.
        Unsupported: as `head_weights_of` does.
    """
    config = read_config(folder)
    dims = decoder_dims(config)
    differ = bool(config.get("per_layer_config"))
    _check_decoder(architecture or architecture_of(config), dims, config["model_type"], layers_differ=differ)
    blocks, readout = open_block_weights(folder, config, architecture), open_readout(folder, config, architecture)
    return _assembled(folder.resolve().name, family_of(config), dims, blocks, readout)


def head_weights_of(model: "LoadedModel") -> HeadWeights:
    """Returns the heads of a model that is loaded; an adapter, or what a quantised module multiplies by, counts.

    Raises:
        Unsupported: no decoder, one whose row names no projections or no readout, or whose blocks norm the stream
            after each addition.
    """
    _check_decoder(model.built, model.dims.stacks.get("dec"), model.config.model_type)
    return _assembled(
        model.name,
        model.family or family_of(model.config),
        model.dims.stacks["dec"],
        block_weights_of(model),
        readout_of(model),
    )


def _check_decoder(row: Architecture, dims: StackDims | None, model_type: str, *, layers_differ: bool = False) -> None:
    """Refuses what is no decoder whose heads read the stream through nothing but a norm.

    Raises:
        Unsupported: it is so, and why.
    """
    if list(row.stacks) != ["dec"]:
        kind = "encoder" if list(row.stacks) == ["enc"] else "encoder-decoder"
        why = "an encoder predicts no next token" if kind == "encoder" else "it has two residual streams"
        raise Unsupported(f"circuits of an {kind} ({model_type!r})", why=why, hint="a decoder, such as gpt2 or llama")
    layers_differ = layers_differ or bool(dims and dims.by_layer)
    if layers_differ or (dims is not None and not dims.n_heads):
        why = "its layers have heads of several shapes" if layers_differ else "it has no attention"
        raise Unsupported(f"circuits of a {model_type!r} model", why=why, hint="a decoder such as gpt2 or llama")
    stack = row.stacks["dec"]
    attention = stack.attention
    if stack.post_norm is not None or attention.post_norm is not None:
        why = "its blocks norm the stream after each addition, so that what one head writes another reads scaled anew"
        raise Unsupported(f"circuits of a {model_type!r} model with such blocks", why=why, hint="a pre-norm decoder")
    if attention.q_latent is not None or attention.kv_latent is not None:
        raise Unsupported(
            f"circuits of a {model_type!r} model",
            why="its queries, or its keys and values, are made by way of a row that is normed: no matrix of the stream",
            hint="a decoder without latent attention, such as llama",
        )
    if attention.q_proj is None or attention.k_proj is None or attention.v_proj is None or attention.out_proj is None:
        raise Unsupported(
            f"circuits of a {model_type!r} model",
            why="where the weights of each head lie in its projections is not known",
        )


def _assembled(name: str, family: Family, dims: StackDims, blocks: BlockWeights, readout: Readout) -> HeadWeights:
    if readout.project_out is not None or dims.d_embed != dims.d_model or readout.norm is None:
        why = "its embeddings are narrower than its stream" if readout.norm else "no norm stands before its unembedding"
        raise Unsupported(f"circuits of {name}", why=why)
    positions = family.positions
    table = blocks.modules.rows(positions.table) if positions.table else None
    return HeadWeights(
        name,
        dims,
        lambda layer: _layer_heads(blocks, dims, layer),
        blocks.modules.rows(blocks.architecture.stacks["dec"].token_embed),
        readout,
        None if table is None else table.rows(positions.first, table.shape[0]),
        positions.kind,
    )


def _layer_heads(blocks: BlockWeights, dims: StackDims, layer: int) -> LayerHeads:
    """The heads of a layer, with all norms folded in."""
    stack, norm, modules = blocks.architecture.stacks["dec"], blocks.norm, blocks.modules
    attention, block = stack.attention, f"{stack.blocks}.{layer}."
    projections = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}
    taps = {name: tap for name, tap in projections.items() if tap is not None}
    whole = {path: modules.linear(block + path).weight for path in {tap.path for tap in taps.values()}}
    before = _norm_weights(modules, attention.attn_norm, block, norm)
    found: dict[str, Float32[np.ndarray, "head d_model d"]] = {}
    for name, tap in taps.items():
        heads = _heads_in(whole[tap.path], tap, dims, name)
        if heads.shape[1] != dims.d_model:
            raise Unreadable(
                f"{block}{tap.path} reads {heads.shape[1]} features", why=f"its config states {dims.d_model}"
            )
        if before is not None:
            heads = heads * before[:, None]
        if attention.attn_norm is not None and norm.startswith("layer"):
            heads = heads - heads.mean(axis=1, keepdims=True)
        if name in _NORMS_OF:
            heads = _normed_within(modules, f"{block}{attention.module}.", name, heads, norm)
        found[name] = heads if name == "q" else heads.repeat(dims.n_heads // len(heads), axis=0)
    out = blocks.output(layer, "self").weight
    d_value = dims.width_of(SITES["v"])
    if out.shape != (dims.n_heads * d_value, dims.d_model):
        raise Unreadable(
            f"{block}{attention.out_proj} reads {len(out)} features", why=f"{dims.n_heads * d_value} are its heads'"
        )
    out = out.reshape(dims.n_heads, d_value, dims.d_model)
    behind = blocks.norm_of_output(layer, "self")
    if behind is not None and behind.weight is not None:
        out = out * _added(behind.weight, norm)
    if norm.startswith("layer"):
        out = out - out.mean(axis=2, keepdims=True)
    return LayerHeads(found["q"], found["k"], found["v"], out)


def _heads_in(
    weights: Float32[np.ndarray, "d_in d_out"], tap: Tap, dims: StackDims, name: str
) -> Float32[np.ndarray, "head d_in d"]:
    """The heads of a projection (q, k or v), or of the part of a fused one that a tap names."""
    d_value = dims.width_of(SITES["v"])
    width, kv_width = dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
    asked = {"q": width, "k": kv_width, "v": dims.n_kv_heads * d_value}
    expected = asked[name] if tap.part == "whole" else sum(asked.values())
    if weights.shape[1] != expected:
        raise Unreadable(f"{tap.path} gives {weights.shape[1]} features", why=f"its config states {expected}")
    if tap.part != "whole" and tap.fused == "per_head":
        group = dims.n_heads // dims.n_kv_heads
        grouped = weights.reshape(len(weights), dims.n_kv_heads, group + 2, dims.d_head)
        part = {"q": slice(0, group), "k": slice(group, group + 1), "v": slice(group + 1, group + 2)}[tap.part]
        weights = grouped[:, :, part].reshape(len(weights), -1)
    elif tap.part != "whole":
        start = {"q": 0, "k": width, "v": width + kv_width}[tap.part]
        weights = weights[:, start : start + asked[tap.part]]
    return weights.reshape(len(weights), -1, d_value if name == "v" else dims.d_head).transpose(1, 0, 2)


def _norm_weights(
    modules: ModuleWeights, tap: Tap | None, block: str, norm: Norm
) -> Float32[np.ndarray, "d_model"] | None:
    """What the norm before the attention multiplies features by."""
    if tap is None or norm.endswith("bare"):
        return None
    weight = modules.vector(f"{block}{tap.path}.weight")
    if weight is None:
        raise Unreadable(f"no {block}{tap.path}.weight", why="the norm before the attention needs it")
    return _added(weight, norm)


def _normed_within(
    modules: ModuleWeights, module: str, name: str, heads: Float32[np.ndarray, "head d_model d_head"], norm: Norm
) -> Float32[np.ndarray, "head d_model d_head"]:
    """The same with a norm of queries or keys folded in: one for all heads, or weights for each."""
    for path in (module + each for each in _NORMS_OF[name]):
        if modules.vector(f"{path}.norms.0.weight") is not None:
            parts = [modules.vector(f"{path}.norms.{head}.weight") for head in range(len(heads))]
            weight = np.stack([part for part in parts if part is not None])
        else:
            weight = modules.vector(f"{path}.weight")
        if weight is None:
            continue
        if norm.startswith("layer"):
            heads = heads - heads.mean(axis=2, keepdims=True)
        return heads * _added(weight.reshape(-1, 1, heads.shape[2]), norm)
    return heads


def _added(weight: Float32[np.ndarray, "..."], norm: Norm) -> Float32[np.ndarray, "..."]:
    return weight + np.float32(1) if norm.endswith("plus_one") else weight
