"""The row of a model that has none, found in one watched pass by equality of tensors.

1. The blocks are the list of as many modules as there are layers in which each reads what the one before made.
2. The embedding reads the ids; the final norm reads what the last block made, and makes what the model gives.
3. In a block, `found_in_block` finds attention, norms, MLP, and what is added to the stream.
4. What is not there in every block, or not as wide as the config says, is refused by name.

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
from traceformer.capture.proofs.find_block import NO_FUNCTION, found_in_block
from traceformer.capture.proofs.watch import Attended, Watched, inside_of, is_list_of_blocks, watch
from traceformer.errors import Unsupported
from traceformer.models.dims import ModelDims, StackDims
from traceformer.models.family import Architecture, AttentionRow, StackRow
from traceformer.sites import SITES, ArrayKey, Attention, Stack

__all__ = ["find_row"]

_IN_ATTENTION = ("q", "k", "v", "z", "attn_scores", "attn_pattern")


def find_row(model: PreTrainedModel, examples: Sequence[Example]) -> Architecture:
    """Returns the row that a model seems to have, found by running it once.

    Raises:
        Unsupported: there is no one residual stream to be found in it; the message names what it has instead.
    """
    dims = ModelDims.of(model)
    watched = watch(model, examples, {stack: own.n_layers for stack, own in dims.stacks.items()})
    paths = _blocks(model, dims, watched)
    refused: dict[str, str] = {}
    stacks: dict[Stack, StackRow] = {}
    for stack, sizes in dims.stacks.items():
        row, why = _stack_row(model.base_model, watched, stack, paths[stack], sizes, has_cross=len(paths) > 1)
        stacks[stack] = row
        refused |= why
    return Architecture(stacks, bool(watched.attended), refused=refused)


def _blocks(model: PreTrainedModel, dims: ModelDims, watched: Watched) -> dict[Stack, str]:
    """The path of each stack's list of blocks: the encoder runs first."""
    found: dict[Stack, str] = {}
    name, obstacles = type(model).__name__, list[str]()
    for stack, sizes in dims.stacks.items():
        chains: list[tuple[int, str]] = []
        for path, module in model.base_model.named_modules():
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
    if len(shape) != 3:
        return f"what goes from block to block is {shape}, not (batch, position, width): several residual streams"
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
    inner = f"{path}.{inside_of(sizes.n_layers)}"
    [call] = watched.of(inner)
    memory = watched.last.get("enc") if has_cross and stack == "dec" else None
    kinds: tuple[Attention, ...] = ("self",) if memory is None else ("self", "cross")
    modules, refused = _attention_modules(watched, stack, path, sizes, kinds)
    block = Block(inner, call.given, call.made, [*watched.within(inner)], memory)
    seen: dict[Attention, Attended] = {
        kind: next(each for each in watched.attended if each.path == f"{inner}.{module}")
        for kind, module in modules.items()
    }
    row = found_in_block(block, seen)
    row = replace(
        row,
        blocks=path,
        token_embed=_embedding(watched, stack),
        final_norm=_final_norm(watched, stack, path, sizes),
    )
    for kind in kinds:
        own = row.attention_of(kind)
        if own is None:
            row = replace(row, cross=AttentionRow("", None, None, None, None, None))
        if kind not in modules and (watched.attended or watched.obstacle):
            why = refused.get(kind) or watched.obstacle or NO_FUNCTION
            refused |= {str(ArrayKey(stack, kind, site)): why for site in _IN_ATTENTION}
        refused.pop(kind, None)
    row, missing = _in_every_block(base, row, stack, sizes)
    return row, refused | missing | _of_other_widths(watched, row, stack, sizes, seen, block)


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
    if len(with_some) < sizes.n_layers:
        why = f"attention in layers {','.join(map(str, with_some))} of {sizes.n_layers} only"
    elif len({tuple(own) for own in callers.values()}) > 1:
        why = "its blocks call the attention function in different ways"
    elif "" in callers[0]:
        why = "its blocks call the attention function themselves, not a module within them"
    elif len(callers[0]) > len(kinds):
        why = f"a block calls the attention function {len(callers[0])} times"
    if why:
        return {}, dict.fromkeys(kinds, why)
    return dict(zip(kinds, callers[0], strict=False)), {}


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


def _in_every_block(base: nn.Module, row: StackRow, stack: Stack, sizes: StackDims) -> tuple[StackRow, dict[str, str]]:
    """The row without what some of its blocks lack, and what that is."""
    blocks: Any = base.get_submodule(row.blocks)
    refused: dict[str, str] = {}

    def there(path: str | None) -> bool:
        return path is None or all(_has(block, path) for block in blocks)

    def note(kind: Attention | None, site: str) -> None:
        refused[str(ArrayKey(stack, kind, site))] = "not all of its blocks have the module that the others have it at"

    for site, tap in row.mlp.items():
        if not there(tap.path):
            note(None, site)
    mlp = {site: tap for site, tap in row.mlp.items() if there(tap.path)}
    changed: dict[str, AttentionRow | None] = {}
    for kind in ("self", "cross"):
        own = row.attention_of(kind)
        if own is None:
            continue
        for site in ("attn_norm", "q_proj", "k_proj", "v_proj", "attn_out"):
            tap = own.tap(site)
            if tap is not None and not there(tap.path):
                note(kind, site)
                own = replace(own, **{site: None})
        if not there(own.out_proj):
            own = replace(own, out_proj=None)
        changed["attention" if kind == "self" else "cross"] = own
    return replace(row, mlp=mlp, **changed), refused  # pyright: ignore[reportArgumentType]


def _has(block: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in block.named_modules(remove_duplicate=False))


def _of_other_widths(
    watched: Watched, row: StackRow, stack: Stack, sizes: StackDims, seen: Mapping[Attention, Attended], block: Block
) -> dict[str, str]:
    """What is not as wide, or not in as many heads, as the config says."""
    refused: dict[str, str] = {}
    for key, width, expected in _widths(watched, row, stack, sizes, seen, block):
        if width != expected:
            refused[str(key)] = f"it is {width} wide, and the config says {expected}"
    for kind, call in seen.items():
        heads = {"q": sizes.n_heads, "k": sizes.n_kv_heads, "v": sizes.n_kv_heads}
        shapes = {"q": call.query.shape, "k": call.key.shape, "v": call.value.shape}
        for site, shape in shapes.items():
            if (shape[1], shape[3]) != (heads[site], sizes.d_head):
                why = f"{shape[1]} heads of width {shape[3]}, and the config says {heads[site]} of {sizes.d_head}"
                refused[str(ArrayKey(stack, kind, site))] = why
                refused[str(ArrayKey(stack, kind, f"{site}_proj"))] = why
        if (call.mixed.shape[2], call.mixed.shape[3]) != (sizes.n_heads, sizes.d_head):
            why = f"{call.mixed.shape[2]} heads of width {call.mixed.shape[3]}, and the config says {sizes.n_heads} of "
            refused[str(ArrayKey(stack, kind, "z"))] = f"{why}{sizes.d_head}"
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
    calls = {call.path.removeprefix(f"{block.path}."): call for call in block.calls}
    for site, tap in row.mlp.items():
        expected = sizes.d_mlp if SITES[site].axes[-1] == "d_mlp" else sizes.d_model
        tensor = calls[tap.path].made if tap.side == "output" else calls[tap.path].given
        yield ArrayKey(stack, None, site), tensor.shape[-1] // (1 if tap.part == "whole" else 2), expected
