"""Progress in a terminal and without one."""

import io
import sys
from collections.abc import Callable

import pytest

import traceformer as tf
from traceformer import progress
from traceformer.progress import Progress, Totals, progress_shown, steps_shown

STEPS = (
    Progress(0, 0, 0, 0, 0.0, "loading"),
    Progress(0, 40, 0, 0, 0.1, "recording"),
    Progress(8, 40, 800, 4_000_000, 2.0, "recording"),
    Progress(16, 40, 1600, 8_000_000, 4.0, "recording"),
    Progress(24, 40, 2400, 12_000_000, 6.0, "recording"),
    Progress(40, 40, 4000, 20_000_000, 10.0, "recording"),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_a_line_comes_every_five_seconds_at_each_new_step_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_shown(Totals()) as show:
        for step in STEPS:
            show(step)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "loading",
        "recording  0/40 examples",
        "recording  24/40 examples  400 tokens/s  2.00 MB/s  4.0 s left",
        "recording  40/40 examples  400 tokens/s  2.00 MB/s",
    ]


def test_in_a_terminal_a_bar_shows_examples_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_shown(Totals()) as show:
        for step in STEPS:
            show(step)
    drawn = terminal.getvalue()
    assert "recording" in drawn
    assert "40/40" in drawn
    assert "400 tokens/s  2.00 MB/s" in drawn


def test_totals_are_those_of_the_last_progress() -> None:
    totals = Totals()
    with progress_shown(totals) as show:
        for step in STEPS:
            show(step)
    assert totals == Totals(examples=40, tokens=4000, bytes=20_000_000, seconds=10.0)


def test_steps_are_silent_for_a_moment_and_then_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with steps_shown("analyzing") as show:
        for done, seconds in ((1, 0.5), (2, 4.9), (3, 5.1), (4, 6.0), (5, 11.0)):
            now[0] = seconds
            show(done, 9)
    assert capsys.readouterr().err.splitlines() == ["analyzing  3/9", "analyzing  5/9"]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with steps_shown("exporting") as show:
        show(1, 4)
        assert terminal.getvalue() == ""
        now[0] += 2
        show(4, 4)
    assert "exporting" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()


@pytest.fixture(scope="module")
def byte_run() -> tf.Run:
    return tf.record("byte", ["Rome is in Italy."], "attn resid_post")


@pytest.mark.parametrize(
    ("verb", "what"),
    [(tf.heads, "measuring"), (tf.statistics, "analyzing"), (tf.lens, "reading out")],
)
def test_a_verb_of_python_shows_a_bar_in_a_terminal_and_nothing_in_a_script(
    verb: Callable[[tf.Run], object],
    what: str,
    byte_run: tf.Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_OF_SILENCE", -1.0)
    verb(byte_run)
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    verb(byte_run)
    assert what in terminal.getvalue()
