"""`traceformer patch`: which places of a model carry what tells two texts apart."""

import json as json_text
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from traceformer.cli.arguments import NAMED_FOLDER, Indices, count
from traceformer.cli.choices import SEVERAL, Loading, sites_in
from traceformer.cli.effects import save_figure, shown_effects, told_of
from traceformer.progress import steps_shown

__all__ = ["patch"]

_TEXTS = Group.create_ordered("The texts")
_WHAT = Group.create_ordered("What is patched")
_METRIC = Group.create_ordered("What is looked at")
_ESTIMATE = Group.create_ordered("Estimates in place of measurements")
_WHERE = Group.create_ordered("Where it goes")


def patch(
    model: Annotated[str, Parameter(name="MODEL")],
    /,
    *,
    clean: Annotated[str | None, Parameter(group=_TEXTS, metavar="TEXT")] = None,
    corrupt: Annotated[str | None, Parameter(group=_TEXTS, metavar="TEXT")] = None,
    answer: Annotated[str | None, Parameter(group=_TEXTS, metavar="TOKEN")] = None,
    wrong: Annotated[str | None, Parameter(group=_TEXTS, metavar="TOKEN")] = None,
    pairs: Annotated[str | None, Parameter(group=_TEXTS, metavar="FILE|NAME")] = None,
    align: Annotated[Literal["end"] | None, Parameter(group=_TEXTS)] = None,
    answer_token: Annotated[Literal["only", "first"], Parameter(group=_TEXTS)] = "only",
    site: Annotated[str, Parameter(group=_WHAT)] = "resid_pre",
    over: Annotated[tuple[str, ...], Parameter(group=_WHAT, metavar="AXIS..."), SEVERAL] = ("layer", "position"),
    how: Annotated[Literal["denoise", "noise"], Parameter(group=_WHAT)] = "denoise",
    layers: Annotated[Indices, Parameter(group=_WHAT)] = None,
    heads: Annotated[Indices, Parameter(group=_WHAT)] = None,
    positions: Annotated[Indices, Parameter(group=_WHAT)] = None,
    metric: Annotated[
        Literal["logit_difference", "log_prob", "probability", "loss", "kl"], Parameter(group=_METRIC)
    ] = "logit_difference",
    estimate: Annotated[bool, Parameter(group=_ESTIMATE)] = False,
    steps: Annotated[int, Parameter(group=_ESTIMATE), count("N")] = 1,
    exact_top: Annotated[int, Parameter(group=_ESTIMATE), count("K", least=0)] = 0,
    out_dir: Annotated[Path | None, Parameter(group=_WHERE), NAMED_FOLDER] = None,
    resume: Annotated[bool, Parameter(group=_WHERE)] = False,
    png: Annotated[Path | None, Parameter(group=_WHERE, metavar="FILE")] = None,
    json: Annotated[bool, Parameter(group=_WHERE)] = False,
    batch_size: Annotated[int, count("N")] = 16,
    loading: Loading | None = None,
) -> None:
    """Which places of a model carry what tells two texts apart.

    Activations of the clean text are put into a pass over the corrupt one, one place at a time, and the metric of each
    pass is told as a share: 0 leaves it where the corrupt text has it, 1 has it where the clean one has it.

    Example: `traceformer patch byte --pairs repeats --site z --over layer,head`

    Args:
        model: A Hugging Face model name, a folder that holds a model, or byte.
        clean: A text.
        corrupt: Another one of as many tokens.
        answer: What should follow the clean text, one token.
        wrong: What should not.
        pairs: In place of these: repeats, indirect_object, agreement, or a file with an object per line.
        align: Match positions of texts of unequal length from their ends.
        answer_token: Take the first token of an answer of several, or refuse it.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, q, k, v, attn_pattern.
        over: layer, head, position, query, key; what is not said is patched together.
        how: denoise puts the clean text's activations into the corrupt one, noise the other way round.
        layers: Which layers; all by default.
        heads: Which heads; all by default.
        positions: Which positions; all by default.
        metric: What is looked at.
        estimate: Estimate all effects from slopes, in one pass for each pair (attribution patching).
        steps: At how many points of the way to the other text's activations slopes are taken.
        exact_top: How many cells, those of the largest estimates, to measure as well.
        out_dir: A folder to write effects to, pair by pair.
        resume: Go on with an interrupted sweep of the same settings there.
        png: Save a map, in the format that the ending names.
        json: Print a JSON object.
        batch_size: Texts that share a pass.
    """
    from traceformer.questions.patch import patch as patched

    if png is not None:
        from traceformer.figures.style import check_format

        check_format(png)
    loaded = (loading or Loading()).load(model, with_head=True)
    with steps_shown("patching") as progress:
        found = patched(
            loaded,
            clean,
            corrupt,
            answer=answer,
            wrong=wrong,
            pairs=pairs,
            site=site,
            over=sites_in(over),
            metric=metric,
            how=how,
            layers=layers,
            heads=heads,
            positions=positions,
            align=align,
            answer_token=answer_token,
            estimate=estimate,
            steps=steps,
            exact_top=exact_top,
            batch_size=batch_size,
            out=out_dir,
            resume=resume,
            progress=progress,
        )
    made = save_figure(found, png)
    if json:
        print(json_text.dumps(found.to_json(), indent=2))
        return
    print(told_of(found), shown_effects(found), sep="\n\n")
    texts = f"--pairs {shlex.quote(pairs)}" if pairs is not None else "--pairs repeats"
    print(f"{made}next: traceformer patch {shlex.quote(model)} {texts} --site z --over layer,head", file=sys.stderr)
