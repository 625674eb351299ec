"""Ablation: what a model loses without one of its heads, MLPs or layers, on a data set.

1. A part's output is replaced in all positions of a text: by zeros, by its mean over all tokens of the data set, or by
   what it is in another text, drawn at random.
2. The effect is the metric with the ablation less the metric without, text by text.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from traceformer.analysis.effects import Axis, Effects, Swept
from traceformer.errors import SelectionError, UsageError, check_choice, check_whole
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep, steps_watched
from traceformer.questions.effects_folder import EffectsFolder
from traceformer.questions.sweeps import (
    Groups,
    Kept,
    SweepAxes,
    check_model,
    check_next_tokens,
    edits_at_work,
    key_of,
    most_at_once,
    sweep_axes,
)
from traceformer.shapes import Float64
from traceformer.sites import SITES, ArrayKey, Attention, Numbers, as_head
from traceformer.store.files import canonical, sha256
from traceformer.texts.load import Texts

if TYPE_CHECKING:
    from torch import Tensor

    from traceformer.capture.edits.pairing import ReadText
    from traceformer.capture.edits.started import Passes
    from traceformer.capture.edits.sweeping import Sweeper, Values
    from traceformer.capture.edits.touching import Place

__all__ = ["ablate"]

How: TypeAlias = Literal["zero", "mean", "resample"]


def ablate(
    model: LoadedModel,
    texts: Texts,
    *,
    site: str | Sequence[str] = "z",
    how: How = "mean",
    metric: "str | Callable[[Any], Any]" = "loss",
    over: Sequence[str] | None = None,
    together: Sequence[str] = (),
    draws: int = 0,
    layers: Numbers = None,
    heads: Numbers = None,
    positions: Numbers = None,
    attention: Attention = "self",
    seed: int = 0,
    limit: int | None = None,
    split: str | None = None,
    batch_size: int = 16,
    out: str | Path | None = None,
    resume: bool = False,
    progress: OnStep | None = None,
) -> Effects:
    """Returns what each head, MLP or layer of a model is worth on a data set.

        ablate(model, ["return the name of the file"]).to_frame().sort_values("effect").tail(3)
        ablate(model, "demo", site="mlp_out", how="zero")
        ablate(model, "demo", site=("attn_out", "mlp_out"))      # a layer: both that it adds to the stream
        ablate(model, "demo", together=["L2H3", "L3H1"], draws=5)

    Args:
        model: A model that predicts tokens.
        texts: A list of texts or of token ids, a data set's name, or a file.
        site: What is ablated: `z` for heads, `attn_out`, `mlp_out`, or several of these at once.
        how: `zero`; `mean`, over all tokens of all texts; `resample`, what it is in another text, whose positions are
            counted round and round where it is shorter.
        metric: `loss`, of the next tokens; or a function of the logits (text, position, vocabulary) that returns a
            number per text.
        over: The axes that cells run over; layers and heads by default, or layers where there are no heads.
        together: In the place of axes heads that are ablated all at once, such as `L2H3`.
        draws: How many times as many other heads, drawn at random, are ablated at once to compare with.
        layers: Which layers; all by default.
        heads: Which heads; all by default.
        positions: Which positions, negative from the end; all by default.
        attention: `cross` for a decoder's attention to the encoder.
        seed: Of the texts, or heads, that are drawn.
        limit: The first so many texts.
        split: Which part of the data set.
        batch_size: Texts that share a pass.
        out: A folder to write effects to, text by text.
        resume: Go on with an interrupted sweep of the same settings there.
        progress: Told how many of how many texts are done; a bar is shown in a terminal or notebook for None.

    Raises:
        UsageError: a text of fewer than two tokens, or one text to draw another from.
        SelectionError: no such site, axis, layer, head or position.
        NumericError: the metric is not finite.
        Unsupported: the model predicts no tokens, or has no such place.
        NotFound, Unreadable: there are no such texts.
        RunExists, ConfigurationChanged: `out` holds something else.
    """
    from traceformer.capture.edits.metrics import metric_named
    from traceformer.capture.edits.started import Passes
    from traceformer.capture.edits.sweeping import Sweeper

    check_model(model, batch_size)
    check_choice("how", how, ("zero", "mean", "resample"))
    chosen = metric_named(metric)
    check_next_tokens(model, chosen.needs)
    check_whole("draws", draws, 0)
    check_whole("seed", seed, 0)
    together = (together,) if isinstance(together, str) else tuple(dict.fromkeys(together))
    if not callable(metric) and metric != "loss":
        raise UsageError(f"the metric {metric} of an ablation", why="it needs an answer", hint="loss, or a function")
    keys = _keys_of(model, site, attention)
    passes = Passes(model)
    read, names = _read(model, texts, limit, split)
    if how == "resample" and len(read) == 1:
        raise UsageError('`how="resample"` of one text', why="there is no other one to draw", hint='`how="mean"`')
    if over is None:
        over = ("layer", "head") if SITES[keys[0].site].axes[1] != "position" else ("layer",)
    longest = max(map(len, read))
    axes = sweep_axes(model, keys[0], over, layers=layers, heads=heads, positions=positions, longest=longest)
    if together and not (layers is heads is positions is None):
        raise UsageError("`together` and layers, heads or positions", why="it says which heads, in all positions")
    heads_of = _groups(model, keys[0], together, draws, seed)
    about = Swept(
        verb="ablate",
        model=model.source_and_adapter,
        digest=model.digest,
        sites=tuple(map(str, keys)),
        metric=chosen.name,
        how=how,
        position=chosen.position,
        seed=seed if how == "resample" or draws else None,
    )
    shown = axes.axes([text.tokens for text in read])
    if heads_of:
        shown = (Axis("group", tuple(range(len(heads_of))), tuple(heads_of)),)
    sweeper = Sweeper(passes, chosen, batch_size)
    most = most_at_once(model, passes, longest, batch_size, all_logits=True)
    donors = _donors(len(read), seed) if how == "resample" else []
    digest = sha256(canonical([list(text.ids) for text in read]).encode())
    settings = {"texts": digest, "narrowed": axes.narrowed, **edits_at_work(model, metric, resume=resume)}
    with ExitStack() as during:
        folder = None
        if out is not None:
            place = Path(out).expanduser()
            folder = during.enter_context(EffectsFolder.create(place, about, shown, names, settings, resume=resume))
        kept = Kept(len(read), tuple(len(axis.numbers) for axis in shown), _differences, folder)
        parts = Groups([(len(text),) for text in read], most).pending(kept.done)
        told = during.enter_context(steps_watched("ablating", progress))
        during.enter_context(passes.evaluating())
        means = _means(passes, read, keys, axes, most) if how == "mean" and parts else {}
        for numbers in parts:
            others = [read[donors[number]] for number in numbers] if donors else []
            values = _values(passes, [read[number] for number in numbers], others, means, keys, axes)
            _ablate_group(model, [read[number] for number in numbers], values, axes, heads_of, sweeper, kept, numbers)
            told(sum(kept.done), len(read))
        return kept.finished(about, shown, names, sweeper)


def _keys_of(model: LoadedModel, site: str | Sequence[str], attention: Attention) -> tuple[ArrayKey, ...]:
    """The arrays that are ablated at once.

    Raises:
        SelectionError: none, or some with heads and some without.
    """
    sites = (site,) if isinstance(site, str) else tuple(dict.fromkeys(site))
    keys = tuple(key_of(model, each, attention) for each in sites)
    if not keys or len({SITES[key.site].axes[1:-1] for key in keys}) > 1:
        raise SelectionError(
            f"ablating {' and '.join(sites) or 'nothing'}", why="what is ablated at once has the same axes"
        )
    if SITES[keys[0].site].is_matrix:
        raise SelectionError(f"ablating {sites[0]}", why="rows of it would no longer sum to 1", hint='`site="z"`')
    return keys


def _groups(
    model: LoadedModel, key: ArrayKey, together: Sequence[str], draws: int, seed: int
) -> dict[str, list[tuple[int, int]]]:
    """The heads that are ablated at once, and as many others for each draw; each group by its heads' names.

    Raises:
        SelectionError: no such head, or not enough others to draw from.
        UsageError: draws, and no heads.
    """
    if not together:
        if draws:
            raise UsageError("`draws` without `together`", why="how many heads to draw is not said")
        return {}
    if "head" not in SITES[key.site].axes:
        raise SelectionError(f"heads of {key.site}", why="it has none, or shares them", hint='`site="z"`')
    dims = model.dims.stacks[key.stack]
    every = [(layer, head) for layer in dims.attention_layers for head in range(dims.n_heads)]
    asked: list[tuple[int, int]] = []
    for name in together:
        head = as_head(name)
        if head not in every:
            why = f"{model.name} has L0H0 to L{dims.n_layers - 1}H{dims.n_heads - 1}"
            raise SelectionError(f"no head {name!r}", why=why, hint="such as L0H0")
        asked.append(head)
    others = [head for head in every if head not in asked]
    if draws and len(others) < len(asked):
        raise SelectionError(f"{len(asked)} other heads", why=f"there are {len(others)}", hint="fewer heads")
    random = np.random.default_rng(seed)
    drawn = [[others[i] for i in sorted(random.permutation(len(others))[: len(asked)])] for _ in range(draws)]
    # Those that are drawn twice are one group.
    return {" ".join(f"L{layer}H{head}" for layer, head in group): group for group in (asked, *drawn)}


def _read(model: LoadedModel, texts: Texts, limit: int | None, split: str | None) -> "tuple[list[ReadText], list[str]]":
    """The texts as the model reads them, and their names.

    Raises:
        UsageError: one has no next token.
    """
    from traceformer.capture.edits.pairing import read_text
    from traceformer.capture.encoding import Encoder
    from traceformer.texts.cells import Chat
    from traceformer.texts.load import load_texts

    source = load_texts(texts, limit=limit, split=split)
    encoder = Encoder(model, "auto", 64)
    read: list[ReadText] = []
    names: list[str] = []
    for example in source.examples:
        if example.kind is Chat:
            raise UsageError("ablating on conversations", hint="texts, or token ids")
        read.append(read_text(encoder, example.reading))
        names.append(example.example_id)
        if len(read[-1]) < 2:
            raise UsageError(f"the text {example.example_id} is one token", why="nothing comes next in it")
    return read, names


def _differences(
    metric: Float64[np.ndarray, "text *cell"], untouched: Float64[np.ndarray, "text"], _: Float64[np.ndarray, "text"]
) -> Float64[np.ndarray, "text *cell"]:
    return metric - untouched.reshape(-1, *[1] * (metric.ndim - 1))


def _donors(count: int, seed: int) -> list[int]:
    """Another text for each text, drawn at random."""
    random = np.random.default_rng(seed)
    return [int((number + random.integers(1, count)) % count) for number in range(count)]


def _activations(
    passes: "Passes", ids: "Tensor", keys: Sequence[ArrayKey], layers: Sequence[int]
) -> "dict[Place, Tensor]":
    """What is at these places in a pass over texts of one length."""
    found: dict[Place, Tensor] = {}

    def keep(place: "Place") -> "Callable[[Tensor], Tensor]":
        def touch(tensor: "Tensor") -> "Tensor":
            found[place] = tensor.clone()
            return tensor

        return touch

    passes.whole(ids, 0, {(key, layer): keep((key, layer)) for key in keys for layer in layers})
    return found


def _means(
    passes: "Passes", read: "Sequence[ReadText]", keys: Sequence[ArrayKey], axes: SweepAxes, most: int
) -> "dict[Place, Tensor]":
    """The mean of each place over all tokens of all texts: (1, [head,] 1, width)."""
    import torch

    from traceformer.models.precision import wide

    sums: dict[Place, Tensor] = {}
    for numbers in Groups([(len(text),) for text in read], most).pending([False] * len(read)):
        ids = torch.tensor([read[number].ids for number in numbers], device=passes.device)
        for place, tensor in _activations(passes, ids, keys, sorted(set(axes.layers))).items():
            own = wide(tensor).sum(dim=(0, -2), keepdim=True)
            sums[place] = sums[place] + own if place in sums else own
    n_tokens = sum(map(len, read))
    return {place: (total / n_tokens).to(passes.dtype).to(passes.device) for place, total in sums.items()}


def _values(
    passes: "Passes",
    read: "Sequence[ReadText]",
    donors: "Sequence[ReadText]",
    means: "dict[Place, Tensor]",
    keys: Sequence[ArrayKey],
    axes: SweepAxes,
) -> "Values":
    """What takes the place of what is ablated: the means, what it is in donors, or zeros where there are neither."""
    import torch

    from traceformer.capture.edits.sweeping import Values

    if means:
        return Values(tuple(keys), means)
    layers, length = sorted(set(axes.layers)), len(read[0])
    if not donors:
        ids = torch.tensor([read[0].ids[:1]], device=passes.device)
        found = _activations(passes, ids, keys, layers)
        return Values(tuple(keys), {place: torch.zeros_like(tensor) for place, tensor in found.items()})
    rows: list[dict[Place, Tensor]] = []
    for donor in donors:
        ids = torch.tensor([donor.ids], device=passes.device)
        around = torch.arange(length, device=passes.device) % len(donor)
        found = _activations(passes, ids, keys, layers)
        rows.append({place: tensor.index_select(-2, around) for place, tensor in found.items()})
    return Values(tuple(keys), {place: torch.cat([row[place] for row in rows]) for place in rows[0]})


def _ablate_group(
    model: LoadedModel,
    group: "Sequence[ReadText]",
    values: "Values",
    axes: SweepAxes,
    groups: Mapping[str, Sequence[tuple[int, int]]],
    sweeper: "Sweeper",
    kept: Kept,
    numbers: Sequence[int],
) -> None:
    """Ablates in texts of one length."""
    import torch

    from traceformer.capture.edits.metrics import Goal
    from traceformer.capture.edits.sweeping import grid_of, grid_of_groups

    ids = torch.tensor([text.ids for text in group], device=sweeper.passes.device)
    if groups:
        grid = grid_of_groups([*groups.values()])
    else:
        positions = range(ids.shape[1])
        grid = grid_of(axes.over, axes.chosen, axes.narrowed, positions, causal=model.dims.arch == "dec")
    measured = sweeper.sweep(ids, grid, values, Goal(targets=ids[:, 1:]))
    kept.put(numbers, measured.metric.numpy(), measured.untouched.numpy())
