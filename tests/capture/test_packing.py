"""Batches bound by tokens: every row once, no more tokens than allowed, little padding, and the same numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import traceformer as tf
from tests.capture.asked import Extraction, Stopped, estimated, extracted, stop_after
from traceformer.capture.packing import MOST_PADDING, Batching, auto_tokens, batches_by_length, first_rows
from traceformer.errors import ConfigurationChanged, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.sites import Selection
from traceformer.store.commits import verify_run
from traceformer.store.run import Run

Lengths = Mapping[Any, int]


def computed(batch: Sequence[int], lengths: Sequence[Lengths]) -> int:
    """The tokens of a batch as it is run: all rows as long as the longest, stack by stack."""
    return len(batch) * sum(max(lengths[number][stack] for number in batch) for stack in lengths[0])


def padding(batches: Sequence[Sequence[int]], lengths: Sequence[Lengths]) -> float:
    true = sum(sum(lengths[number].values()) for batch in batches for number in batch)
    return 1 - true / sum(computed(batch, lengths) for batch in batches)


def alone(*lengths: int) -> list[Lengths]:
    return [{"dec": length} for length in lengths]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=60), st.integers(49, 400))
def test_a_plan_runs_each_row_once_within_its_bounds(drawn: list[tuple[int, int]], tokens: int) -> None:
    lengths: list[Lengths] = [{"enc": enc, "dec": dec} for enc, dec in drawn]
    batches = batches_by_length(lengths, Batching(tokens=tokens))
    assert sorted(number for batch in batches for number in batch) == [
        number for number, (enc, dec) in enumerate(drawn) if enc and dec
    ]
    assert all(computed(batch, lengths) <= tokens for batch in batches)
    assert not batches or padding(batches, lengths) <= MOST_PADDING
    assert batches == batches_by_length(lengths, Batching(tokens=tokens))
    ordered = [[*lengths[number].values()] for batch in batches for number in batch]
    assert ordered == sorted(ordered)


def words_of_paragraphs() -> list[int]:
    """Paragraphs of Python's own help: 1 to 300 words, half of them under 40."""
    paragraphs = [part for name in sorted(topics) for part in topics[name].split("\n\n")]
    return [min(300, len(part.split())) for part in paragraphs if part.split()]


@pytest.mark.parametrize("tokens", [1024, 4096])
def test_real_paragraphs_are_packed_into_fewer_passes_with_less_padding(tokens: int) -> None:
    found = words_of_paragraphs()
    assert len(found) > 1000
    passes, of_eight, ours, theirs = 0, 0, 0, 0
    for start in range(0, len(found), 256):  # shards of 256 examples, as large as they get
        lengths = alone(*found[start : start + 256])
        packed, fixed = (batches_by_length(lengths, Batching(*how)) for how in ((None, tokens), (8, None)))
        assert padding(packed, lengths) <= MOST_PADDING
        passes, of_eight = passes + len(packed), of_eight + len(fixed)
        ours += sum(computed(batch, lengths) for batch in packed)
        theirs += sum(computed(batch, lengths) for batch in fixed)
    assert passes < 0.85 * of_eight
    assert ours < 0.98 * theirs


def test_rows_of_one_length_fill_a_batch() -> None:
    assert batches_by_length(alone(*[8] * 7), Batching(tokens=24)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_padding_is_spent_where_it_saves_a_pass() -> None:
    # Ten rows of 20 bear one of 19 beside them: 1 of 220. One of 5 would make it 16 of 240, which is more than 5 %.
    assert batches_by_length(alone(*[20] * 10, 19, 5), Batching(tokens=1000)) == [[11], [10, *range(10)]]


def test_a_model_is_proved_on_rows_that_differ_though_a_batch_holds_one() -> None:
    batching = Batching(tokens=64)
    batches = batches_by_length(alone(3, 0, 40, 20), batching)
    assert batches == [[0], [3], [2]]
    assert first_rows(batches, batching) == [0, 2]
    assert first_rows([[4]], batching) == [4]
    assert first_rows([], batching) == []
    assert first_rows([[2, 0], [1]], Batching(rows=2)) == [2, 0]


def test_auto_goes_by_device_and_width(byte: LoadedModel) -> None:
    assert auto_tokens("cpu", 512) == auto_tokens("cpu", 8192) == 1024
    assert {width: auto_tokens("cuda", width) for width in (64, 768, 4096, 16_384)} == {
        64: 32_768,
        768: 32_768,
        4096: 8192,
        16_384: 4096,
    }
    assert Batching.of(None, "auto", byte, 100) == Batching(tokens=1024)
    assert Batching.of(None, "auto", byte, 3000) == Batching(tokens=3000)  # a text is never too long for it


def test_eight_texts_share_a_pass_by_default(byte: LoadedModel) -> None:
    assert Batching.of(None, None, byte, 100) == Batching(rows=8)
    assert Batching.of(3, None, byte, 100) == Batching(rows=3)


def test_what_cannot_be_meant_is_refused(byte: LoadedModel) -> None:
    with pytest.raises(UsageError, match="bound by one of them"):
        tf.record(byte, ["Rome"], batch_size=8, batch_tokens=100)
    with pytest.raises(UsageError, match="`batch_tokens=10`, and the longest text has 12 tokens"):
        tf.record(byte, ["Rome", "Twelve bytes"], batch_tokens=10)
    with pytest.raises(UsageError, match="batch_size=0"):
        tf.record(byte, ["Rome"], batch_size=0)


TEXTS = ["Rome", "is", "in Italy, and Paris is not.", "Oslo", "The river froze over during the night.", "Yes", "No"]


def test_numbers_are_those_of_texts_that_run_alone(byte: LoadedModel) -> None:
    single = tf.record(byte, TEXTS, "attn hidden", dtype="float32", batch_size=1)
    packed = tf.record(byte, TEXTS, "attn hidden", dtype="float32", batch_tokens="auto")
    assert (packed.about.batch_size, packed.about.batch_tokens) == (None, 1024)
    assert packed.ids == single.ids
    for example in range(len(TEXTS)):
        # Sums of padded batches and of single texts run in another order: as in test_extract.py.
        np.testing.assert_allclose(packed.attn(example), single.attn(example), atol=1e-5)
        np.testing.assert_allclose(packed.hidden(example), single.hidden(example), atol=1e-5)


def test_live_heads_are_those_of_any_batches(byte: LoadedModel) -> None:
    one, packed = tf.heads(byte, TEXTS, batch_size=1).to_frame(), tf.heads(byte, TEXTS, batch_tokens=128).to_frame()
    numbers = one.select_dtypes("number")
    np.testing.assert_allclose(packed[numbers.columns], numbers, atol=1e-4)


def arrays_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("c.*")}


@pytest.mark.filterwarnings("ignore:texts are cut")
def test_an_interrupted_run_of_packed_batches_resumes_to_the_same_bytes(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    whole = Extraction(
        model=str(tiny_folder("gpt2")),
        selection=Selection(("hidden",)),
        out_dir=tmp_path / "whole",
        limit=24,
        shard_examples=8,
        batch_tokens=200,
    )
    again = replace(whole, out_dir=tmp_path / "again")
    with pytest.raises(Stopped):
        extracted(again, stop_after(12))
    with pytest.raises(ConfigurationChanged, match="batch_tokens was 200, is 201"):
        extracted(replace(again, resume=True, batch_tokens=201))
    with pytest.raises(ConfigurationChanged, match="batch_tokens and batch_size"):
        extracted(replace(again, resume=True, batch_tokens=None))
    one, two = extracted(whole), extracted(replace(again, resume=True))
    assert arrays_of(one) == arrays_of(two)
    assert not verify_run(two)
    assert Run(two).about.batch_tokens == 200


def test_a_dry_run_goes_by_the_pace_of_such_batches(tiny_folder: Callable[..., Path], text_file: Path) -> None:
    asked = Extraction(
        model=str(tiny_folder("gpt2")), selection=Selection(("attn",)), dataset=str(text_file), batch_tokens="auto"
    )
    expected = estimated(asked)
    assert expected.examples == 9
    assert expected.seconds > 0
