"""From what a user asked for to the arrays that a given model can give."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from traceformer.capture.lensing import Lensing, plan_lens
from traceformer.capture.passes import Derived
from traceformer.capture.projecting import Projecting, Traits, plan_projection
from traceformer.errors import SelectionError, Unsupported
from traceformer.models.dims import ModelDims, StackDims
from traceformer.models.family import Architecture
from traceformer.sites import ArrayKey, ArraySpec, Selection, Stack, choose

__all__ = ["Plan", "plan_arrays"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The arrays to record, the sites of selected groups that this family has no place for, and what is computed."""

    arrays: tuple[ArraySpec, ...]
    left_out: tuple[str, ...]
    projecting: Projecting | None = None
    lensing: Lensing | None = None

    @property
    def derived(self) -> tuple[Derived, ...]:
        return tuple(each for each in (self.projecting, self.lensing) if each is not None)


def plan_arrays(
    selection: Selection,
    architecture: Architecture,
    dims: ModelDims,
    *,
    stacks: Sequence[Stack] | None = None,
    has_head: bool = True,
    traits: Traits | None = None,
    lens_top_k: int | None = None,
    model: PreTrainedModel | None = None,
) -> Plan:
    """Returns the arrays that the selection means for a model.

    Args:
        stacks: which stacks run (an encoder-decoder without targets runs its encoder only); None for all.
        has_head: whether the model was loaded with a language-model head, which `logits` needs.
        traits: what to project rows onto, beside what is selected.
        lens_top_k: how many of the likeliest next tokens to record after each layer, beside what is selected.
        model: the model itself, whose readout the lens needs.

    Raises:
        Unsupported: a site asked for by its own name has no place in this family, or nothing is left to record.
        SelectionError: none of the layers or heads asked for exists, or they are a stack's that the model lacks, or
            nothing is selected.
        UsageError: traits that are no directions of the site, or more likeliest tokens than the model has words.
    """
    _refuse_missing_stacks(selection, dims)
    stacks = tuple(dims.stacks) if stacks is None else tuple(stacks)
    # One warning per stack about dropped numbers, not one per site.
    layers: dict[Stack, tuple[int, ...]] = {
        stack: choose(selection.layers.get(stack), dims.stacks[stack].n_layers, "layers") for stack in stacks
    }
    heads = {stack: choose(selection.heads.get(stack), dims.stacks[stack].n_heads, "heads") for stack in stacks}
    arrays: list[ArraySpec] = []
    left_out: list[str] = []
    for site in selection.sites:
        keys = [key for key in architecture.keys(site) if key.stack in stacks]
        if site == "logits" and not has_head:
            keys = []
        if site in ("mlp_up", "mlp_act", "mlp_mid"):
            keys = [key for key in keys if dims.stacks[key.stack].d_mlp]
        for key in keys:
            arrays.append(_spec(key, layers[key.stack], heads[key.stack], dims.stacks[key.stack], selection))
        if not keys and selection.is_named(site):
            raise Unsupported(f"this model has no {site}", why=_why_not(site, architecture, has_head, stacks))
        if not keys:
            left_out.append(site)
    projecting = None if traits is None else plan_projection(traits, selection, architecture, dims, stacks)
    if projecting is not None:
        arrays.append(projecting.spec)
    lensing = None
    if lens_top_k is not None:
        assert model is not None
        lensing = plan_lens(lens_top_k, layers, architecture, model)
        arrays += lensing.specs
    if not arrays and not selection.sites:
        raise SelectionError("nothing to record", hint="--capture says what")
    if not arrays:
        raise Unsupported(
            f"this model has none of {', '.join(selection.sites)}",
            why=_why_not(selection.sites[0], architecture, has_head, stacks),
        )
    return Plan(tuple(arrays), tuple(left_out), projecting, lensing)


def _refuse_missing_stacks(selection: Selection, dims: ModelDims) -> None:
    for what, asked in (("layers", selection.layers), ("heads", selection.heads)):
        there = [asked.get(stack) for stack in dims.stacks]
        for stack, numbers in asked.items():
            # Numbers for both stacks mean those that there are; numbers of their own are for this one alone.
            if numbers is not None and stack not in dims.stacks and numbers not in there:
                name = {"enc": "encoder", "dec": "decoder"}
                raise SelectionError(
                    f"{what} of the {name[stack]} requested",
                    why=f"this model has only {'an encoder' if 'enc' in dims.stacks else 'a decoder'}",
                    hint=f"--{what}, or --{what}-{next(iter(dims.stacks))}",
                )


def _spec(
    key: ArrayKey, layers: tuple[int, ...], heads: tuple[int, ...], dims: StackDims, selection: Selection
) -> ArraySpec:
    axes = ArraySpec(key).site.axes
    if axes[0] == "hidden_layer":
        layers = choose(selection.hidden_layers, dims.n_layers + 1, "hidden layers")
    elif axes[0] != "layer":
        layers = ()
    heads = heads if "head" in axes else dims.kv_heads_of(heads) if "kv_head" in axes else ()
    widths = {"d_model": dims.d_model, "d_head": dims.d_head, "d_mlp": dims.d_mlp, "d_vocab": dims.d_vocab, "key": 0}
    return ArraySpec(key, layers, heads, dims.d_embed if key.site == "token_embed" else widths[axes[-1]])


def _why_not(site: str, architecture: Architecture, has_head: bool, stacks: Sequence[Stack]) -> str:
    if site == "logits" and not has_head:
        return "it was loaded without a language-model head"
    if any(key.stack not in stacks for key in architecture.keys(site)):
        return "it is in the decoder, which runs only with targets (--targets_file)"
    if site == "projection":
        return "projections are recorded with --project"
    if site in ("lens_topk", "lens_topk_prob"):
        return "the likeliest tokens of each layer are recorded with --lens-top-k"
    rows = architecture.stacks.values()
    if site in ("q", "k", "v", "z", "attn_scores", "attn_pattern") and not architecture.has_attention_function:
        return "its attention does not pass through transformers' attention function"
    if site == "resid_mid" and any(row.parallel for row in rows):
        return "attention and MLP run in parallel, so there is nothing between them"
    if site == "mlp_norm" and any(row.parallel for row in rows):
        return "its MLP reads attention's normed input, attn_norm"
    if site in ("mlp_up", "mlp_act", "mlp_mid", "mlp_down"):
        return "its MLPs are mixtures of experts, so there is no one hidden layer"
    if site in ("attn_norm", "mlp_norm", "final_norm"):
        return "its norms come after its sublayers, not before them"
    return "its family has no such place"
