"""From what a user asked for to the arrays that a given model can give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from traceformer.capture.derived import ModelPlace
from traceformer.capture.gaps import layers_having, shared_width
from traceformer.capture.measured import Measuring
from traceformer.capture.sinks import Derived, Reduced
from traceformer.capture.topk import AttentionTopK
from traceformer.errors import SelectionError, Unsupported
from traceformer.models.dims import ModelDims, StackDims
from traceformer.models.families import architecture_of
from traceformer.models.family import Architecture
from traceformer.models.outputs import label_names, output_site, reads_itself, why_no_output
from traceformer.sites import OUTPUTS, SITES, ArrayKey, ArraySpec, Selection, Site, Stack, choose
from traceformer.store.recipes import Recipe

__all__ = ["Plan", "plan_arrays"]

_OF_CLASSES = tuple(site for site in OUTPUTS if site != "logits")


@dataclass(frozen=True, slots=True)
class Plan:
    """The arrays to record, the sites of selected groups that this family has no place for, and what is computed.

    A site that some of the layers asked for lack, or have in another shape, is written with these. `architecture` is
    the row that says where they lie, None for that of the model's family. `recipes` are those of the patterns that are
    made anew when they are read, in place of being stored.
    """

    arrays: tuple[ArraySpec, ...]
    left_out: tuple[str, ...]
    derived: tuple[Derived | Reduced, ...] = ()
    architecture: Architecture | None = None
    recipes: Mapping[ArrayKey, Recipe] = field(default_factory=dict[ArrayKey, Recipe])

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
    heads = {stack: _heads_chosen(selection, stack, dims.stacks[stack]) for stack in stacks}
    arrays: list[ArraySpec] = []
    left_out: list[str] = []
    gaps: list[SelectionError] = []
    top_k = next((each for each in selection.derived if isinstance(each, AttentionTopK)), None)
    for site in selection.sites:
        if site == "head_metrics" or (site == "attn_pattern" and top_k is not None):
            continue
        keys = [key for key in row.keys(site) if key.stack in stacks]
        if site in OUTPUTS and site != output:
            keys = []
        if site == "class_logits" and reads_itself(model):
            keys = [] if "dec" in stacks else list(row.keys(site))
        if site in ("mlp_up", "mlp_act", "mlp_mid"):
            keys = [key for key in keys if dims.stacks[key.stack].d_mlp]
        if SITES[site].of_experts:
            keys = [key for key in keys if layers_having(model, row, dims.stacks[key.stack], key)]
        for key in keys:
            own, asked = dims.stacks[key.stack], layers.get(key.stack, ())
            if site in _OF_CLASSES:
                arrays.append(ArraySpec(key, width=len(label_names(model))))
                continue
            if SITES[site].per_layer:
                having = layers_having(model, row, own, key)
                lacking = [layer for layer in asked if layer not in having]
                asked = tuple(layer for layer in asked if layer in having)
                if not asked:
                    gaps.append(_gap(key, lacking, having))
                    if selection.is_named(site):
                        raise gaps[-1]
                if lacking and selection.layers.get(key.stack) is not None:
                    left_out.append(f"{site} in layer{'s' * (len(lacking) > 1)} {', '.join(map(str, lacking))}")
                if not asked:
                    continue
                alike = own.alike(SITES[site], asked)
                others = tuple(layer for layer in asked if layer not in alike)
                if others:
                    left_out.append(_of_other_shape(SITES[site], own, others))
                asked, own = alike, own.at(alike[0])
            chosen = _heads_chosen(selection, key.stack, own) if dims.stacks[key.stack].by_layer else heads[key.stack]
            spec = _spec(key, asked, chosen, own, selection)
            is_shared = SITES[site].axes[-1] == "d_shared"
            arrays.append(replace(spec, width=shared_width(model, row, spec)) if is_shared else spec)
        if not keys and selection.is_named(site):
            raise Unsupported(f"this model has no {site}", why=_why_not(site, row, model, stacks))
        is_missed = not SITES[site].of_few or (SITES[site].is_routing and "experts" in selection.capture)
        if not keys and is_missed:
            left_out.append(site)
    # Numbers that were dropped are told once.
    told = replace(selection, layers={**selection.layers, **{s: layers[s] for s in stacks if selection.layers.get(s)}})
    derived: tuple[Derived | Reduced, ...] = tuple(
        each.plan(told, stacks, ModelPlace(model, row, dims)) for each in selection.derived if each is not top_k
    )
    makers = ([Measuring.of] if "head_metrics" in selection.sites else []) + ([top_k.of] if top_k is not None else [])
    if makers:
        asked_layers, chosen = (
            {s: there[s] for s in stacks if asked.get(s)}
            for there, asked in ((layers, selection.layers), (heads, selection.heads))
        )
        patterns = replace(told, capture=("attn_pattern",), layers=asked_layers, heads=chosen, derived=())
        specs = plan_arrays(patterns, model, stacks=stacks, architecture=architecture).arrays
        derived += tuple(make(spec) for spec in specs for make in makers)
    arrays += [spec for each in derived for spec in each.specs]
    if not arrays and gaps:
        raise gaps[0]
    if not arrays and not selection.sites:
        raise SelectionError("nothing to record", hint="`capture` says what")
    if not arrays:
        raise Unsupported(
            f"this model has none of {', '.join(selection.sites)}",
            why=_why_not(selection.sites[0], row, model, stacks),
        )
    return Plan(tuple(arrays), tuple(left_out), derived, architecture)


def _heads_chosen(selection: Selection, stack: Stack, dims: StackDims) -> tuple[int, ...]:
    asked = selection.heads.get(stack)
    if asked is not None and not dims.n_heads:
        raise SelectionError(f"heads {', '.join(map(str, asked))} requested", why="this model has no attention")
    return choose(asked, dims.n_heads, "heads")


def _gap(key: ArrayKey, asked: Sequence[int], having: Sequence[int]) -> SelectionError:
    """The error for layers that have no such place, while others do."""
    what = "attention" if key.attention is not None else key.site
    return SelectionError(
        f"{key.site} of layer{'s' * (len(asked) > 1)} {', '.join(map(str, asked))} requested",
        why=f"no {what} is there",
        hint=f"layers with {what}: {', '.join(map(str, having))}",
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


def _of_other_shape(site: Site, dims: StackDims, others: Sequence[int]) -> str:
    """Which layers of a site are left out, since an array has one shape for all of its layers."""
    shapes = dict.fromkeys(
        f"{n} head{'s' * (n > 1)} {own.width_of(site)} wide"
        for own in map(dims.at, others)
        for n in (own.n_heads_of(site),)
    )
    numbers = ", ".join(map(str, others))
    return f"{site.name} of this shape in layer{'s' * (len(others) > 1)} {numbers} (there {' or '.join(shapes)})"


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
    if SITES[site].of_attention and not any(row.attends for row in architecture.stacks.values()):
        return "this model has no attention"
    refused = [why for key, why in architecture.refused.items() if key.rpartition(".")[2] == site]
    if refused:
        return refused[0]
    if site == "kv_latent":
        return "its keys and values are made of attention's input, not of a narrower row"
    if site in ("k_proj", "v_proj") and any(
        row.attention.kv_latent is not None for row in architecture.stacks.values()
    ):
        return "one projection makes keys and values of a latent row: see kv_latent, k and v"
    if site == "projection":
        return "projections are recorded with `project`"
    if site in ("attn_topk", "attn_topk_weight", "attn_topk_rest"):
        return "the largest keys of each query are recorded with `store_topk`"
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
    if (site.startswith("mlp_") or site == "resid_mid") and not any(row.mlp for row in rows):
        return "its blocks have no MLP that is known"
    if site in ("mlp_up", "mlp_act", "mlp_mid", "mlp_down") and all(row.mlp_kind != "experts" for row in rows):
        return "no module of its MLPs shows it, or none as wide as its config says"
    if site in ("mlp_up", "mlp_act", "mlp_mid", "mlp_down"):
        return "its MLPs are mixtures of experts, so there is no one hidden layer"
    if site in ("attn_norm", "mlp_norm", "final_norm"):
        return "its norms come after its sublayers, not before them"
    return "its family has no such place"
