"""Measures what other packages take to record what `extract.py` records, each in an environment of its own.

    python benchmarks/peers.py [--json FILE] [--folder FOLDER] [--turns 7] [--only NAME] [--quick]

GPT-2 small's shape with random weights: patterns, queries, keys, values and the residual stream in float16, against the
plain forward pass of the same process and turn; `peer_works.py` says what each does. Ours is a whole run of that one
batch. A package is installed by pip into a folder that is deleted once it was measured (about 1 GB each), with the same
torch as here; what cannot be installed or run has a line that says why.
"""

import json
import math
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from extract import Bench, make_model, size_of
from table import Ratios, Row, delete, in_turn, main, row

CAPTURE = ("attn", "qkv", "resid")


class Peer(NamedTuple):
    """What is installed, together; and what of it without what it asks for."""

    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()


PEERS = {
    "transformer_lens": Peer(("transformer-lens==4.3.*",)),
    "nnsight": Peer(("nnsight==0.8.*", "transformers==5.*")),
    "torchlens": Peer(("torchlens==2.36.*", "transformers==5.*")),
    # It asks for another torch than the one that all are measured with; what it works on is nnsight and a model.
    # nnsight 0.7.0 imports requests and does not ask for it.
    "attnread": Peer(("nnsight==0.7.0", "requests", "transformers==5.19.*"), alone=("attnread==0.1.2",)),
    "transformers": Peer(("transformers==5.*",)),
}


class Failed(Exception):
    """What a process said last before it failed, in a line."""


def run(command: list[str | Path], **environment: str) -> str:
    """Returns what a command prints.

    Raises:
        Failed: it fails.
    """
    here = Path(__file__).parent
    known = {**os.environ, "PYTHONPATH": str(here.parent), **environment}
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, env=known)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "rror" in line.split(":")[0]]
        raise Failed((errors or lines or ["no word"])[0].strip())
    return done.stdout


def installed(peer: Peer, place: Path) -> Path:
    """Returns the Python of a new environment that has the peer, and the torch of this one."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    torch = f"torch=={version('torch').partition('+')[0]}"
    pins = place / "constraints.txt"
    pins.write_text(f"{torch}\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--constraint", pins, torch, "numpy", *peer.packages])
    if peer.alone:
        run([*pip, "--no-deps", *peer.alone])
    return python


def measure_peers(folder: Path, turns: int, only: str | None, quick: bool) -> Iterator[Row]:
    model, out = make_model(folder / "gpt2-shape", positions=1024), folder / "theirs"
    out.mkdir()
    for name, peer in PEERS.items():
        if only not in (None, name):
            continue
        place = folder / f"environment-{name}"
        try:
            python = installed(peer, place)
            names = [(each.partition("==")[0]) for each in (*peer.packages, *peer.alone)]
            code = f"from importlib.metadata import version; print(*map(version, {[*names, 'torch']}))"
            versions = [
                " ".join(each) for each in zip([*names, "torch"], run([python, "-c", code]).split(), strict=True)
            ]
            told = run([python, "peer_works.py", name, model, out, str(1 if quick else turns)], HF_HUB_OFFLINE="1")
            for line in json.loads(told.splitlines()[-1]):
                note = f"{line['written'] / 1e6:.0f} MB; {', '.join(versions)}"
                yield row(f"{line['what']} / plain", Ratios(**line["ratios"]), None, note=note)
        except Failed as failed:
            yield row(f"{name}: could not be measured", [math.nan], None, note=str(failed))
        delete(place, *out.iterdir())


def measure_ours(folder: Path, turns: int, only: str | None, quick: bool) -> Iterator[Row]:
    if only not in (None, "traceformer"):
        return
    bench = Bench(folder, make_model(folder / "gpt2-shape", positions=1024), 8, 128, 1)
    works = {"ours": bench.recording(CAPTURE)}
    ratios = in_turn(bench.plain, works, 1 if quick else turns, between=bench.delete)
    note = f"{size_of(folder, 'run/**/*') / 1e6:.0f} MB"
    yield row("8 x 128: traceformer, a whole run of one batch / plain", ratios["ours"], None, note=note)
    bench.delete()
    for n_tokens in (128, 1024):
        bench = Bench(folder, folder / "gpt2-shape", 1, n_tokens, 1)
        works = {"ours": bench.recording(("attn",), layers={"dec": (0, 5, 11)}, heads={"dec": (0, 1, 7)})}
        ratios = in_turn(bench.plain, works, 1 if quick else turns, between=bench.delete)
        yield row(f"1 x {n_tokens}: traceformer, a run of 3 layers x 3 heads / plain", ratios["ours"], None)
        bench.delete()


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}, torch {version('torch')}", file=sys.stderr)
    main(__doc__, measure_ours, measure_peers, threads=os.cpu_count())
