"""`traceformer demo`: the whole way from a model to pictures, each step a command that can be typed."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

from traceformer.cli.arguments import FOLDER_ON_DISK

__all__ = ["demo"]


def demo(*, out_dir: Annotated[Path, FOLDER_ON_DISK] = Path("traces/demo")) -> int:
    """Record the built-in model on the built-in texts, and look at the run.

    The model is `byte`, a small decoder that reads bytes and was trained on Python's documentation.

    Example: `traceformer demo`

    Args:
        out_dir: The run's folder; an earlier demo there is replaced.
    """
    from traceformer.cli import main
    from traceformer.store.replacing import check_place

    check_place(out_dir)
    endings = ("", ".png", "-heads.csv", "-paths.png")
    run, picture, heads, paths = (shlex.quote(str(out_dir.with_name(out_dir.name + ending))) for ending in endings)
    for command in (
        "extract --model byte --dataset demo --limit all --max_seq_len auto "
        f"--capture attn qkv hidden resid --out_dir {run} --overwrite",
        f"inspect {run}",
        f"inspect {run} --example 2 --png {picture}",
        f"heads {run} --output {heads} --plot",
        f"paths {run} --example 2 --layer all --top-beam 2 --png {paths}",
        f"verify {run}",
    ):
        print(f"\n$ traceformer {command}", flush=True)
        code = main(shlex.split(command))
        if code:
            return code
    print(f"\nnext: traceformer inspect {run} --example 7 --head L1H7", file=sys.stderr)
    return 0
