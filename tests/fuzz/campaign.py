"""A campaign: `python -m tests.fuzz.campaign --inputs 100000 --seed N` damages files and reads them, reader by reader.

1. The seeds of every reader are written once; an input is its number: the same seed and number damage the same.
2. Inputs are read in a process of their own, which may use 10 seconds of processor and 2 GiB for one. What ends it is
   a finding.
3. An outcome is an answer, a TraceformerError, or a finding: any other error, a wrong answer, too much time or memory.
4. Counts are printed per reader, and of each kind of finding the first; the exit code is 1 if there was any.

`--reader NAME --only NUMBER` reads one input again, with its traceback, and says where its files lie.
"""

import argparse
import collections
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.readers import READERS, Reader
from tests.fuzz.seeds import write

__all__ = ["Tally", "campaign", "outcome", "prepare_process"]

SECONDS = 10
BYTES = 2 << 30
_OFFLINE = {
    **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1"),
    **{"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"},
}


@dataclass
class Tally:
    """What became of the inputs of one reader: how many were answered, how many refused, and what else happened."""

    answered: int = 0
    refused: int = 0
    findings: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    @property
    def inputs(self) -> int:
        return self.answered + self.refused + sum(map(len, self.findings.values()))

    def add(self, number: int, kind: str) -> None:
        if kind == "answered":
            self.answered += 1
        elif kind == "refused":
            self.refused += 1
        else:
            self.findings.setdefault(kind, []).append(number)


class _TooSlow(BaseException):
    pass


def _too_slow(*_: object) -> None:
    raise _TooSlow


def outcome(reader: Reader, seeds: Path, place: Path, random: Random, intact: Any, *, told: bool = False) -> str:
    """Returns `answered`, `refused`, or what went wrong, of one input; `place` is a copy of the seeds, and is again."""
    from traceformer.errors import TraceformerError

    try:
        reader.change(place, random)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read = reader.read(place)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > BYTES >> 11:
            return f"more than {BYTES >> 31} GiB of memory"
        wrong = reader.judge(place, seeds, read, intact)
        if wrong:
            quoted = re.compile(r"'.*'|\d+")
            return f"a wrong answer: {quoted.sub('...', wrong)[:80]}"
        parts = read.values() if isinstance(read, dict) else ()
        return "refused" if any(isinstance(part, TraceformerError) for part in parts) else "answered"
    except TraceformerError as error:
        str(error).encode("utf-8", "backslashreplace")
        return "refused"
    except _TooSlow:
        return f"more than {SECONDS} seconds"
    except Exception as error:  # this is what is looked for
        if told:
            traceback.print_exc()
        return _named(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if not told:
            _restore(seeds, place)


def _named(error: Exception) -> str:
    """Returns an error's class and the last place of the package that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}traceformer{os.sep}" in frame.filename]
    last = (ours or frames)[-1]
    path = last.filename.partition(f"traceformer{os.sep}traceformer{os.sep}")[2] or last.filename
    return f"{type(error).__name__} at {Path(path).name}:{last.lineno} in {last.name}"


def _restore(seeds: Path, place: Path) -> None:
    kept = {path.relative_to(seeds) for path in seeds.rglob("*")}
    for path in sorted(place.rglob("*"), reverse=True):
        if path.relative_to(place) not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in kept:
        source, own = seeds / name, place / name
        if source.is_dir():
            own.mkdir(exist_ok=True)
            continue
        status, now = source.stat(), own.stat() if own.exists() else None
        if now is None or (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            shutil.copy2(source, own)


def prepare_process() -> None:
    """Limits what this process may use; what an input may use comes on top of what is loaded already."""
    signal.signal(signal.SIGPROF, _too_slow)
    warnings.simplefilter("ignore")
    sizes = Path("/proc/self/statm").read_text().split()
    used = int(sizes[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _work(name: str, seeds: Path, seed: str, first: int, last: int, seconds: float) -> None:
    """Reads the inputs first .. last - 1, telling on stdout before each what it is, and after it what came of it."""
    reader, place = READERS[name], Path(tempfile.mkdtemp(dir=seeds.parent))
    shutil.copytree(seeds, place, dirs_exist_ok=True)
    ends = time.monotonic() + seconds
    intact = None if name in ("arguments", "commands") else reader.read(place)
    _restore(seeds, place)
    prepare_process()
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no part of it
    for number in range(first, last):
        if number and time.monotonic() > ends:  # each reader gets one at least
            break
        print(number, file=told, flush=True)
        kind = outcome(reader, seeds, place, Random(f"{seed}/{name}/{number}"), intact)
        print(json.dumps(kind), file=told, flush=True)


def _inputs(name: str, seeds: Path, seed: str, count: int, seconds: float) -> Iterator[tuple[int, str]]:
    """Yields what became of every input; a process that an input ends is followed by another."""
    first, ends = 0, time.monotonic() + seconds
    while first < count and (not first or time.monotonic() < ends):
        command = [sys.executable, "-m", "tests.fuzz.campaign", "--reader", name, "--seed", seed, "--seeds", str(seeds)]
        command += [
            "--inputs",
            f"{count}",
            "--first",
            f"{first}",
            "--seconds",
            f"{max(0.0, ends - time.monotonic()):.3f}",
            "--work",
        ]
        quiet: dict[str, Any] = {"stderr": subprocess.DEVNULL, "text": True, "env": {**os.environ, **_OFFLINE}}
        number = None
        with subprocess.Popen(command, stdout=subprocess.PIPE, **quiet) as process:
            assert process.stdout is not None
            watch = _Watch(process)
            for line in process.stdout:
                watch.seen()
                if number is None:
                    number = int(line)
                else:
                    yield number, json.loads(line)
                    first, number = number + 1, None
            watch.stop()
            code = process.wait()
        if number is not None:
            yield number, "hangs" if watch.killed else f"ends the process ({code})"
            first = number + 1
        elif code:
            raise RuntimeError(f"the reader {name!r} fails on its seeds, with {code}")
        elif first < count:
            return


class _Watch:
    """Kills a process that has begun, and says nothing for two minutes: it hangs where Python cannot interrupt it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        import threading

        self.killed = False
        self._process, self._last, self._done = process, math.inf, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def seen(self) -> None:
        self._last = time.monotonic()

    def stop(self) -> None:
        self._done.set()

    def _look(self) -> None:
        while not self._done.wait(1):
            if time.monotonic() - self._last > 120:
                self.killed = True
                self._process.kill()
                return


def campaign(inputs: int, seed: str, *, names: tuple[str, ...] = (), seconds: float = 1e9) -> Mapping[str, Tally]:
    """Returns what became of about so many inputs, by reader; each reader has its share of them, and of the time."""
    chosen = {name: READERS[name] for name in names or READERS}
    shares = sum(reader.share for reader in chosen.values())
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as folder:
        ends = time.monotonic() + seconds
        for index, (name, reader) in enumerate(chosen.items()):
            seeds, tally = Path(folder) / f"{index}" / "seeds", Tally()
            write(name, seeds)
            own = max(0.0, ends - time.monotonic()) / (len(chosen) - index)
            started = time.monotonic()
            for number, kind in _inputs(name, seeds, seed, max(1, round(inputs * reader.share / shares)), own):
                tally.add(number, kind)
            tallies[name] = tally
            took = time.monotonic() - started
            found = sum(map(len, tally.findings.values()))
            print(
                f"{name:<28} {tally.inputs:>7} inputs {tally.answered:>7} answered {tally.refused:>7} refused "
                f"{found:>4} findings {took:>6.0f} s",
                flush=True,
            )
            for kind, numbers in tally.findings.items():
                print(f"    {kind}: {len(numbers)}, such as --only {numbers[0]}", flush=True)
            shutil.rmtree(seeds.parent)
    return tallies


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _again(name: str, seed: str, number: int) -> str:
    """Reads one input again, and leaves its files."""
    os.environ.update(_OFFLINE)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    write(name, folder / "seeds")
    shutil.copytree(folder / "seeds", folder / "input")
    intact = None if name in ("arguments", "commands") else READERS[name].read(folder / "input")
    _restore(folder / "seeds", folder / "input")
    prepare_process()
    random = Random(f"{seed}/{name}/{number}")
    kind = outcome(READERS[name], folder / "seeds", folder / "input", random, intact, told=True)
    return f"{kind}\n{folder}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.campaign", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--reader", action="append", choices=[*READERS], help="one of the readers; all by default")
    parser.add_argument("--seconds", type=float, default=1e9, help="the most that it may take")
    parser.add_argument("--only", type=int, help="the number of one input of a reader, to be read again")
    for hidden, kind in (("--seeds", Path), ("--first", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        _work(given.reader[0], given.seeds, given.seed, given.first, given.inputs, given.seconds)
        return 0
    if given.only is not None:
        print(_again(given.reader[0], given.seed, given.only))
        return 0
    tallies = campaign(given.inputs, given.seed, names=tuple(given.reader or ()), seconds=given.seconds)
    total: collections.Counter[str] = collections.Counter()
    for tally in tallies.values():
        found = sum(map(len, tally.findings.values()))
        total.update(inputs=tally.inputs, answered=tally.answered, refused=tally.refused, findings=found)
    print(f"seed {given.seed}: " + ", ".join(f"{count} {what}" for what, count in total.items()))
    return 1 if total["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
