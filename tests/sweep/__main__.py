"""Tries every text model type of the installed transformers: `python -m tests.sweep [FAMILY ...]`.

One process a family. What became of each is a file in the folder given by `--out`; `--resume` leaves out those that
have one. A sweep of all families rewrites `tests/sweep/results.json`, and docs/families.md from it. The exit code is 1
if any number was wrong, or any error was none of Traceformer's.
"""

import argparse
import collections
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", NO_COLOR="1"
)

import torch
import transformers

from tests.sweep.children import in_children
from tests.sweep.outcomes import OUTCOMES, WRONG, Result
from tests.sweep.page import write
from tests.sweep.trial import try_family
from traceformer.models.shrunk import text_types

SECONDS = 100
MEMORY = 6 << 30


def sweep(families: list[str], out: Path, *, jobs: int, resume: bool) -> list[Result]:
    """Returns what became of each family, telling as it goes."""
    out.mkdir(parents=True, exist_ok=True)
    done = {family for family in families if resume and (out / f"{family}.json").is_file()}
    left = [family for family in families if family not in done]
    _prepare()

    def work(family: str) -> None:
        with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
            result = try_family(family, Path(folder) / f"tiny-{family}")
        (out / f"{family}.json").write_text(result.to_json(), encoding="utf-8")

    for family in left:
        (out / f"{family}.json").unlink(missing_ok=True)
    children = in_children(left, work, out, at_once=jobs, seconds=SECONDS, memory=MEMORY)
    for number, ended in enumerate(children, start=1):
        path = out / f"{ended.job}.json"
        if not path.is_file():
            stage = _last_stage(out / f"{ended.job}.log")
            outcome = "CANNOT BUILD" if stage == "build" else "TRACEBACK"
            result = Result(family=ended.job, outcome=outcome, why=f"{stage}: {ended.trouble}", seconds=ended.seconds)
            path.write_text(result.to_json(), encoding="utf-8")
        result = Result.from_json(path.read_text(encoding="utf-8"))
        print(f"{number:>3}/{len(left)} {result.family:<28} {result.outcome:<13} {result.why[:110]}", flush=True)
    return [Result.from_json((out / f"{family}.json").read_text(encoding="utf-8")) for family in families]


def _prepare() -> None:
    """Imports, once for all children, what each of them would."""
    for module in ("llama.modeling_llama", "mixtral.modeling_mixtral", "t5.modeling_t5"):
        import_module(f"transformers.models.{module}")
    import_module("traceformer.capture.proofs.probe")
    from tests.tiny_folders import tokenizer_json

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for ends_with_eos in (True, False):
        tokenizer_json(ends_with_eos)


def _last_stage(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    stages = [line.removeprefix("stage: ") for line in lines if line.startswith("stage: ")]
    return stages[-1] if stages else "build"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="all by default")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--out", type=Path, default=Path("sweep-results"), help="the folder of results and logs")
    parser.add_argument("--resume", action="store_true", help="leave out families that have a result there")
    given = parser.parse_args()
    unknown = sorted(set(given.families) - set(text_types()))
    if unknown:
        parser.error(f"no text model types of transformers {transformers.__version__}: {', '.join(unknown)}")
    began = time.monotonic()
    results = sweep(given.families or [*text_types()], given.out, jobs=given.jobs, resume=given.resume)
    counts = collections.Counter(result.outcome for result in results)
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    print(f"{len(results)} families in {time.monotonic() - began:.0f} s: {said}")
    if not given.families:
        print(f"wrote {write(results)}")
    return 1 if any(counts[outcome] for outcome in WRONG) else 0


if __name__ == "__main__":
    sys.exit(main())
