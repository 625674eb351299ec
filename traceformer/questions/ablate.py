"""Ablation: what a model loses without one of its heads, MLPs or layers, on a data set.

1. A part's output is replaced in all positions of a text: by zeros, by its mean over all tokens of the data set, or by
   what it is in another text, drawn at random.
2. The effect is the metric with the ablation less the metric without, text by text.
3. Texts of one length are read together, in groups that this process or workers measure, one after the other.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from traceformer.analysis.effects import Effects
from traceformer.capture.workers.engine import Engine, Ray, as_engine, check_apart
from traceformer.capture.workers.team import Team, team
from traceformer.errors import check_choice
from traceformer.models.loaded import LoadedModel
from traceformer.progress import OnStep, steps_watched
from traceformer.questions.ablation import Ablated, Ablation, AblationPlan, Asked, How, differences
from traceformer.questions.effects_folder import EffectsFolder
from traceformer.questions.sweeps import Kept
from traceformer.sites import Attention, Numbers
from traceformer.store.objects.path import disk_path
from traceformer.texts.load import Texts

if TYPE_CHECKING:
    from torch import Tensor

    from traceformer.capture.edits.started import Way
    from traceformer.capture.edits.touching import Place
    from traceformer.questions.ablation import Sums

__all__ = ["ablate", "ablate_on"]


def ablate(
    model: str | Path | LoadedModel,
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
    engine: Engine = None,
    progress: OnStep | None = None,
) -> Effects:
    """Returns what each head, MLP or layer of a model is worth on a data set.

        ablate(model, ["return the name of the file"]).to_frame().sort_values("effect").tail(3)
        ablate(model, "demo", site="mlp_out", how="zero")
        ablate(model, "demo", site=("attn_out", "mlp_out"))      # a layer: both that it adds to the stream
        ablate(model, "demo", together=["L2H3", "L3H1"], draws=5)

    Args:
        model: A model that predicts tokens, or the name or folder of one.
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
        engine: "ray" or `Ray(...)` has workers measure it, each of which loads the model and reads the texts.
        progress: Told how many of how many texts are done; a bar is shown in a terminal or notebook for None.

    Raises:
        UsageError: a text of fewer than two tokens, or one text to draw another from.
        SelectionError: no such site, axis, layer, head or position.
        NumericError: the metric is not finite.
        Unsupported: the model predicts no tokens, or has no such place.
        NotFound, Unreadable: there are no such texts.
        RunExists, ConfigurationChanged: `out` holds something else.
    """
    check_choice("how", how, get_args(How))
    asked = Asked(
        texts=texts,
        site=site,
        how=how,
        metric=metric,
        over=over,
        together=together,
        draws=draws,
        layers=layers,
        heads=heads,
        positions=positions,
        attention=attention,
        seed=seed,
        limit=limit,
        split=split,
        batch_size=batch_size,
        resume=resume,
    )
    workers = as_engine(engine)
    load = partial(_loaded, model if workers is None else check_apart(model))
    return ablate_on(workers, load, asked, out, progress)


def ablate_on(
    engine: Ray | None,
    load: Callable[[], LoadedModel],
    asked: Asked,
    out: str | Path | None = None,
    progress: OnStep | None = None,
) -> Effects:
    """Returns the effects that workers have measured together: with one thread each, byte for byte those of a process.

    Args:
        engine: Which workers; this process for None.
        load: Loads the model; called by each worker, so that it can be pickled.
        asked: What is ablated.
        out: A folder that all workers see; each writes its effects there, group by group.
        progress: Told how many of how many texts are done.

    Raises:
        TraceformerError: as `ablate` does; workers die again and again.
    """
    asked.check()
    place = None if out is None else disk_path(out).expanduser().absolute()
    with ExitStack() as during:
        everyone = during.enter_context(team(engine, partial(_ready, load, asked)))
        plan = everyone.one(_plan_of)
        folder = None
        if place is not None:
            made = EffectsFolder.create(place, plan.about, plan.axes, plan.names, plan.settings, resume=asked.resume)
            folder = during.enter_context(made)
        kept = Kept(len(plan.names), tuple(len(axis.numbers) for axis in plan.axes), differences, folder)
        told = during.enter_context(steps_watched("ablating", progress))
        groups, how_made = plan.groups.pending(kept.done), _HowMade()
        means = _means(everyone, plan) if asked.how == "mean" and groups else None
        measure = partial(_measured, means=means, folder=place)
        with closing(everyone.each(measure, groups)) as measured:
            for numbers, found in zip(groups, measured, strict=True):
                kept.take(numbers, found.metric, found.untouched)
                how_made = how_made.with_group(found)
                told(sum(kept.done), len(plan.names))
        return kept.finished(plan.about, plan.axes, plan.names, how_made)


@dataclass(frozen=True, slots=True)
class _HowMade:
    """How all groups were made together: in the way that does most work, of those that some were made in."""

    way: "Way" = "positions"
    compared: int = 0
    error: float = 0.0

    def with_group(self, group: Ablated) -> "_HowMade":
        from traceformer.capture.edits.started import WAYS

        ways = [*WAYS]
        way = group.way if ways.index(group.way) > ways.index(self.way) else self.way
        return _HowMade(way, self.compared + group.compared, max(self.error, group.error))


def _means(everyone: Team[Ablation], plan: AblationPlan) -> "Sums":
    """The mean of each place over all tokens of all texts."""
    sums: dict[Place, Tensor] = {}
    with closing(everyone.each(Ablation.sums, plan.groups.pending([False] * len(plan.names)))) as of_groups:
        for group in of_groups:
            sums = {place: sums[place] + own if place in sums else own for place, own in group.items()}
    return {place: total / plan.n_tokens for place, total in sums.items()}


def _loaded(model: Any) -> LoadedModel:
    from traceformer.models.load import as_loaded

    return as_loaded(model, with_head=True) if isinstance(model, str | Path) else model


def _ready(load: Callable[[], LoadedModel], asked: Asked) -> Ablation:
    return Ablation(load(), asked)


def _plan_of(ablation: Ablation) -> AblationPlan:
    return ablation.plan


def _measured(ablation: Ablation, numbers: Sequence[int], *, means: "Sums | None", folder: Path | None) -> Ablated:
    return ablation.measured(means, folder, numbers)
