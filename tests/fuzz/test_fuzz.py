"""Whatever bytes a reader is given, it gives a right answer or one of the product's errors."""

import datetime
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.campaign import campaign, outcome, prepare_process
from tests.fuzz.mutation import damaged, damaged_word
from tests.fuzz.readers import READERS, Reader
from traceformer.cli.arguments import parse_head
from traceformer.errors import TraceformerError, Unreadable
from traceformer.plain_json import parse_json
from traceformer.sites import parse_indices

SECONDS = 280
"""Of the slow test: with what starts it, five minutes. FUZZ_SECONDS changes it."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_slice_of_the_campaign_finds_nothing() -> None:
    """Other inputs each day; FUZZ_SEED, which is printed, gives a day's inputs again."""
    seed = os.environ.get("FUZZ_SEED") or datetime.date.today().isoformat()
    tallies = campaign(100_000, seed, seconds=float(os.environ.get("FUZZ_SECONDS", SECONDS)))
    found = {name: tally.findings for name, tally in tallies.items() if tally.findings}
    assert not found, f"FUZZ_SEED={seed}: {found}"
    assert all(tally.inputs for tally in tallies.values())


def _seeds(folder: Path) -> tuple[Path, Path]:
    for name in ("seeds", "input"):
        (folder / name).mkdir()
        (folder / name / "a.json").write_text('{"a": [1, 2]}')
    return folder / "seeds", folder / "input"


def _refuses(folder: Path) -> None:
    raise Unreadable("no")


def _falls(folder: Path) -> None:
    raise KeyError("a")


def _answers(folder: Path) -> str:
    return "right"


OUTCOMES = {
    "refused": Reader(_refuses, 1),
    "answered": Reader(_answers, 1),
    "a wrong answer: it is": Reader(_answers, 1, judge=lambda *_: "it is"),
    "KeyError at test_fuzz.py": Reader(_falls, 1),
}


@pytest.mark.parametrize("expected", OUTCOMES)
def test_what_became_of_an_input_is_told(expected: str, tmp_path: Path) -> None:
    seeds, place = _seeds(tmp_path)
    for number in range(20):
        kind = outcome(OUTCOMES[expected], seeds, place, Random(number), None)
        assert kind.startswith(expected)
        assert (place / "a.json").read_text() == '{"a": [1, 2]}'


def test_an_input_is_its_number() -> None:
    data = b'{"a": [1, 2, {"b": "c"}], "d": null}'
    assert len({damaged(data, Random(number)) for number in range(50)}) > 30
    assert all(damaged(data, Random(number)) == damaged(data, Random(number)) for number in range(50))
    assert damaged_word("L5H3", Random(1)) == damaged_word("L5H3", Random(1))


def test_every_reader_has_its_share() -> None:
    assert sum(reader.share for reader in READERS.values()) == pytest.approx(1000, abs=5)
    assert callable(prepare_process)


@given(st.text())
def test_any_text_is_a_list_of_numbers_or_refused(text: str) -> None:
    try:
        numbers = parse_indices(text)
    except TraceformerError:
        return
    assert {int(part.split("-")[0]) for part in text.replace(",", " ").split() if part[0] != "-"} <= {*numbers}


@given(st.from_regex(r"[LlHh0-9]{0,6}", fullmatch=True))
def test_a_head_has_a_letter_between_its_numbers(text: str) -> None:
    try:
        layer, head = parse_head(None, text)
    except TraceformerError:
        return
    assert text.upper().lstrip("0123456789LH") == ""
    written = [f"L{layer}H{head}"] if layer is not None else [f"{head}", f"H{head}"]
    plain = "".join(f"{int(part)}" if part.isdecimal() else part.upper() for part in _parts(text))
    assert plain in written


def _parts(text: str) -> list[str]:
    import re

    return re.findall(r"\d+|\D", text)


@given(st.binary() | st.text().map(str.encode) | st.integers(1, 5).map(lambda n: b"[" * 10**n))
def test_any_bytes_are_json_or_a_value_error(data: bytes) -> None:
    try:
        parse_json(data)
    except ValueError:
        return
