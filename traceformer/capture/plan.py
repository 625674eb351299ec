"""From what a user asked for to the arrays that a given model can give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from traceformer.capture.derived import ModelPlace
from traceformer.capture.passes import Derived
from traceformer.capture.spots import layers_having
from traceformer.errors import SelectionError, Unsupported
from traceformer.models.dims import ModelDims, StackDims
from traceformer.models.families import architecture_of
from traceformer.models.family import Architecture
from traceformer.models.outputs import label_names, output_site, reads_itself, why_no_output
from traceformer.sites import OUTPUTS, SITES, ArrayKey, ArraySpec, Selection, Stack, choose

__all__ = ["Plan", "plan_arrays"]

_OF_CLASSES = tuple(site for site in OUTPUTS if site != "logits")


@dataclass(frozen=True, slots=True)
class Plan:
    """The arrays to record, the sites of selected groups that this family has no place for, and what is computed.

    `architecture` is the row that says where they lie, None for that of the model's family.
    """

    arrays: tuple[ArraySpec, ...]
    left_out: tuple[str, ...]
    derived: tuple[Derived, ...] = ()
    architecture: Architecture | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a run states of what is computed; `projection` is None where nothing is projected."""
        stated: dict[str, Any] = {"projection": None}
        for each in self.derived:
            stated |= each.settings
        return stated


def plan_arrays(
    selection: Selection,
    model: PreTrainedModel,
    *,
    stacks: Sequence[Stack] | None = None,
    architecture: Architecture | None = None,
) -> Plan:
    """Returns the arrays that the selection means for a model.

    Args:
        stacks: which stacks run (an encoder-decoder without targets runs its encoder only); None for all.
        architecture: another row than the family's own.

    Raises:
        Unsupported: a site asked for by its own name has no place in this family, or nothing is left to record; there
            is no row for the family.
        SelectionError: none of the layers or heads asked for exists, or they are a stack's that the model lacks, or
            nothing is selected.
        UsageError: traits that are no directions of the site, or more likeliest tokens than the vocabulary has.
    """
    row = architecture or architecture_of(model.config)
    dims = ModelDims.of(model)
    output = output_site(model)
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
        keys = [key for key in row.keys(site) if key.stack in stacks]
        if site in OUTPUTS and site != output:
            keys = []
        if site == "class_logits" and reads_itself(model):
            keys = [] if "dec" in stacks else list(row.keys(site))
        if site in ("mlp_up", "mlp_act", "mlp_mid"):
            keys = [key for key in keys if dims.stacks[key.stack].d_mlp]
        if SITES[site].of_experts:
            keys = [key for key in keys if layers_having(model, row, key)]
            specs = [_of_experts(key, layers[key.stack], model, row, dims.stacks[key.stack]) for key in keys]
            arrays += [spec for spec in specs if spec.layers]
            if keys and not specs[-1].layers and selection.is_named(site):
                raise _in_other_layers(keys[-1], layers, model, row)
        for key in () if SITES[site].of_experts else keys:
            if site in _OF_CLASSES:
                arrays.append(ArraySpec(key, width=len(label_names(model))))
            else:
                arrays.append(_spec(key, layers[key.stack], heads[key.stack], dims.stacks[key.stack], selection))
        if not keys and selection.is_named(site):
            raise Unsupported(f"this model has no {site}", why=_why_not(site, row, model, stacks))
        if not keys and not _is_unmissed(site, selection):
            left_out.append(site)
    # Numbers that were dropped are told once.
    told = replace(selection, layers={**selection.layers, **{s: layers[s] for s in stacks if selection.layers.get(s)}})
    derived = tuple(each.plan(told, stacks, ModelPlace(model, row, dims)) for each in selection.derived)
    arrays += [spec for each in derived for spec in each.specs]
    if not arrays and not selection.sites:
        raise SelectionError("nothing to record", hint="`capture` says what")
    if not arrays:
        raise Unsupported(
            f"this model has none of {', '.join(selection.sites)}",
            why=_why_not(selection.sites[0], row, model, stacks),
        )
    return Plan(tuple(arrays), tuple(left_out), derived, architecture)


def _is_unmissed(site: str, selection: Selection) -> bool:
    """Whether nobody misses a site of a group: labels in a language model, experts where there are none."""
    return site in _OF_CLASSES or (SITES[site].of_experts and "experts" not in selection.capture)


def _of_experts(
    key: ArrayKey, layers: tuple[int, ...], model: PreTrainedModel, row: Architecture, dims: StackDims
) -> ArraySpec:
    """The array of those of the layers that are mixtures of experts."""
    there = layers_having(model, row, key)
    width = dims.width_of(SITES[key.site])
    if SITES[key.site].axes[-1] == "d_shared":
        own = row.stacks[key.stack]
        down: Any = model.base_model.get_submodule(f"{own.blocks}.{there[0]}.{own.mlp['shared_mid'].path}")
        width = down.in_features
    return ArraySpec(key, tuple(layer for layer in layers if layer in there), (), width)


def _in_other_layers(
    key: ArrayKey, layers: Mapping[Stack, tuple[int, ...]], model: PreTrainedModel, row: Architecture
) -> Unsupported:
    asked, there = layers[key.stack], layers_having(model, row, key)
    return Unsupported(
        f"{key.site} of layers {', '.join(map(str, asked))}",
        why="they have one MLP for all tokens",
        hint=f'`layers="{",".join(map(str, there))}"`, which have experts',
    )


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
                    hint=f"`{what}`, or `{what}_{next(iter(dims.stacks))}`",
                )


def _spec(
    key: ArrayKey, layers: tuple[int, ...], heads: tuple[int, ...], dims: StackDims, selection: Selection
) -> ArraySpec:
    axes = SITES[key.site].axes
    if axes[0] == "hidden_layer":
        layers = choose(selection.hidden_layers, dims.n_layers + 1, "hidden layers")
    elif axes[0] != "layer":
        layers = ()
    heads = heads if "head" in axes else dims.kv_heads_of(heads) if "kv_head" in axes else ()
    return ArraySpec(key, layers, heads, dims.width_of(SITES[key.site]))


def _why_not(site: str, architecture: Architecture, model: PreTrainedModel, stacks: Sequence[Stack]) -> str:
    if site in _OF_CLASSES or (site == "logits" and output_site(model) != site):
        return why_no_output(site, model)
    if any(key.stack not in stacks for key in architecture.keys(site)):
        return "it is in the decoder, which runs only with `targets`"
    refused = [why for key, why in architecture.refused.items() if key.rpartition(".")[2] == site]
    if refused:
        return refused[0]
    if site == "projection":
        return "projections are recorded with `project`"
    if site in ("lens_topk", "lens_topk_prob"):
        return "the likeliest tokens of each layer are recorded with `lens_top_k`"
    rows = architecture.stacks.values()
    if site in ("q", "k", "v", "z", "attn_scores", "attn_pattern") and not architecture.has_attention_function:
        return "its attention does not pass through transformers' attention function"
    if site == "resid_mid" and any(row.parallel for row in rows):
        return "attention and MLP run in parallel, so there is nothing between them"
    if site == "mlp_norm" and any(row.parallel for row in rows):
        return "its MLP reads attention's normed input, attn_norm"
    if SITES[site].of_experts:
        has_experts = any(own.n_experts for own in ModelDims.of(model).stacks.values())
        what = "what they are told is not known" if has_experts else "its MLPs are no mixtures of experts"
        return what if SITES[site].is_routing else "it has no expert that all tokens share, or none that is known"
    if site in ("mlp_up", "mlp_act", "mlp_mid", "mlp_down"):
        return "its MLPs are mixtures of experts, so there is no one hidden layer"
    if site in ("attn_norm", "mlp_norm", "final_norm"):
        return "its norms come after its sublayers, not before them"
    return "its family has no such place"
