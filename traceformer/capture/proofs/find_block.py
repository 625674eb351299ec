"""Which module of a block plays which part, found by equality of tensors in one pass.

1. What is added to the stream: from what enters the block, the next thing that a module reads is the sum of the stream
   and of what some module made, perhaps normed behind it, until what leaves the block is reached.
2. Of parallel blocks what leaves is the sum of what enters and of what two modules made.
3. Projections are what gives, heads split, what the attention function is called with; attention's norm is what makes
   what they read of the stream.
4. The MLP is found from what it adds: see `find_mlp`.

A stream that other multiples are added to is refused: no site could say what it is.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from traceformer.capture.proofs.block import Block, has_matrix, is_leaf, is_norm, near, norm_making, same
from traceformer.capture.proofs.find_mlp import mlp_of
from traceformer.capture.proofs.watch import Attended, Call
from traceformer.errors import Unsupported
from traceformer.models.family import AttentionRow, StackRow, Tap, into
from traceformer.sites import Attention

__all__ = ["NO_FUNCTION", "found_in_block"]

NO_FUNCTION = "its attention does not pass through transformers' attention function"


class _Step(NamedTuple):
    """Something is added to the stream, and perhaps normed with it: what, to what, and what the stream is then."""

    added: Tensor
    stream: Tensor
    then: Tensor
    norm: Call | None


def found_in_block(block: Block, seen: Mapping[Attention, Attended]) -> StackRow:
    """Returns the row of a stack as one block of it shows it; where the blocks lie is not known here.

    Raises:
        Unsupported: the block adds multiples of what its modules make.
    """
    made = _made(block)
    kinds: tuple[Attention, ...] = ("self",) if block.memory is None else ("self", "cross")
    steps = _steps(block, made, block.enters, len(kinds) + 2)
    parallel = None if steps is not None and len(steps) > len(kinds) else _parallel(block, made, seen)
    if steps is None and parallel is None:
        _refuse_multiples(block, made)
    if steps is None or parallel is not None or len(steps) != len(kinds) + 1:
        steps = []
    attentions: dict[Attention, AttentionRow] = {}
    stream: Tensor | None = block.enters
    for number, kind in enumerate(kinds):
        if steps:
            step = steps[number]
            attentions[kind] = _attention_row(block, seen.get(kind), step.stream, step.added, step.norm)
        else:
            attentions[kind] = _attention_row(block, seen.get(kind), stream, parallel and parallel[0], None)
            stream = None  # what cross-attention reads is not known
    mlp, kind_of_mlp = dict[str, Tap](), "plain"
    if steps:
        mlp, kind_of_mlp = mlp_of(block, steps[-2].then, steps[-1].added, None)
        middle = _middle(block, steps[-2], mlp)
        mlp = {**({} if middle is None else {"resid_mid": middle}), **mlp}
    elif parallel is not None:
        mlp, kind_of_mlp = mlp_of(block, block.enters, parallel[1], attentions["self"].attn_norm)
    last = steps[-1].norm if steps else None
    return StackRow(
        "",
        "",
        attentions["self"],
        mlp,
        mlp_kind=kind_of_mlp,
        cross=attentions.get("cross"),
        post_norm=None if last is None else block.tap_path(last),
        parallel=parallel is not None,
    )


def _made(block: Block) -> list[Tensor]:
    """What may be added: all different tensors that modules made, as wide as the stream, in their order."""
    found: list[Tensor] = []
    for call in block.calls:
        rows = block.rows(call.made)
        if rows.shape == block.enters.shape and not any(same(rows, each) for each in (block.enters, *found)):
            found.append(rows)
    return found


def _read(block: Block, stream: Tensor) -> list[Tensor]:
    """What the stream may be next: what modules read, in their order, and what leaves the block."""
    found: list[Tensor] = []
    for call in sorted(block.calls, key=lambda call: call.began):
        rows = block.rows(call.given)
        if rows.shape == stream.shape and not any(same(rows, each) for each in (stream, *found)):
            found.append(rows)
    return found if any(same(block.leaves, each) for each in found) else [*found, block.leaves]


def _steps(block: Block, made: Sequence[Tensor], stream: Tensor, most: int) -> list[_Step] | None:
    """What is added to the stream, one after the other, until it is what leaves; None where that is not found."""
    if same(stream, block.leaves):
        return []
    if most == 0:
        return None
    for is_sum in (same, near):
        for then in _read(block, stream):
            for added in made:
                if not is_sum(stream + added, then):
                    continue
                rest = _steps(block, made, then, most - 1)
                if rest is not None:
                    return [_Step(added, stream, then, None), *rest]
                for norm in block.reading(then):
                    after = block.rows(norm.made)
                    if after.shape == stream.shape:
                        rest = _steps(block, made, after, most - 1)
                        if rest is not None:
                            return [_Step(added, stream, after, norm), *rest]
    return None


def _parallel(block: Block, made: Sequence[Tensor], seen: Mapping[Attention, Attended]) -> tuple[Tensor, Tensor] | None:
    """What attention and what the MLP adds, where both read what enters."""
    x, y = block.enters, block.leaves
    for is_sum in (same, near):
        for a, m in permutations(made, 2):
            if is_sum(a + m + x, y) or is_sum(x + a + m, y) or is_sum(x + m + a, y):
                return (a, m) if _is_attention(block, a, seen) else (m, a)
    return None


def _is_attention(block: Block, added: Tensor, seen: Mapping[Attention, Attended]) -> bool:
    """Whether attention adds this: by its output projection, or, out of sight, by the name of what makes it."""
    calls = block.making(added)
    if "self" in seen:
        out = _out_proj(block, seen["self"])
        return out is not None and any(call.ended == out.ended or same(block.rows(out.made), added) for call in calls)
    return any("att" in call.path.lower().removeprefix(block.path.lower()) for call in calls)


def _refuse_multiples(block: Block, made: Sequence[Tensor]) -> None:
    """Refuses a block that adds multiples, such as Granite's: found by least squares over what two modules made."""
    leaving = [(block.leaves, "")]
    leaving += [(block.rows(call.given), " before its last norm") for call in block.making(block.leaves)]
    for target, where in leaving:
        if target.shape != block.enters.shape or same(target, block.enters):
            continue
        y = target.cpu().double().flatten()
        for a, m in permutations(made, 2):
            terms = torch.stack([each.cpu().double().flatten() for each in (block.enters, a, m)], dim=1)
            weights = torch.linalg.lstsq(terms, y[:, None]).solution[:, 0]
            far = (terms @ weights - y).abs().max()
            if far > 1e-6 * y.abs().max() or bool((weights.abs() < 1e-3).any()):
                continue
            paths = ["the stream", *(block.tap_path(block.making(each)[0]) for each in (a, m))]
            said = [f"{weight:.6g} times {path}" for weight, path in zip(weights.tolist(), paths, strict=True)]
            raise Unsupported(
                f"the residual stream through {block.path} is no plain sum",
                why=f"what leaves a block{where} is {', '.join(said[:-1])} and {said[-1]}",
                hint="blocks that scale what they add have no row yet",
            )


def _out_proj(block: Block, seen: Attended) -> Call | None:
    mixed = seen.mixed.flatten(2)
    return next((call for call in block.calls if has_matrix(call) and same(block.rows(call.given), mixed)), None)


def _attention_row(
    block: Block, seen: Attended | None, stream: Tensor | None, added: Tensor | None, norm: Call | None
) -> AttentionRow:
    """What is found of one attention: `stream` is what it reads and adds to, `added` what it adds."""
    adding = [] if added is None else block.making(added)
    outer = [call for call in adding if seen is not None and call.path == seen.path and not is_norm(adding[0])]
    attn_out = Tap(block.tap_path((outer or adding)[0])) if adding else None
    post_norm = None if norm is None else block.tap_path(norm)
    if seen is None:
        return AttentionRow("", None, None, None, None, attn_out, _norm_before(block, stream, adding), post_norm)
    out = _out_proj(block, seen)
    q, k, v, scales = _projections(block, seen)
    before = None if q is None or stream is None else norm_making(block, stream, q[1])
    return AttentionRow(
        block.tap_path(seen),
        None if q is None else q[0],
        None if k is None else k[0],
        None if v is None else v[0],
        None if out is None else block.tap_path(out),
        attn_out,
        None if before is None else Tap(block.tap_path(before)),
        post_norm,
        scales,
    )


def _norm_before(block: Block, stream: Tensor | None, adding: Sequence[Call]) -> Tap | None:
    """Attention's norm, where attention is out of sight: the one module that reads the stream before it."""
    if stream is None or not adding:
        return None
    reading = [call for call in block.reading(stream) if call.ended < adding[0].began]
    norms = [call for call in reading if block.rows(call.made).shape == stream.shape]
    if len(norms) > 1:  # parallel blocks may have one for attention, which reads it, and one for the MLP
        norms = [norm for norm in norms if any(same(block.rows(norm.made), block.rows(call.given)) for call in adding)]
    return Tap(block.tap_path(norms[0])) if len(norms) == 1 else None


_Found = tuple[Tap, Tensor]
"""A projection, and what it reads."""


def _projections(block: Block, seen: Attended) -> tuple[_Found | None, _Found | None, _Found | None, bool]:
    """The projections of queries, keys and values, and whether the module scales queries itself."""
    v_rows = _merged(seen.value)
    separate = [call for call in block.calls if same(block.rows(call.made), v_rows)]
    if not separate:
        q, k, v = _fused(block, seen)
        return q, k, v, False
    v_call = separate[0]
    reads = block.rows(v_call.given)
    others = [call for call in block.calls if is_leaf(call) and call is not v_call]
    k_call = _projection_of(block, seen.key, [call for call in others if same(block.rows(call.given), reads)], [])
    if block.memory is None or not same(reads, block.memory):
        others = [call for call in others if same(block.rows(call.given), reads)]
    out = _out_proj(block, seen)
    others = [call for call in others if out is None or call.ended < out.began]
    q_call = _projection_of(block, seen.query, others, [k_call] if k_call else [])
    if q_call is None and k_call is not None:  # with queries' and keys' own norms nothing but their order is left
        q_call = _projection_of(block, seen.query, others, [])
    scaling = getattr(q_call and _owner(block, seen), "scaling", None)
    scales = (
        q_call is not None
        and isinstance(scaling, float)
        and abs(scaling - 1) > 1e-6
        and near(block.rows(q_call.made) * scaling, _merged(seen.query))
    )
    q: _Found | None = None if q_call is None else (Tap(block.tap_path(q_call)), block.rows(q_call.given))
    k: _Found | None = None if k_call is None else (Tap(block.tap_path(k_call)), block.rows(k_call.given))
    return q, k, (Tap(block.tap_path(v_call)), reads), scales


def _owner(block: Block, seen: Attended) -> nn.Module | None:
    return next((call.module for call in block.calls if call.path == seen.path), None)


def _merged(heads: Tensor) -> Tensor:
    """(batch, head, position, width) -> (batch, position, head * width)."""
    return heads.transpose(1, 2).flatten(2)


def _projection_of(block: Block, heads: Tensor, among: Sequence[Call], taken: Sequence[Call]) -> Call | None:
    """The projection that these heads are most like: the very numbers, or as long, or as long but for a factor."""
    target = _merged(heads)
    fitting = [
        call
        for call in among
        if block.rows(call.made).shape == target.shape
        and not any(call is other for other in taken)
        and has_matrix(call)
    ]
    if not fitting:
        return None

    def unlike(call: Call) -> tuple[bool, float]:
        rows = block.rows(call.made)
        own = rows.cpu().double().unflatten(-1, (heads.shape[1], heads.shape[3])).norm(dim=-1).transpose(1, 2)
        ratio = heads.cpu().double().norm(dim=-1) / own.clamp(min=1e-30)
        return not same(rows, target), float(ratio.std() / ratio.mean().clamp(min=1e-30)) if ratio.numel() > 1 else 0.0

    best = min(fitting, key=unlike)
    return best if unlike(best)[1] < 1e-3 or len(fitting) == 1 else fitting[0]


def _fused(block: Block, seen: Attended) -> tuple[_Found | None, _Found | None, _Found | None]:
    """Queries, keys and values that one projection makes: one after the other, or head by head."""
    n_heads, n_kv_heads, width = seen.query.shape[1], seen.key.shape[1], seen.value.shape[3]
    values = _merged(seen.value)
    for call in block.calls:
        rows = block.rows(call.made)
        if rows.dim() != 3 or rows.shape[-1] != (n_heads + 2 * n_kv_heads) * width or not has_matrix(call):
            continue
        path, given = block.tap_path(call), block.rows(call.given)
        if same(rows[..., -n_kv_heads * width :], values):
            return tuple((Tap(path, part=part), given) for part in ("q", "k", "v"))  # pyright: ignore
        if same(rows.unflatten(-1, (n_kv_heads, n_heads // n_kv_heads + 2, width))[..., -1, :].flatten(2), values):
            return tuple((Tap(path, part=part, fused="per_head"), given) for part in ("q", "k", "v"))  # pyright: ignore
    return None, None, None


def _middle(block: Block, step: _Step, mlp: Mapping[str, Tap]) -> Tap | None:
    """Where the stream is seen between attention and MLP: what a norm makes, or what the next module reads."""
    if step.norm is not None:
        return Tap(block.tap_path(step.norm))
    reading = block.reading(step.then)
    norm = mlp.get("mlp_norm")
    chosen = next((call for call in reading if norm is not None and block.tap_path(call) == norm.path), None)
    chosen = chosen or min(reading, key=lambda call: call.began, default=None)
    return None if chosen is None else into(block.tap_path(chosen))
