"""Activation patching: what one place of a model knows of what tells two texts apart.

1. Activations of one text of a pair, the source, are kept; those of the other, the base, are replaced by them, one cell
   at a time: a layer and a position, a layer and a head, an edge of attention.
2. Denoising puts the clean text's into a pass over the corrupt one, and asks what is enough to bring the answer back.
   Noising puts the corrupt text's into a pass over the clean one, and asks what is needed for it.
3. The metric of each pass becomes a share of the difference between both texts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from traceformer.analysis.effects import Effects, Swept, normalised
from traceformer.errors import UsageError, check_choice, check_whole
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep, steps_watched
from traceformer.questions.effects_folder import EffectsFolder
from traceformer.questions.estimates import ReadGroup, estimate_effects
from traceformer.questions.sweeps import (
    Groups,
    Kept,
    SweepAxes,
    check_model,
    check_next_tokens,
    edits_at_work,
    key_of,
    most_at_once,
    positions_of_word,
    sweep_axes,
)
from traceformer.sites import SITES, ArrayKey, Numbers
from traceformer.store.files import canonical, sha256
from traceformer.texts.contrasts import Contrast, Contrasts, load_contrasts, read_contrast

if TYPE_CHECKING:
    from torch import Tensor

    from traceformer.capture.edits.pairing import PairOfIds
    from traceformer.capture.edits.started import Passes
    from traceformer.capture.edits.sweeping import Sweeper, Values

__all__ = ["How", "pairs_of", "patch"]

How: TypeAlias = Literal["denoise", "noise"]


def patch(
    model: LoadedModel,
    clean: str | Sequence[int] | None = None,
    corrupt: str | Sequence[int] | None = None,
    *,
    answer: str | int | None = None,
    wrong: str | int | None = None,
    pairs: Contrasts | None = None,
    site: str = "resid_pre",
    over: Sequence[str] = ("layer", "position"),
    metric: "str | Callable[[Any], Any]" = "logit_difference",
    how: How = "denoise",
    layers: Numbers = None,
    heads: Numbers = None,
    positions: Numbers = None,
    attention: Literal["self", "cross"] = "self",
    metric_position: int = -1,
    align: Literal["end"] | None = None,
    answer_token: Literal["only", "first"] = "only",
    estimate: bool = False,
    steps: int = 1,
    exact_top: int = 0,
    batch_size: int = 16,
    out: str | Path | None = None,
    resume: bool = False,
    progress: OnStep | None = None,
) -> Effects:
    """Returns what patching each place of a pass with another text's activations does to the answer.

        patch(model, "abcdefgabc", "abcdefgxyz", answer="d", wrong="e").to_frame()
        patch(model, pairs="repeats", site="z", over=("layer", "head"))
        patch(model, pairs="repeats", site="z", over=("layer", "head"), estimate=True, exact_top=10).agreement

    An effect of 0 leaves the metric where the corrupt text has it; 1 has it where the clean text has it.

    Args:
        model: A model that predicts tokens.
        clean: A text, or token ids.
        corrupt: Another one of as many tokens.
        answer: What should follow the clean text: a text of one token, or a token id.
        wrong: What should not.
        pairs: In place of these four: a set (`indirect_object`, `agreement`, `repeats`), a file with an object per
            line, or a list of objects with `clean`, `corrupt`, `answer`, `wrong`.
        site: What is patched: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `z`, `q`, `k`, `v`,
            `attn_pattern`, or any other that has layers.
        over: The axes that cells run over: `layer`, and of the site's own `head`, `position`, `query`, `key`. What is
            on another axis is patched together.
        metric: `logit_difference`, `log_prob`, `probability`, `loss`, `kl`, or a function of the logits (text,
            position, vocabulary) that returns a number per text.
        how: `denoise` patches the corrupt text with the clean one's activations, `noise` the other way round.
        layers: Which layers; all by default.
        heads: Which heads, of k and v those of keys; all by default.
        positions: Which positions, or queries, negative from the end; all by default. Any text but a list of numbers is
            a word that every clean text has once (`"Paris"`), or `"last"`: the tokens that contain it are meant, and
            those of the corrupt text at the same positions.
        attention: `cross` for a decoder's attention to the encoder.
        metric_position: Where the metric looks; the last token by default.
        align: `end` matches positions of texts of unequal length from their ends; by default these are refused.
        answer_token: `first` takes the first token of an answer of several; by default these are refused.
        estimate: Estimate all effects from slopes, in one pass for each pair, in place of measuring each
            (attribution patching).
        steps: Of an estimate: at how many points of the way to the other text's activations slopes are taken; beyond
            one they are taken layer by layer.
        exact_top: Of an estimate: how many cells, those that change most by it, to measure as well.
        batch_size: Whole texts that share a pass, or as many tokens in parts of texts.
        out: A folder to write effects to, pair by pair.
        resume: Go on with an interrupted sweep of the same settings there.
        progress: Told how many of how many pairs are done; a bar is shown in a terminal or notebook for None.

    Raises:
        UsageError: texts of unequal length, an answer of several tokens, or a metric that is the same of both texts; an
            estimate of several layers together, or from a metric without a gradient.
        SelectionError: no such site, axis, layer, head or position.
        NumericError: the metric is not finite.
        Unsupported: the model predicts no tokens, or has no such place.
        NotFound, Unreadable: there are no such pairs.
        RunExists, ConfigurationChanged: `out` holds something else.
    """
    from traceformer.capture.edits.metrics import metric_named
    from traceformer.capture.edits.pairing import read_pairs
    from traceformer.capture.edits.started import Passes
    from traceformer.capture.edits.sweeping import Sweeper

    check_model(model, batch_size)
    check_choice("how", how, ("denoise", "noise"))
    _check_estimate(estimate, steps, exact_top)
    chosen = metric_named(metric, metric_position)
    check_next_tokens(model, chosen.needs)
    key = key_of(model, site, attention)
    passes = Passes(model)
    read = read_pairs(
        model, pairs_of(clean, corrupt, answer, wrong, pairs), chosen, align=align, answer_token=answer_token
    )
    _check_lengths(read, key)
    places = _places_of_word(model, positions, read, from_end=align is not None)
    bases = [pair.corrupt if how == "denoise" else pair.clean for pair in read]
    longest = max(map(len, bases))
    axes = sweep_axes(
        model,
        key,
        over,
        layers=layers,
        heads=heads,
        positions=places[0] if places else positions,
        longest=longest,
        from_end=align is not None,
    )
    narrowed = [axes.at(own) for own in places] if places else [axes] * len(read)
    about = Swept(
        verb="patch",
        model=model.source_and_adapter,
        digest=model.digest,
        sites=(str(key),),
        metric=chosen.name,
        how=how,
        position=chosen.position,
        align=align,
    )
    shown, names = axes.axes([base.tokens for base in bases]), [pair.name for pair in read]
    sweeper = Sweeper(passes, chosen, batch_size)
    most = most_at_once(model, passes, longest, batch_size, all_logits=chosen.position is None)
    alike = [
        (len(pair.corrupt), len(pair.clean), *own) for pair, own in zip(read, places or [()] * len(read), strict=True)
    ]
    groups = Groups(alike, most)
    settings = {"texts": _digest(read), "narrowed": axes.narrowed, "answer_token": answer_token}
    settings |= {"positions": positions} if places else {}
    settings |= {"steps": steps, "exact_top": exact_top} if estimate else {}
    settings |= edits_at_work(model, metric, resume=resume)
    arrays = ("estimate", "exact") if estimate else ("metric", "effect")

    def group_of(numbers: Sequence[int]) -> ReadGroup:
        return _read_group(model, [read[number] for number in numbers], key, narrowed[numbers[0]], how, sweeper)

    with ExitStack() as during:
        folder = None
        if out is not None:
            place = Path(out).expanduser()
            made = EffectsFolder.create(place, about, shown, names, settings, resume=resume, arrays=arrays)
            folder = during.enter_context(made)
        told = during.enter_context(steps_watched("patching", progress))
        during.enter_context(passes.evaluating())
        if estimate:
            every = groups.pending([False] * len(read))
            found = estimate_effects(
                group_of, every, shown, names, sweeper, about,
                steps=steps, exact_top=exact_top, folder=folder, told=told,
            )  # fmt: skip
        else:
            kept = Kept(len(read), axes.shape, normalised, folder)
            for numbers in groups.pending(kept.done):
                group = group_of(numbers)
                measured = sweeper.sweep(group.base, group.grid, group.values, group.goal)
                kept.put(numbers, measured.metric.numpy(), *group.ends(measured))
                told(sum(kept.done), len(read))
            found = kept.finished(about, shown, names, sweeper)
        _check_told_apart(found)
    return found


def pairs_of(
    clean: str | Sequence[int] | None,
    corrupt: str | Sequence[int] | None,
    answer: str | int | None,
    wrong: str | int | None,
    pairs: Contrasts | None,
) -> list[Contrast]:
    """Returns the pairs that are meant.

    Raises:
        UsageError: both, or neither, of texts and pairs.
    """
    one = {"clean": clean, "corrupt": corrupt, "answer": answer, "wrong": wrong}
    if pairs is not None:
        given = [name for name, value in one.items() if value is not None]
        if given:
            raise UsageError(f"`pairs` and `{given[0]}`", why="pairs have texts and answers of their own")
        return load_contrasts(pairs)
    if clean is None or corrupt is None:
        missing = "clean" if clean is None else "corrupt"
        raise UsageError(f"no `{missing}` text", hint="`clean` and `corrupt`, or `pairs` for several")
    return [read_contrast(one, "the pair", "0")]


def _places_of_word(
    model: LoadedModel, positions: Numbers, read: Sequence["PairOfIds"], *, from_end: bool
) -> list[tuple[int, ...]] | None:
    """Where the clean texts have the word that `positions` is; None where it is none.

    Raises:
        SelectionError: one of them does not have it once.
        UsageError: there is no tokenizer to find it with.
    """
    if not isinstance(positions, str) or re.fullmatch(r"[-\d,\s]*", positions):
        return None
    if positions == "last":
        return [(-1,)] * len(read)
    found = [positions_of_word(model, positions, pair.clean.ids) for pair in read]
    if from_end:
        found = [tuple(n - len(pair.clean) for n in own) for own, pair in zip(found, read, strict=True)]
    return found


def _check_lengths(read: Sequence["PairOfIds"], key: ArrayKey) -> None:
    unequal = [pair for pair in read if len(pair.clean) != len(pair.corrupt)]
    if unequal and SITES[key.site].is_matrix:
        why = f"the texts of pair {unequal[0].name} are of unequal length"
        raise UsageError(f"patching {key.site}", why=why, hint="texts of equal length")


def _digest(read: Sequence["PairOfIds"]) -> str:
    rows = [[list(pair.clean.ids), list(pair.corrupt.ids), pair.answer, pair.wrong] for pair in read]
    return sha256(canonical(rows).encode())


def _check_estimate(estimate: bool, steps: int, exact_top: int) -> None:
    """Refuses what only an estimate has, and numbers that make no sense.

    Raises:
        UsageError: it is so.
    """
    check_whole("steps", steps, 1)
    check_whole("exact_top", exact_top, 0)
    if not estimate and (steps != 1 or exact_top):
        name = f"exact_top={exact_top}" if exact_top else f"steps={steps}"
        raise UsageError(f"`{name}` without an estimate", why="every cell is measured", hint="`estimate=True`")


def _read_group(
    model: LoadedModel,
    group: Sequence["PairOfIds"],
    key: ArrayKey,
    axes: SweepAxes,
    how: How,
    sweeper: "Sweeper",
) -> ReadGroup:
    """Pairs of the same two lengths, and what their texts are patched with."""
    import torch

    from traceformer.capture.edits.metrics import goal_of
    from traceformer.capture.edits.sweeping import grid_of

    passes = sweeper.passes
    clean = torch.tensor([pair.clean.ids for pair in group], device=passes.device)
    corrupt = torch.tensor([pair.corrupt.ids for pair in group], device=passes.device)
    base, source = (corrupt, clean) if how == "denoise" else (clean, corrupt)
    n_base, n_source = base.shape[1], source.shape[1]
    values, source_logits = _values_of(passes, source, key, axes.layers, n_base, sweeper.at(n_source))
    clean_logits = source_logits if how == "denoise" else passes.whole(clean, sweeper.at(n_base))
    goal = goal_of(
        sweeper.metric,
        answer=[pair.answer for pair in group],
        wrong=[pair.wrong for pair in group],
        ids=clean,
        clean_logits=clean_logits,
    )
    matched = range(max(0, n_base - n_source), n_base)
    grid = grid_of(axes.over, axes.chosen, axes.narrowed, matched, causal=model.dims.arch == "dec")
    of_source = sweeper.metric.of(source_logits, goal).cpu().double().numpy()
    return ReadGroup(base, grid, values, goal, of_source, is_clean=how == "denoise")


def _values_of(
    passes: "Passes", source: "Tensor", key: ArrayKey, layers: Sequence[int], length: int, at: int | None
) -> "tuple[Values, Tensor]":
    """The activations of the source texts, as the base texts' positions have them, and their logits.

    Both are matched at their ends: where the base is longer, its first positions have none, and are not patched.
    """
    import torch

    from traceformer.capture.edits.sweeping import Values

    found: dict[tuple[ArrayKey, int | None], Tensor] = {}

    def keep(layer: int) -> "Callable[[Tensor], Tensor]":
        def touch(tensor: "Tensor") -> "Tensor":
            found[key, layer] = tensor.clone()
            return tensor

        return touch

    touches: Mapping[Any, Any] = {(key, layer): keep(layer) for layer in sorted(set(layers))}
    logits = passes.whole(source, at, touches)
    more = length - source.shape[1]
    if more:
        axis = 1 if SITES[key.site].axes[1] == "position" else 2
        for place, tensor in found.items():
            if more < 0:
                found[place] = tensor.narrow(axis, -more, length)
            else:
                shape = [*tensor.shape]
                shape[axis] = more
                found[place] = torch.cat([tensor.new_zeros(shape), tensor], dim=axis)
    return Values((key,), found), logits


def _check_told_apart(found: Effects) -> None:
    """Refuses effects that are shares of nothing; of single pairs it warns.

    Raises:
        UsageError: the metric is the same of both texts, in all pairs.
    """
    import warnings

    there = np.isfinite(normalised(found.corrupt, found.clean, found.corrupt))
    if not there.any():
        raise UsageError(
            f"{found.about.metric} is {found.clean[0]:.6g} of both texts",
            why="an effect is a share of their difference",
            hint="texts or an answer that the model tells apart",
        )
    if not there.all():
        first = found.pairs[int(np.flatnonzero(~there)[0])]
        count = int((~there).sum())
        told = f"{count} pairs are left out, {first} among them: the metric is the same of both texts"
        warnings.warn(told, stacklevel=3)
