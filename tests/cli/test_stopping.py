"""Signals by which schedulers announce the end of a job, sent to a real process."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from traceformer import TraceStore
from traceformer.cli.stopping import Announced, keeping
from traceformer.store.commits import verify_run

KINDS = [signal.SIGTERM, signal.SIGUSR1]


def stopped(arguments: list[str], number: signal.Signals, when: Callable[[], bool]) -> tuple[int, list[str]]:
    """Returns the exit code and the last words of a command that gets a signal once something is so."""
    command = [sys.executable, "-m", "traceformer", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + 120
            while not when():
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < until
                time.sleep(0.005)
            process.send_signal(number)
            _, told = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, told.splitlines()[-2:]


@pytest.mark.slow
@pytest.mark.parametrize("number", KINDS)
def test_a_generation_that_is_to_end_keeps_what_it_has_and_says_how_it_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"The function number {i} returns\n" for i in range(40)))
    out = tmp_path / "run"
    asked = f"generate --model byte --prompts {tmp_path}/prompts.txt --max-tokens 40 --batch-size 2 --out-dir {out}"
    code, told = stopped(asked.split(), number, lambda: (tmp_path / "_tmp_run/commits/0.json").exists())
    assert code == 75
    again = f"traceformer {asked} --resume"
    assert told == [f"error: stopped by {number.name}; what was finished is kept", f"try:   {again}"]
    begun = TraceStore(tmp_path / "_tmp_run")
    assert 0 < begun.n < 40
    assert verify_run(tmp_path / "_tmp_run") == []
    subprocess.run([sys.executable, "-m", *again.split()], check=True, capture_output=True)
    assert TraceStore(out).n == 40
    assert verify_run(out) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", KINDS)
def test_an_extraction_and_a_sweep_that_are_to_end_are_gone_on_with(tmp_path: Path, number: signal.Signals) -> None:
    for asked, begun, kept in (
        (
            f"extract --model byte --dataset demo --limit all --capture all --out_dir {tmp_path}/run",
            tmp_path / "_tmp_run/meta.json",
            "what was committed is kept",
        ),
        (
            f"ablate byte demo --limit 32 --batch-size 1 --out_dir {tmp_path}/effects",
            tmp_path / "effects/metric/c.1.0.0",
            "what was measured is kept",
        ),
    ):
        code, told = stopped(asked.split(), number, begun.exists)
        assert (code, told[0]) == (75, f"error: stopped by {number.name}; {kept}")
        again = subprocess.run([sys.executable, "-m", *told[1].split()[1:]], capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
    assert TraceStore(tmp_path / "run").n == 64
    assert (tmp_path / "effects/metric/c.31.0.0").exists()


def test_work_that_keeps_nothing_leaves_signals_as_they_are() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with keeping("nothing", resumes=False):
        assert signal.getsignal(signal.SIGTERM) == before
    with keeping("all"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("made_of_it", [KeyboardInterrupt, SystemError, RuntimeError])
def test_a_signal_is_told_though_a_library_raises_something_of_its_own(made_of_it: type[BaseException]) -> None:
    """As Ray does, whose compiled code waits."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}

    def work() -> None:
        with keeping("all is kept"):
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                raise made_of_it from None

    try:
        with pytest.raises(Announced, match="stopped by SIGTERM; all is kept"):
            work()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_error_that_no_signal_brought_about_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), keeping("all"):
        print(1 / 0)


def test_a_second_signal_does_not_disturb_what_is_being_written() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    written: list[str] = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.raise_signal(signal.SIGTERM)
            written.append("all of it")

    def keep() -> None:
        with keeping("all"):
            work()

    try:
        with pytest.raises(Announced) as stop:
            keep()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert written
    assert stop.value.args[0] == "stopped by SIGUSR1; all"
