"""Which module of a block plays which part, found by equality of tensors in one pass.

1. What is added to the stream: from what enters the block, the next thing that a module reads is the sum of the stream
   and of what some module made, perhaps normed behind it, until what leaves the block is reached.
2. Of parallel blocks what leaves is the sum of what enters and of what two modules made.
3. Projections are what gives, heads split, what the attention function is called with, or, by way of a narrow row, a
   part of it; attention's norm is what makes what they read of the stream.
4. The MLP is found from what it adds: see `find_mlp`.

Where blocks add one multiple of all that their modules make, that is found, too. Of a stream that is something else,
what is added and what stands between is left out, and why is said.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from traceformer.capture.proofs.block import Block, has_matrix, is_leaf, is_norm, near, norm_making, same
from traceformer.capture.proofs.find_gate import gated_projection, query_beside_gate
from traceformer.capture.proofs.find_mlp import experts_of, mlp_of
from traceformer.capture.proofs.find_steps import Step, first_step, last_step, made_in, steps_of
from traceformer.capture.proofs.watch import Attended, Call
from traceformer.capture.tensors import first_output
from traceformer.models.family import AttentionRow, Latent, MlpKind, StackRow, Tap, into
from traceformer.sites import Attention

__all__ = ["NO_FUNCTION", "found_in_block", "mlp_in_block"]

NO_FUNCTION = "its attention does not pass through transformers' attention function"


class Sums(NamedTuple):
    """Why what is added to the stream is not known, and of which sites; nothing where it is."""

    why: str = ""
    sites: tuple[str, ...] = ()


_ADDED = ("attn_out", "resid_mid", "mlp_out")


def found_in_block(block: Block, seen: Mapping[Attention, Attended]) -> tuple[StackRow, Sums]:
    """Returns the row of a stack as one block of it shows it, and what of its sums is not found.

    Where the blocks lie is not known here.
    """
    made, scale, sums = made_in(block), 1.0, Sums()
    kinds: tuple[Attention, ...] = ("self",) if block.memory is None else ("self", "cross")
    steps = steps_of(block, made, block.enters, len(kinds) + 2)
    parallel = None if steps is not None and len(steps) > len(kinds) else _parallel(block, made, seen)
    first, last = None, None
    if steps is None and parallel is None:
        scale, why = _multiples(block, made)
        steps = steps_of(block, made, block.enters, len(kinds) + 1, scale) if scale != 1 else None
        scale = 1.0 if steps is None else scale
        if steps is None and len(kinds) == 1:
            first, last = first_step(block, made), last_step(block, made)
        sums = Sums(why, _ADDED) if why and steps is None and (first or last) is None else sums
    if steps is not None and parallel is None and len(steps) == len(kinds) + 2:
        third = block.making(steps[-1].added)[0]
        why = f"a third sublayer, {block.tap_path(third)}, adds to the stream as well"
        steps, sums = steps[:-1], Sums(why, ("mlp_out",))
    is_alone = steps is not None and len(steps) == len(kinds) == len(seen) and parallel is None  # and no MLP behind it
    if steps is None or parallel is not None or not (is_alone or len(steps) == len(kinds) + 1):
        steps = []
    attentions: dict[Attention, AttentionRow] = {}
    stream: Tensor | None = block.enters
    for number, kind in enumerate(kinds):
        if first is not None:
            attentions[kind] = _attention_row(block, seen.get(kind), first.stream, first.added, None)
        elif steps:
            step = steps[number]
            attentions[kind] = _attention_row(block, seen.get(kind), step.stream, step.added, step.norm)
        else:
            attentions[kind] = _attention_row(block, seen.get(kind), stream, parallel and parallel[0], None)
            stream = None  # what cross-attention reads is not known
    mlp, kind_of_mlp = dict[str, Tap](), "plain"
    if last is not None:
        mlp, kind_of_mlp = mlp_of(block, last.stream, last.added, None)
        mlp = {"resid_mid": into(_first_reader(block, last.stream, mlp)), **mlp}
    elif first is not None:
        reader = _first_reader(block, first.then, {})
        normed = [call for call in block.reading(first.then) if block.tap_path(call) == reader and is_norm(call)]
        mlp = {"resid_mid": into(reader), **({"mlp_norm": Tap(reader)} if normed else {})}
    elif steps and not is_alone:
        mlp, kind_of_mlp = mlp_of(block, steps[-2].then, steps[-1].added, None)
        middle = _middle(block, steps[-2], mlp)
        mlp = {**({} if middle is None else {"resid_mid": middle}), **mlp}
    elif parallel is not None:
        mlp, kind_of_mlp = mlp_of(block, block.enters, parallel[1], attentions["self"].attn_norm)
    mlp = {**mlp, **experts_of(block)}
    behind = steps[-1].norm if steps and not is_alone else None
    mlp = {site: tap for site, tap in mlp.items() if site not in sums.sites}
    row = StackRow(
        "",
        "",
        attentions["self"],
        mlp,
        mlp_kind=kind_of_mlp,
        cross=attentions.get("cross"),
        post_norm=None if behind is None else block.tap_path(behind),
        parallel=parallel is not None,
        scale=scale,
    )
    return row, sums


def mlp_in_block(block: Block) -> tuple[dict[str, Tap], MlpKind]:
    """Returns the MLP of a block without attention: what it adds last, if that looks at each position by itself."""
    made = made_in(block)
    steps = steps_of(block, made, block.enters, 2)
    step = steps[-1] if steps else last_step(block, made)
    adding = [] if step is None else block.making(step.added)
    if adding and is_norm(adding[-1]):
        adding = block.making(block.rows(adding[-1].given))
    if step is None or not adding or not _is_by_position(adding[-1]):
        return {}, "plain"
    mlp, kind = mlp_of(block, step.stream, step.added, None)
    if same(step.stream, block.enters):
        return mlp, kind
    before = steps[-2] if steps else None
    middle = into(_first_reader(block, step.stream, mlp)) if before is None else _middle(block, before, mlp)
    return {**({} if middle is None else {"resid_mid": middle}), **mlp}, kind


def _is_by_position(call: Call) -> bool:
    """Whether a module of several makes the same of a position wherever it stands: nothing goes from one to another."""
    if call.given.dim() != 3 or is_leaf(call):
        return False
    try:
        with torch.inference_mode():
            made = first_output(call.module(call.given.flip(1)))
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # it takes more than that
        return False
    return made is not None and near(made.flip(1), call.made)


def _first_reader(block: Block, stream: Tensor, mlp: Mapping[str, Tap]) -> str:
    """The module at whose input the stream between attention and MLP is seen: the norm before the MLP, if it is one."""
    reading = sorted(block.reading(stream), key=lambda call: call.began)
    paths = [block.tap_path(call) for call in reading]
    norm = mlp.get("mlp_norm")
    return norm.path if norm is not None and norm.path in paths else paths[0]


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


def _multiples(block: Block, made: Sequence[Tensor]) -> tuple[float, str]:
    """By what a block multiplies all that it adds, as Granite's do; 1 and why not, where it adds other multiples.

    They are found by least squares over what two modules made; the very number is one that the block has.
    """
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
            stream, one, other = weights.tolist()
            scales = [own for own in vars(block.module).values() if isinstance(own, float)]
            scale = min(scales, key=lambda own: abs(own - one), default=one)
            if abs(stream - 1) < 1e-5 and abs(one - other) < 1e-5 and abs(one - scale) < 1e-5:
                return scale, ""
            return 1.0, f"what leaves a block{where} is {', '.join(said[:-1])} and {said[-1]}: no plain sum"
    return 1.0, ""


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
    kv_latent, reads = _kv_latent(block, seen)
    q_latent = None
    if kv_latent is not None and reads is not None:
        q, q_latent = _query_beside_latent(block, seen, reads)
    reads = q[1] if q is not None and reads is None else reads
    before = None if reads is None or stream is None else norm_making(block, stream, reads)
    if before is None and reads is not None and block.enters.dim() == 4:  # of several streams something else is normed
        before = next((call for call in block.making(reads) if is_norm(call)), None)
    gated = None if out is not None or q is None else gated_projection(block, seen, adding)
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
        gated=gated,
        q_latent=q_latent,
        kv_latent=kv_latent,
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
    separate = [call for call in block.calls if same(block.rows(call.made), v_rows)] or _before_norm(block, seen.value)
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
    beside = query_beside_gate(block, seen, others) if q_call is None else None
    if q_call is None and beside is None and k_call is not None:
        # With queries' and keys' own norms nothing but their order is left.
        q_call = _projection_of(block, seen.query, others, [])
    scaling = getattr(q_call and _owner(block, seen), "scaling", None)
    scales = (
        q_call is not None
        and isinstance(scaling, float)
        and abs(scaling - 1) > 1e-6
        and near(block.rows(q_call.made) * scaling, _merged(seen.query))
    )
    q: _Found | None = None if q_call is None else (Tap(block.tap_path(q_call)), block.rows(q_call.given))
    q = beside or q
    k: _Found | None = None if k_call is None else (Tap(block.tap_path(k_call)), block.rows(k_call.given))
    return q, k, (Tap(block.tap_path(v_call)), reads), scales


def _before_norm(block: Block, values: Tensor) -> list[Call]:
    """The projection of values that have a norm of their own; none where keys are made of the same one (Gemma 4)."""
    for norm in block.calls:
        if same(norm.made, values.transpose(1, 2)):
            reading = [call for call in block.calls if same(call.given, norm.given)]
            making = [call for call in block.calls if same(block.rows(call.made), norm.given.flatten(2))]
            return [call for call in making if has_matrix(call) and len(reading) == 1]
    return []


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


def _kv_latent(block: Block, seen: Attended) -> tuple[Latent | None, Tensor | None]:
    """The modules that make, head by head, keys' first features and values of one narrow row; and what they read."""
    heads, width = seen.value.shape[1], seen.value.shape[3]
    for up in block.calls:
        made = _without_axis(up.made)
        if made.dim() != 3 or made.shape[-1] % heads or made.shape[:2] != block.enters.shape[:2] or not has_matrix(up):
            continue
        by_head = made.unflatten(-1, (heads, -1)).transpose(1, 2)
        own = by_head.shape[-1] - width
        if own > 0 and same(by_head[..., own:], seen.value) and same(by_head[..., :own], seen.key[..., :own]):
            return _through_norm(block, up)
    return None, None


def _without_axis(tensor: Tensor) -> Tensor:
    """What has one head, without the axis of heads: a latent row lies so in a cache."""
    return tensor.squeeze(1) if tensor.dim() == 4 and tensor.shape[1] == 1 else tensor


def _through_norm(block: Block, up: Call) -> tuple[Latent | None, Tensor | None]:
    """The norm that a projection reads, the projection before that, and what this one reads."""
    given = _without_axis(up.given)
    for norm in block.making(given):
        narrow = block.rows(norm.given)
        for down in block.calls:
            made = block.rows(down.made)
            if has_matrix(down) and made.dim() == 3 and same(made[..., : narrow.shape[-1]], narrow):
                paths = (block.tap_path(call) for call in (down, norm, up))
                return Latent(*paths), block.rows(down.given)
    return None, None


def _query_beside_latent(block: Block, seen: Attended, reads: Tensor) -> tuple[_Found | None, Latent | None]:
    """The query projection that reads the same, or does so by way of a narrow row, and this."""
    out = _out_proj(block, seen)
    before = [call for call in block.calls if is_leaf(call) and (out is None or call.ended < out.began)]
    found = _projection_of(block, seen.query, [call for call in before if same(block.rows(call.given), reads)], [])
    if found is not None:
        return (Tap(block.tap_path(found)), reads), None
    for call in before:
        if has_matrix(call) and block.rows(call.made).shape == _merged(seen.query).shape:
            latent, given = _through_norm(block, call)
            if latent is not None and given is not None and same(given, reads):
                return (Tap(block.tap_path(call)), reads), latent
    return None, None


def _middle(block: Block, step: Step, mlp: Mapping[str, Tap]) -> Tap | None:
    """Where the stream is seen between attention and MLP: what a norm makes, or what the next module reads."""
    if step.norm is not None:
        return Tap(block.tap_path(step.norm))
    reading = block.reading(step.then)
    norm = mlp.get("mlp_norm")
    chosen = next((call for call in reading if norm is not None and block.tap_path(call) == norm.path), None)
    chosen = chosen or min(reading, key=lambda call: call.began, default=None)
    return None if chosen is None else into(block.tap_path(chosen))
