"""What a run holds of an example, under the names of TransformerLens's hooks and in the shapes of its cache.

1. A site has a hook where both mean the same tensor: `HOOKS` lists them, and says of the others why they have none.
2. `q` and `k` are after rotary embedding where the model has one, and so are `hook_rot_q` and `hook_rot_k`; elsewhere
   they are what `hook_q` and `hook_k` show. `q_proj`, `k_proj` and `v_proj` are `hook_q`, `hook_k`, `hook_v`.
3. Arrays have a batch axis of 1, and heads after positions, as the cache of `run_with_cache` has them. A head that was
   not recorded is NaN, so that a head's number is its index.

Names are those of HookedTransformer, of HookedEncoder for encoders (whose residual stream is read after its norms),
and of HookedEncoderDecoder for T5. Values equal TransformerLens's where it runs the weights unprocessed
(`from_pretrained_no_processing`): folding and centring change them.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from traceformer.errors import NotRecorded, Unsupported
from traceformer.models.families import FAMILIES
from traceformer.models.family import Family
from traceformer.shapes import Float
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.dtypes import ReadDtype
from traceformer.store.layout import RunLayout
from traceformer.store.meta import RunMeta
from traceformer.store.run import Run

__all__ = ["HOOKS", "Hook", "cached"]


class Hook(NamedTuple):
    """A site's hook, or None, and what else is to be said; `{block}` is such as `blocks.3`, `{attn}` is `attn`."""

    name: str | None
    note: str = ""


_ROTARY = "of models with rotary embedding"
HOOKS: Mapping[str, Hook] = {
    "token_embed": Hook("hook_embed", "but of Gemma embed, since its embedding is scaled"),
    "embed": Hook("{first}.hook_resid_pre", "if resid_pre is not recorded; of Gemma also hook_embed"),
    "resid_pre": Hook("{block}.hook_resid_pre"),
    "attn_norm": Hook(None, "ln1.hook_normalized is before or after the norm's weights, as the model was loaded"),
    "q_proj": Hook("{block}.{attn}.hook_q"),
    "k_proj": Hook("{block}.{attn}.hook_k"),
    "v_proj": Hook("{block}.{attn}.hook_v"),
    "kv_latent": Hook(None, "HookedTransformer has no latent attention"),
    "q": Hook("{block}.{attn}.hook_rot_q", f"{_ROTARY}; else hook_q"),
    "k": Hook("{block}.{attn}.hook_rot_k", f"{_ROTARY}; else hook_k"),
    "v": Hook("{block}.{attn}.hook_v"),
    "attn_scores": Hook(None, "hook_attn_scores is after the mask, attn_scores before it"),
    "attn_pattern": Hook("{block}.{attn}.hook_pattern"),
    "z": Hook("{block}.{attn}.hook_z"),
    "attn_out": Hook("{block}.hook_attn_out", "hook_cross_attn_out of cross-attention"),
    "resid_mid": Hook("{block}.hook_resid_mid", "in T5's decoder hook_resid_mid_cross; encoders: ln1.hook_normalized"),
    "mlp_norm": Hook(None, "as attn_norm"),
    "mlp_up": Hook("{block}.mlp.hook_pre", "of gated MLPs hook_pre_linear"),
    "mlp_act": Hook("{block}.mlp.hook_post", "of gated MLPs none: it is before the product"),
    "mlp_mid": Hook("{block}.mlp.hook_post"),
    "mlp_down": Hook(None, "hook_mlp_out is after any post-norm: see mlp_out"),
    "mlp_out": Hook("{block}.hook_mlp_out"),
    "router_logits": Hook(None, "hook_expert_weights is what the router makes of them"),
    "expert_topk": Hook(None, "hook_expert_indices is in the order of the router"),
    "expert_weight": Hook(None, "hook_expert_weights has a column for each expert"),
    "shared_up": Hook(None, "no hook of the expert that all tokens share"),
    "shared_act": Hook(None, "as shared_up"),
    "shared_mid": Hook(None, "as shared_up"),
    "shared_out": Hook(None, "as shared_up"),
    "resid_post": Hook("{block}.hook_resid_post", "encoders: hook_normalized_resid_post"),
    "hidden": Hook(None, "the same numbers are resid_pre and resid_post"),
    "final_norm": Hook(None, "as attn_norm"),
    "logits": Hook(None, "what the model returns beside its cache"),
    "class_logits": Hook(None, "as logits"),
    "token_class_logits": Hook(None, "as logits"),
    "projection": Hook(None, "along directions that the model does not have"),
    "lens_topk": Hook(None, "no activation: the likeliest tokens are read out of one"),
    "lens_topk_prob": Hook(None, "as lens_topk"),
    "attn_topk": Hook(None, "hook_pattern is the whole pattern: see attn_pattern"),
    "attn_topk_weight": Hook(None, "as attn_topk"),
    "attn_topk_rest": Hook(None, "as attn_topk"),
    "head_metrics": Hook(None, "no activation: patterns in a dozen numbers"),
}  # fmt: skip
"""Every site, and the hook that shows the same tensor in a decoder of one stack."""


def cached(run: Run, example_id: str, dtype: ReadDtype = "float32") -> dict[str, Float[np.ndarray, "batch ..."]]:
    """Returns an example's arrays by hook; `Run.cache` calls this.

    Raises:
        NotRecorded: the run holds no site that has a hook.
        Unsupported: TransformerLens has no names for such a model.
    """
    layout, about = run.layout, run.about
    family = FAMILIES.get(about.model_type or "")
    # The blocks of HookedEncoderDecoder are T5's: what tells them from other pairs of stacks is their relative bias.
    if layout.arch == "encdec" and (family is None or family.positions.kind != "relative bias"):
        raise Unsupported(
            f"TransformerLens has no names for {about.model_type}", why="of encoder-decoders it has T5 alone"
        )
    found: dict[str, Float[np.ndarray, "batch ..."]] = {}
    for spec in layout.arrays:
        for layer in spec.layers or (None,):
            names = [name for name in _names(spec.key, layer, family, about, layout) if name not in found]
            if names:
                values = _as_cached(spec, run.get(example_id, spec.key, layer, dtype=dtype), about)
                found |= dict.fromkeys(names, values)
    if not found:
        raise NotRecorded(
            "this run holds nothing that TransformerLens has a hook for",
            why=f"it holds {' '.join(str(spec.key) for spec in layout.arrays)}",
            hint="such are resid_pre, resid_mid, resid_post, q, k, v, z, attn_pattern, attn_out, mlp_mid, mlp_out",
        )
    return found


def _names(key: ArrayKey, layer: int | None, family: Family | None, about: RunMeta, layout: RunLayout) -> Iterator[str]:
    site, has_scaled_embedding = key.site, family is not None and family.scaled_embedding
    mlp_kind = None if family is None else family.mlp_kind
    is_post_norm = layout.arch == "enc" and family is not None and family.is_post_norm
    blocks = {"enc": "encoder", "dec": "decoder"}[key.stack] if layout.arch == "encdec" else "blocks"
    attn = "cross_attn" if key.attention == "cross" else "attn"
    name = HOOKS[site].name if site in HOOKS else None
    if site == "token_embed" and (layout.arch == "encdec" or has_scaled_embedding):
        name = None
    elif site == "token_embed" and layout.arch == "enc":
        name = "embed.hook_embed"
    elif site == "embed" and layout.spec(key._replace(site="resid_pre")) is not None:
        name = None
    elif site in ("q", "k"):
        rotary = about.attention.rotary
        name = None if rotary is None else name if rotary else f"{{block}}.{{attn}}.hook_{site}"
    elif site == "mlp_up":
        name = {"plain": name, "gated": "{block}.mlp.hook_pre_linear"}.get(mlp_kind or "")
    elif site == "mlp_act":
        name = name if mlp_kind == "plain" else None
    elif site == "attn_out" and key.attention == "cross":
        name = "{block}.hook_cross_attn_out"
    elif site == "resid_mid" and is_post_norm:
        name = "{block}.ln1.hook_normalized"
    elif site == "resid_mid" and layout.arch == "encdec" and key.stack == "dec":
        name = "{block}.hook_resid_mid_cross"
    elif site == "resid_post" and is_post_norm:
        name = "{block}.hook_normalized_resid_post"
    if name is not None:
        yield name.format(block=f"{blocks}.{layer}", attn=attn, first=f"{blocks}.0")
    if site == "embed" and has_scaled_embedding:
        yield "hook_embed"


def _as_cached(spec: ArraySpec, values: Float[np.ndarray, "..."], about: RunMeta) -> Float[np.ndarray, "batch ..."]:
    """An array of one layer with a batch axis, all heads, and these after positions."""
    if spec.heads:
        dims = about.dims_of(spec.key.token_stack).at(spec.layers)
        count = (dims.n_kv_heads if "kv_head" in spec.site.axes else dims.n_heads) or len(spec.heads)
        if len(spec.heads) < count:
            whole = np.full((count, *values.shape[1:]), np.nan, values.dtype)
            whole[list(spec.heads)] = values
            values = whole
        if not spec.site.is_matrix:
            values = values.transpose(1, 0, 2)
    return values[None]
