"""Two runs over the same texts, compared: what they predict, their streams, and their heads."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from traceformer.analysis.comparison import PARTS, Align, Compared, Comparison
from traceformer.errors import (
    ConfigurationChanged,
    NotFound,
    NotRecorded,
    SelectionError,
    Unsupported,
    UsageError,
    check_choice,
    check_whole,
)
from traceformer.models.loaded import LoadedModel
from traceformer.models.outputs import output_site
from traceformer.progress import OnStep, steps_watched
from traceformer.questions.common_texts import called, common_texts
from traceformer.questions.compared_heads import HeadsAtHand, heads_at_hand
from traceformer.questions.compared_readouts import ModelAtHand, ReadoutsAtHand, readouts_at_hand
from traceformer.questions.compared_streams import StreamsAtHand, streams_at_hand
from traceformer.questions.recorded import Texts, check_asked, recorded
from traceformer.sites import Numbers, Stack, as_indices
from traceformer.store.run import Run

__all__ = ["compare"]

AtHand: TypeAlias = ReadoutsAtHand | StreamsAtHand | HeadsAtHand


def compare(
    run_a: Run | LoadedModel,
    run_b: Run | LoadedModel,
    texts: Texts | None = None,
    *,
    parts: str | Sequence[str] | None = None,
    site: str | None = None,
    side: Stack | None = None,
    layers: Numbers = None,
    heads: Numbers = None,
    all_pairs: bool = False,
    align: Align | None = None,
    limit: int | None = None,
    model_a: ModelAtHand = None,
    model_b: ModelAtHand = None,
    progress: OnStep | None = None,
) -> Comparison:
    """Returns how two runs over the same texts differ: what they predict, their streams, and where their heads look.

        compare(run, other).to_frame()
        compare(load_model("byte"), load_model("byte-sparse"), "demo").streams.cka

    Texts are those of the same id in both runs; their tokens must be the same, unless `align` says how others are
    matched. Compared are, as far as both runs hold them:

    - `readouts`: the Kullback-Leibler divergence of next-token predictions, both ways, in nats: of stored logits, or of
      the last layer's residual stream, read out with the model's own head. Both have the same vocabulary.
    - `streams`: linear CKA (without bias, and as it was first defined) and the orthogonal Procrustes distance of every
      layer of A and every layer of B. Widths may differ: the narrower is as if padded with zeros.
    - `heads`: total variation and Jensen-Shannon divergence of each head's attention from that of the head of the same
      layer and number, as a mean over queries; or total variation from every head of the other run.

    Rows in which a run holds NaN are left out, and counted as `unknown`.

    Args:
        run_a: A run, A, or a model that reads `texts`.
        run_b: Another, B.
        texts: What models read, which are then recorded in memory.
        parts: Which of the three; all that can be compared by default, and `left_out` says why others are not there.
        site: The activations that are compared as streams; by default the first that both hold of resid_post, hidden,
            resid_pre, resid_mid, final_norm, embed, or else any.
        side: `enc` or `dec`, where both runs have both stacks.
        layers: The models' numbers; all that are stored by default.
        heads: The models' numbers, likewise.
        all_pairs: Compare each head with every one of the other run.
        align: How other tokens are matched: `characters`, at the characters at which tokens of both end (attention is
            then that to the pieces of text between these); `start`, as far as both texts begin with the same tokens.
        limit: The first texts of those that both have.
        model_a: The model of A, if it is at hand, or where its folder is now, if it was moved.
        model_b: The model of B, likewise.
        progress: Told how many of how many steps are done; None for a bar in a terminal or a notebook.

    Raises:
        UsageError: the runs have no text in common, or other tokens; a run and a model.
        SelectionError: a layer or head is not stored.
        NotRecorded: what was asked for, or all of it, is not in both runs; what there is, is said.
        NotFound, ConfigurationChanged: a model that was asked for is not there, or another one.
        Unsupported: an encoder and a decoder, which have no tokens of one kind.
    """
    asked = _parts(parts)
    layers, heads = as_indices(layers), as_indices(heads)
    if align is not None:
        check_choice("align", align, ("characters", "start"))
    if limit is not None:
        check_whole("limit", limit, 1)
    first, second = _runs(run_a, run_b, texts)
    stack = _stack(first, second, side)
    common = common_texts(first, second, stack, align=align, limit=limit)
    models = tuple(of if isinstance(of, LoadedModel) else moved for of, moved in ((run_a, model_a), (run_b, model_b)))
    named = {
        "readouts": model_a is not None or model_b is not None,
        "streams": site is not None,
        "heads": heads is not None or all_pairs,
    }
    ready: dict[str, Callable[[], AtHand]] = {
        "readouts": lambda: readouts_at_hand(first, second, common, (models[0], models[1])),
        "streams": lambda: streams_at_hand(first, second, common, site=site, layers=layers),
        "heads": lambda: heads_at_hand(first, second, common, layers=layers, heads=heads, all_pairs=all_pairs),
    }
    at_hand: dict[str, AtHand] = {}
    left_out: dict[str, str] = {}
    for part in asked or PARTS:
        try:
            at_hand[part] = ready[part]()
        except (NotRecorded, NotFound, ConfigurationChanged, Unsupported, UsageError) as error:
            not_there = isinstance(error, SelectionError) and layers is not None
            if asked or named[part] or not_there:
                raise
            left_out[part] = "; ".join(filter(None, (error.message, error.why)))
    if not at_hand:
        why = "; ".join(f"{part}: {said}" for part, said in left_out.items())
        raise NotRecorded(
            "the runs hold nothing that can be compared", why=why, hint='record both with `capture="attn resid"`'
        )
    with steps_watched("comparing", progress) as told:
        found = _measured(at_hand, told)
    about = Compared(
        runs=common.names,
        models=(first.about.model_and_adapter, second.about.model_and_adapter),
        stack=stack,
        texts=len(common.each),
        tokens=common.tokens,
        align=align,
    )
    return Comparison(about, *(found.get(part) for part in PARTS), left_out=left_out)


def _parts(parts: str | Sequence[str] | None) -> tuple[str, ...]:
    """The parts that are asked for; none where nothing is said."""
    if parts is None:
        return ()
    named = re.split(r"[,\s]+", parts.strip()) if isinstance(parts, str) else list(parts)
    for part in named:
        check_choice("part", part, PARTS)
    if not named:
        raise UsageError("no part to compare", hint=" ".join(PARTS))
    return tuple(part for part in PARTS if part in named)


def _runs(run_a: Run | LoadedModel, run_b: Run | LoadedModel, texts: Texts | None) -> tuple[Run, Run]:
    """Both runs, those of models recorded now."""
    for of in (run_a, run_b):
        check_asked(of)
    if isinstance(run_a, Run) != isinstance(run_b, Run):
        hint = "record(MODEL, TEXTS) makes a run of the model, over the texts of the other"
        raise UsageError("a run and a model", why="they are compared over the same texts", hint=hint)
    return recorded(run_a, texts, _capture(run_a)), recorded(run_b, texts, _capture(run_b))


def _capture(of: Run | LoadedModel) -> str:
    """What is recorded of a model."""
    has_logits = isinstance(of, LoadedModel) and output_site(of.model) == "logits"
    return "attn resid_post" + " logits" * has_logits


def _stack(first: Run, second: Run, side: Stack | None) -> Stack:
    """Whose tokens are compared."""
    both: list[Stack] = [stack for stack in first.layout.stacks if stack in second.layout.stacks]
    if not both:
        kinds = {"enc": "an encoder", "dec": "a decoder"}
        said = (
            f"{name} is of {kinds[run.layout.stacks[0]]}"
            for name, run in zip(called(first, second), (first, second), strict=True)
        )
        why = "a token of an encoder has seen the whole text, one of a decoder what comes before it"
        raise Unsupported(", ".join(said), why=why, hint="two runs of one kind")
    if side is not None:
        check_choice("side", side, ("enc", "dec"))
    wanted: list[Stack] = [stack for stack in both if side in (None, stack)]
    if len(wanted) != 1:
        why = f"both runs have {' and '.join(both)}"
        raise SelectionError("which stack?" if wanted else f"`side={side!r}`", why=why, hint=f"`side={both[-1]!r}`")
    return wanted[0]


def _measured(at_hand: Mapping[str, AtHand], told: OnStep) -> dict[str, Any]:
    """What came of each part."""
    total, done = sum(part.steps for part in at_hand.values()), 0

    def step() -> None:
        nonlocal done
        done += 1
        told(done, total)

    return {name: part.measured(step) for name, part in at_hand.items()}
