"""What a user names as a stream: the Hub, files by a pattern, a saved data set, an iterable."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.texts.cells import IdsColumn
from traceformer.texts.load import load_texts
from traceformer.texts.streams.load import TextStream, is_stream, open_stream
from traceformer.texts.streams.reading import Shuffle


def examples(stream: TextStream) -> list[Any]:
    return [came.example for came in stream.read()]


@pytest.mark.parametrize(
    ("dataset", "split"),
    [("ud_ewt", None), ("ud_ewt", "train"), ("go_emotions", None), ("csqa", "test"), ("demo", None)],
)
def test_a_named_set_is_streamed_as_it_is_listed(hub: Path, dataset: str, split: str | None) -> None:
    listed, stream = load_texts(dataset, split=split), open_stream(dataset, split=split)
    assert examples(stream) == list(listed.examples)
    assert (stream.name, stream.split, stream.dataset) == (listed.name, listed.split, listed.dataset)


def test_blank_texts_are_passed_over_and_counted(hub: Path) -> None:
    reading = open_stream("wikitext").read()
    assert [came.example.index for came in reading] == [1, 3]
    assert reading.skipped == 2


def test_a_data_set_of_the_hub_is_streamed_from_any_record_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: None
) -> None:
    folder = tmp_path / "hub/some/thing/data"
    folder.mkdir(parents=True)
    for part in range(3):
        rows = [{"id": "same", "text": f"text {part * 40 + n}"} for n in range(40)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"train-{part:05d}-of-00003.parquet", row_group_size=16)
    monkeypatch.setenv("TRACEFORMER_DATASETS", str(tmp_path / "hub"))
    stream = open_stream("hf:some/thing", split="train", shuffle=Shuffle(seed=3, buffer=9))
    whole = list(stream.read())
    assert sorted(came.example.index for came in whole) == list(range(120))
    assert len({came.example.example_id for came in whole}) == 120
    for stop in (0, 1, 8, 9, 40, 77, 119):
        assert list(stream.read(whole[stop].after)) == whole[stop + 1 :]
    with pytest.raises(NotFound, match="no split 'test'"):
        open_stream("hf:some/thing", split="test")
    with pytest.raises(NotFound, match="not on this machine"):
        open_stream("hf:some/other")


def test_a_saved_data_set_is_streamed(tmp_path: Path, own_cache: None) -> None:
    import datasets

    rows = [{"text": f"text {n}", "n": n} for n in range(30)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    stream = open_stream(tmp_path / "saved")
    whole = list(stream.read())
    assert [came.example for came in whole] == list(load_texts(tmp_path / "saved").examples)
    assert list(stream.read(whole[11].after)) == whole[12:]


def test_a_pattern_means_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.txt", "a/10.txt", "other.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
    stream = open_stream(f"{tmp_path}/**/*.txt")
    assert [came.example.text for came in stream.read()] == ["a/1.txt", "a/10.txt", "b/2.txt"]
    assert [part.name for part in stream.parts] == ["a/1.txt", "a/10.txt", "b/2.txt"]
    with pytest.raises(NotFound, match="no file is meant by"):
        open_stream(f"{tmp_path}/*.jsonl")
    with pytest.raises(Unreadable, match=r"means \.md and \.txt files"):
        open_stream(f"{tmp_path}/**/*")
    with pytest.raises(NotFound, match="no data set, file or folder"):
        open_stream(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    "texts",
    [
        ["a", "b c"],
        [("a", "b"), ("c", "d")],
        [["a", "b"], ["c"]],
        [[1, 2], [3]],
        [[{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Ho"}]],
    ],
    ids=["texts", "pairs", "words", "ids", "conversations"],
)
def test_an_iterable_gives_what_a_list_gives(texts: list[Any]) -> None:
    assert examples(open_stream(text for text in texts)) == list(load_texts(texts).examples)


def test_rows_of_an_iterable_keep_their_columns() -> None:
    rows = [{"body": "a", "label": 1}, {"body": "b", "label": 2}]
    found = examples(open_stream(iter(rows), text_column="body"))
    assert [(example.text, dict(example.extra)) for example in found] == [("a", {"label": 1}), ("b", {"label": 2})]
    ids = examples(open_stream(iter([{"ids": [1, 2]}]), text_column=IdsColumn("ids")))
    assert [example.text for example in ids] == ["1 2"]


def test_only_what_has_no_length_is_a_stream_by_itself() -> None:
    assert is_stream(iter(["a"]))
    assert is_stream(text for text in "ab")
    assert not any(map(is_stream, (["a"], ("a",), "a", Path("a"), {"a": 1}, 3)))


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`split` does not apply"):
        open_stream(iter(["a"]), split="train")
    with pytest.raises(UsageError, match="demo has its own text"):
        open_stream("demo", text_column="text")


def test_a_record_without_a_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"text": "a"}, {"label": 1}])))
    with pytest.raises(Unreadable, match=r"a\.jsonl, line 2: nothing where the text 'text' should be"):
        examples(open_stream(path))
    with pytest.raises(Unreadable, match=r"the stream of texts, text 1: a value of type int"):
        examples(open_stream(iter(["a", 3])))


def test_texts_of_several_kinds_are_no_stream() -> None:
    with pytest.raises(Unreadable, match="text 1: a pair of texts, where a text came before"):
        examples(open_stream(iter(["a", ("b", "c")])))


def test_nothing_is_read_before_it_is_asked_for() -> None:
    given: list[int] = []

    def texts() -> Iterator[str]:
        for number in range(100):
            given.append(number)
            yield f"text {number}"

    reading = open_stream(texts()).read()
    assert given == []
    next(reading)
    assert given == [0]
