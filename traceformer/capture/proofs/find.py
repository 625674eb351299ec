"""The row of a model that has none, found in one watched pass by equality of tensors.

1. The blocks are the list of as many modules as there are layers in which each reads what the one before made.
2. The embedding reads the ids; the final norm reads what the last block made, and makes what the model gives.
3. In a block, `found_in_block` finds attention, norms, MLP, and what is added to the stream.
4. Where attention is in some layers only, by what its config says, a block with attention shows its row; what the
   others have at other modules is theirs alone. An MLP that no such block has is looked for in the others.
5. What is not as wide as the config says is refused by name.

Nothing that is found here is trusted: the proofs go over every site of the row before one is recorded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from traceformer.capture.proofs.block import Block
from traceformer.capture.proofs.check import Example
from traceformer.capture.proofs.find_block import NO_FUNCTION, Sums, found_in_block, mlp_in_block
from traceformer.capture.proofs.watch import Attended, Watched, insides, is_list_of_blocks, parts_of, watch
from traceformer.errors import Unsupported
from traceformer.models.dims import ModelDims, StackDims
from traceformer.models.family import Architecture, AttentionRow, StackRow, Tap
from traceformer.models.part import text_part
from traceformer.sites import SITES, ArrayKey, Attention, Stack

__all__ = ["find_row"]

_OF_STREAM = (
    *("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "hidden", "final_norm"),
    *("mlp_norm", "mlp_up", "mlp_act", "mlp_mid", "mlp_down", "mlp_out"),
)
_IN_ATTENTION = ("q", "k", "v", "z", "attn_scores", "attn_pattern")


def find_row(model: PreTrainedModel, examples: Sequence[Example]) -> Architecture:
    """Returns the row that a model seems to have, found by running it once.

    Raises:
        Unsupported: there is no one residual stream to be found in it; the message names what it has instead.
    """
    dims = ModelDims.of(model)
    watched = watch(model, examples, dims.stacks)
    if watched.attended and not all(own.n_heads for own in dims.stacks.values()):
        raise Unsupported(
            f"the attention of {type(model).__name__}",
            why="its config states no number of heads under a name that is known",
            hint="a config with num_attention_heads",
        )
    paths = _blocks(model, dims, watched)
    refused: dict[str, str] = {}
    only: dict[str, tuple[int, ...]] = {}
    stacks: dict[Stack, StackRow] = {}
    for stack, sizes in dims.stacks.items():
        row, why = _stack_row(text_part(model), watched, stack, paths[stack], sizes, has_cross=len(paths) > 1)
        row, where = _with_other_blocks(text_part(model), watched, stack, row, sizes)
        stacks[stack] = row
        refused |= why
        only |= where
    pads_texts = _pads_texts(model, dims.stacks, watched, paths)
    return Architecture(stacks, bool(watched.attended), refused=refused, only=only, pads_texts=pads_texts)


def _pads_texts(
    model: PreTrainedModel, sizes: Mapping[Stack, StackDims], watched: Watched, paths: Mapping[Stack, str]
) -> bool:
    """Whether an encoder's blocks read more positions than there are ids: padded behind, up to a length that they take.

    What stands before the texts, as a prompt of the model's own, stays the same when they are turned around.
    """
    if "enc" not in paths:
        return False
    path, ids = f"{paths['enc']}.0", watched.ids["enc"]
    length = ids.shape[1]
    [call] = watched.of(path)
    if call.given.shape[1] <= length:
        return False
    turned: dict[Stack, Tensor] = {**watched.ids, "enc": ids.flip(-1)}
    examples: list[Example] = [
        {stack: rows[text].tolist() for stack, rows in turned.items()} for text in range(len(ids))
    ]
    [other] = watch(model, examples, sizes).of(path)
    others = turned["enc"] != ids
    same = (call.given[:, :length] == other.given[:, :length]).all(-1)
    return bool(others.any()) and not bool((others & same).any())


def _blocks(model: PreTrainedModel, dims: ModelDims, watched: Watched) -> dict[Stack, str]:
    """The path of each stack's list of blocks: the encoder runs first."""
    found: dict[Stack, str] = {}
    name, obstacles = type(model).__name__, list[str]()
    for stack, sizes in dims.stacks.items():
        chains: list[tuple[int, str]] = []
        for path, module in text_part(model).named_modules():
            outer = (*found.values(), *(chain for _, chain in chains))
            is_within = any(f"{path}.".startswith(f"{other}.") for other in outer)
            if is_within or not is_list_of_blocks(module, sizes.n_layers):
                continue
            why = _why_no_chain(watched, path, sizes)
            if why:
                obstacles.append(f"{path}: {why}")
            else:
                chains.append((watched.of(f"{path}.0")[0].began, path))
        if not chains:
            kind = "" if len(dims.stacks) == 1 else {"enc": "encoder ", "dec": "decoder "}[stack]
            raise Unsupported(
                f"no residual stream was found in {name}",
                why="; ".join(obstacles) or f"it has no list of {sizes.n_layers} {kind}blocks that run once each",
                hint="a row of its own in FAMILIES is what it needs: `traceformer check` says what was seen",
            )
        found[stack] = min(chains)[1]
    return found


def _why_no_chain(watched: Watched, path: str, sizes: StackDims) -> str:
    """Why these modules are no blocks; empty if each reads what the one before made."""
    calls = [watched.of(f"{path}.{layer}") for layer in range(sizes.n_layers)]
    if any(len(each) != 1 for each in calls):
        return f"its modules run {sorted({len(each) for each in calls})} times in a pass, each with a tensor"
    once = [each for [each] in calls]
    shape = tuple(once[0].given.shape)
    if len(shape) not in (3, 4):
        return f"what goes from block to block is {shape}, not (batch, position, width)"
    if shape[-1] != sizes.d_model:
        return f"what goes from block to block is {shape[-1]} wide, and the config says {sizes.d_model}"
    for layer in range(1, len(once)):
        if not _same(once[layer].given, once[layer - 1].made):
            return f"block {layer} does not read what block {layer - 1} made"
    return "" if once[-1].made.shape == once[-1].given.shape else "the last one makes another width"


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _stack_row(
    base: nn.Module, watched: Watched, stack: Stack, path: str, sizes: StackDims, *, has_cross: bool
) -> tuple[StackRow, dict[str, str]]:
    inside, *_ = insides(base.get_submodule(path), sizes)
    inner = f"{path}.{inside}"
    [call] = watched.of(inner)
    memory = watched.last.get("enc") if has_cross and stack == "dec" else None
    kinds: tuple[Attention, ...] = ("self",) if memory is None else ("self", "cross")
    modules, refused = _attention_modules(watched, stack, path, sizes, kinds)
    block = Block(inner, call.module, call.given, call.made, [*watched.within(inner)], memory)
    seen: dict[Attention, Attended] = {
        kind: next(each for each in watched.attended if each.path == f"{inner}.{module}")
        for kind, module in modules.items()
    }
    row, sums = found_in_block(block, seen)
    if call.given.dim() == 4:
        shape = tuple(call.given.shape)
        why = f"what goes from block to block is {shape}: several residual streams, and an array has one"
        sums = Sums(why, _OF_STREAM)
    for site in sums.sites:
        of = kinds if SITES[site].of_attention else (None,)
        refused |= {str(ArrayKey(stack, kind, site)): sums.why for kind in of}
    row = replace(
        row,
        blocks=path,
        token_embed=_embedding(watched, stack),
        final_norm=_final_norm(watched, stack, path, sizes),
        attends=bool(sizes.n_heads),
    )
    for kind in kinds:
        own = row.attention_of(kind)
        if own is None:
            row = replace(row, cross=AttentionRow("", None, None, None, None, None))
        if kind not in modules and row.attends and (watched.attended or watched.obstacle):
            why = refused.get(kind) or watched.obstacle or NO_FUNCTION
            refused |= {str(ArrayKey(stack, kind, site)): why for site in _IN_ATTENTION}
        refused.pop(kind, None)
    return row, refused | _of_other_widths(watched, row, stack, sizes, seen, block)


def _with_other_blocks(
    base: nn.Module, watched: Watched, stack: Stack, row: StackRow, sizes: StackDims
) -> tuple[StackRow, dict[str, tuple[int, ...]]]:
    """The row with an MLP that blocks without attention have, and the layers of what is elsewhere in the others."""
    blocks: Any = base.get_submodule(row.blocks)
    if not sizes.attending:
        return row, _where_as_wide(blocks, stack, row, insides(blocks, sizes)[0])
    mlp, kind = dict(row.mlp), row.mlp_kind
    holding = {site: {*sizes.attending} for site in mlp}
    for layer in insides(blocks, sizes)[1:]:
        path = f"{row.blocks}.{layer}"
        [call] = watched.of(path)
        block = Block(path, call.module, call.given, call.made, [*watched.within(path)], None)
        found, own_kind = mlp_in_block(block)
        found = {site: tap for site, tap in found.items() if _width(block, tap) == sizes.width_of(SITES[site])}
        if not row.mlp:
            mlp = {**found, **mlp}
            kind = own_kind if found and own_kind != "experts" else kind
        alike = {each for each in range(sizes.n_layers) if parts_of(blocks[each]) == parts_of(blocks[layer])}
        for site in [site for site, tap in found.items() if mlp.get(site) == tap]:
            holding.setdefault(site, set()).update(alike)
    some = {site: tuple(sorted(layers)) for site, layers in holding.items() if len(layers) < sizes.n_layers}
    only = {str(ArrayKey(stack, None, site)): layers for site, layers in some.items()}
    return replace(row, mlp=mlp, mlp_kind=kind), only


def _where_as_wide(blocks: Any, stack: Stack, row: StackRow, layer: int) -> dict[str, tuple[int, ...]]:
    """The layers of the sites inside MLPs of which some are wider than that of this layer."""
    sites = [site for site in row.mlp if SITES[site].axes[-1] == "d_mlp"]
    matrix = next((row.mlp[site].path for site in ("mlp_mid", "mlp_up") if site in sites), None)
    if matrix is None:
        return {}
    sizes = [_size_of(block, matrix) for block in blocks]
    alike = tuple(number for number, size in enumerate(sizes) if size == sizes[layer])
    return {} if len(alike) == len(sizes) else {str(ArrayKey(stack, None, site)): alike for site in sites}


def _size_of(block: nn.Module, path: str) -> int:
    """How many numbers the matrix of a module has; 0 where there is none."""
    weight = next((getattr(own, "weight", None) for name, own in block.named_modules() if name == path), None)
    return 0 if weight is None else weight.numel()


def _attention_modules(
    watched: Watched, stack: Stack, path: str, sizes: StackDims, kinds: Sequence[Attention]
) -> tuple[dict[Attention, str], dict[str, str]]:
    """Which module of a block calls the attention function, by kind; or why that cannot be said."""
    callers: dict[int, list[str]] = {layer: [] for layer in range(sizes.n_layers)}
    for each in watched.attended:
        if each.path.startswith(f"{path}."):
            layer, _, rest = each.path.removeprefix(f"{path}.").partition(".")
            callers[int(layer)].append(rest)
    with_some = [layer for layer, own in callers.items() if own]
    if not with_some:
        return {}, {}
    why = ""
    first = callers[with_some[0]]
    if (*with_some,) != sizes.attention_layers:
        why = f"attention in layers {','.join(map(str, with_some))} of {sizes.n_layers}, and its config says otherwise"
    elif len({tuple(callers[layer]) for layer in with_some}) > 1:
        why = "its blocks call the attention function in different ways"
    elif "" in first:
        why = "its blocks call the attention function themselves, not a module within them"
    elif len(first) > len(kinds):
        why = f"a block calls the attention function {len(first)} times"
    if why:
        return {}, dict.fromkeys(kinds, why)
    return dict(zip(kinds, first, strict=False)), {}


def _embedding(watched: Watched, stack: Stack) -> str:
    """The module that reads the ids first; empty where there is none."""
    ids = watched.ids[stack]
    reading = [call for call in watched.calls if _same(call.given, ids) and call.made.dim() == 3]
    leaves = [call for call in reading if not list(call.module.children())]
    return min(leaves or reading, key=lambda call: call.began).path if reading else ""


def _final_norm(watched: Watched, stack: Stack, path: str, sizes: StackDims) -> str | None:
    """The module between the last block and what the stack gives."""
    [last] = watched.of(f"{path}.{sizes.n_layers - 1}")
    given = watched.last.get(stack)
    after = [call for call in watched.calls if _same(call.given, last.made) and call.began > last.ended]
    exact = [call for call in after if given is not None and _same(call.made, given)]
    if exact or (given is not None and given.shape == last.made.shape):
        return exact[0].path if exact and not _same(last.made, exact[0].made) else None
    # Its base model is the whole of it, and gives something else.
    norms = (call for call in after if "norm" in type(call.module).__name__.lower())
    return next((call.path for call in norms if call.made.shape == last.made.shape), None)


def _of_other_widths(
    watched: Watched, row: StackRow, stack: Stack, sizes: StackDims, seen: Mapping[Attention, Attended], block: Block
) -> dict[str, str]:
    """What is not as wide, or not in as many heads, as the config says."""
    refused: dict[str, str] = {}
    for key, width, expected in _widths(watched, row, stack, sizes, seen, block):
        if width != expected:
            refused[str(key)] = f"it is {width} wide, and the config says {expected}"
    sizes = sizes.at(int(block.path.rpartition(".")[2]))
    for kind, call in seen.items():
        heads = {"q": sizes.n_heads, "k": sizes.n_kv_heads, "v": sizes.n_kv_heads, "z": sizes.n_heads}
        mixed = call.mixed.transpose(1, 2)
        shapes = {"q": call.query.shape, "k": call.key.shape, "v": call.value.shape, "z": mixed.shape}
        for site, shape in shapes.items():
            width = sizes.width_of(SITES[site])
            if (shape[1], shape[3]) != (heads[site], width):
                why = f"{shape[1]} heads of width {shape[3]}, and the config says {heads[site]} of {width}"
                refused[str(ArrayKey(stack, kind, site))] = why
                if site != "z":
                    refused[str(ArrayKey(stack, kind, f"{site}_proj"))] = why
        if call.query.shape[1] != sizes.n_heads:
            why = f"it has {call.query.shape[1]} heads, and the config says {sizes.n_heads}"
            refused |= {str(ArrayKey(stack, kind, site)): why for site in ("attn_scores", "attn_pattern")}
    return refused


def _widths(
    watched: Watched, row: StackRow, stack: Stack, sizes: StackDims, seen: Mapping[Attention, Attended], block: Block
) -> Iterator[tuple[ArrayKey, int, int]]:
    if row.token_embed:
        [call, *_] = [each for each in watched.of(row.token_embed) if _same(each.given, watched.ids[stack])]
        yield ArrayKey(stack, None, "token_embed"), call.made.shape[-1], sizes.d_embed
    for site, tap in row.mlp.items():
        yield ArrayKey(stack, None, site), _width(block, tap), sizes.width_of(SITES[site])


def _width(block: Block, tap: Tap) -> int:
    """How wide the rows are that a tap shows in a block."""
    call = next(call for call in block.calls if block.tap_path(call) == tap.path)
    if tap.part in ("expert ids", "expert weights") and call.routing is not None:
        return call.routing[0].shape[-1]
    tensor = call.made if tap.side == "output" else call.given
    return tensor.shape[-1] // (1 if tap.part == "whole" else 2)
