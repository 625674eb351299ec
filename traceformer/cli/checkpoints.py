"""`traceformer extract --checkpoints`: the checkpoints of a training, a run each."""

import json as json_text
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from traceformer.cli.stopping import keeping
from traceformer.errors import UsageError
from traceformer.progress import LOADING, Totals, progress_shown

if TYPE_CHECKING:
    from traceformer.cli.choices import Loading, TextChoice
    from traceformer.sites import Selection
    from traceformer.store.place import Place

__all__ = ["record_checkpoints"]


def record_checkpoints(
    checkpoints: Sequence[str],
    model: str | None,
    loading: "Loading",
    texts: "TextChoice",
    selection: "Selection",
    place: "Place",
    *,
    batch_size: int | None,
    batch_tokens: int | Literal["auto"] | None,
    json: bool,
    refused: dict[str, Any],
) -> None:
    """Records them, and tells of the folder. `refused` are flags that do not go with several models, if given."""
    given = [flag for flag, value in refused.items() if value]
    if given:
        raise UsageError(f"--checkpoints with {given[0]}", why="the checkpoints are several models", hint="without it")
    if place.folder is None:
        raise UsageError("--checkpoints without --out_dir", why="there is a run for each of them", hint="--out_dir DIR")
    from traceformer.capture.checkpoints import extract_checkpoints
    from traceformer.models.checkpoints import find_checkpoints

    names = [part for name in checkpoints for part in ([name] if Path(name).exists() else name.split(",")) if part]
    found = find_checkpoints(names[0] if len(names) == 1 else names, model)
    with keeping("what was committed is kept"), progress_shown(Totals()) as progress:
        progress(LOADING)
        runs = extract_checkpoints(
            found,
            texts.read_listed(),
            selection,
            place,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            loading=loading.settings(),
            progress=progress,
        )
    if json:
        print(json_text.dumps(runs.to_json(), indent=2))
        return
    told = f"{len(runs)} runs, of steps {runs.steps[0]} to {runs.steps[-1]}"
    print(f"{told}; next: traceformer heads {runs.folder} --plot", file=sys.stderr)
    print(runs.folder)
