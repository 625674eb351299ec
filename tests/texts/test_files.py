"""Texts in a user's own files: what is read, exactly as it stands there, and what is refused, with its place."""

import csv
import hashlib
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.texts.examples import TextSource
from traceformer.texts.load import load_texts

KINDS = ("txt", "jsonl", "csv", "parquet", "conllu")


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts_of(source: TextSource) -> list[str]:
    return [example.text for example in source.examples]


def test_a_txt_file_holds_one_text_per_line(tmp_path: Path) -> None:
    source = load_texts(write(tmp_path, "my texts.txt", "\ufeffone\r\n\n  two \u2028 three\x0b\r\n \t\nfour"))
    assert texts_of(source) == ["one", "  two \u2028 three\x0b", "four"]
    assert [example.index for example in source.examples] == [0, 2, 4]
    assert (source.name, source.split, source.skipped) == ("my-texts", "all", 2)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r")), min_size=1))
def test_every_line_of_a_txt_file_comes_back_at_its_row(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    texts = {row: line for row, line in enumerate(lines) if line.strip()}
    path = write(tmp_path_factory.getbasetemp(), "any.txt", "\n".join(lines))
    if texts and not lines[0].startswith("\ufeff"):
        assert {example.index: example.text for example in load_texts(path).examples} == texts


@given(
    st.lists(
        st.fixed_dictionaries(
            {"text": st.text(st.characters(codec="utf-8")), "label": st.text(st.characters(codec="utf-8"))}
        ),
        min_size=1,
    )
)
def test_jsonl_csv_and_parquet_hold_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    kept = [(row["text"], {"label": row["label"]}) for row in rows if row["text"].strip()]
    folder = tmp_path_factory.getbasetemp() / "same"
    write(folder, "rows.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["text", "label"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=2)
    for kind in ("jsonl", "csv", "parquet"):
        if kept:
            source = load_texts(str(folder / f"rows.{kind}"))
            assert [(example.text, dict(example.extra)) for example in source.examples] == kept
        else:
            with pytest.raises(Unreadable, match="blank"):
                load_texts(str(folder / f"rows.{kind}"))


def test_csv_values_stay_as_they_are_written(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '\ufefftext,n\r\nNA,007\r\n"two\nlines, ""quoted""",\r\n\r\nnull,1e3\r\n')
    assert [(e.index, e.text, e.extra["n"]) for e in load_texts(path).examples] == [
        (0, "NA", "007"),
        (1, 'two\nlines, "quoted"', ""),
        (2, "null", "1e3"),
    ]


def test_csv_agrees_with_pandas_on_long_and_many_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": [f'row {n}\n"{n}"' for n in range(500)] + ["x" * 300_000], "n": range(501)})
    frame.to_csv(tmp_path / "many.csv", index=False)
    examples = load_texts(str(tmp_path / "many.csv")).examples
    assert [examples[n].text for n in (500, 0, 499, 250)] == frame.text.iloc[[500, 0, 499, 250]].tolist()


def test_examples_are_read_in_any_order_and_by_slices(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(10)]}), tmp_path / "a.parquet", row_group_size=3)
    examples = load_texts(str(tmp_path / "a.parquet")).examples
    assert [examples[n].text for n in (9, 0, -1, 5)] == ["text 9", "text 0", "text 9", "text 5"]
    assert [example.index for example in examples[2:8:3]] == [2, 5]
    with pytest.raises(IndexError):
        examples[10]


def test_a_conllu_file_gives_texts_with_annotations(tmp_path: Path) -> None:
    sentence = (
        "# sent_id = s{0}\n1\tHi\thi\tINTJ\tUH\t_\t0\troot\t_\tSpaceAfter=No\n2\t{0}\t{0}\tNUM\tCD\t_\t1\tdep\t_\t_\n\n"
    )
    source = load_texts(write(tmp_path, "a.conllu", "".join(sentence.format(n) for n in range(3))))
    assert texts_of(source) == ["Hi0", "Hi1", "Hi2"]
    assert source.examples[2].extra["sent_id"] == "s2"
    assert source.examples[1].extra["upos"] == ["INTJ", "NUM"]


def test_every_example_has_the_same_extra_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a", "x": 1}\n{"text": "b", "y": [2]}\n')
    assert [example.extra for example in load_texts(path).examples] == [{"x": 1, "y": None}, {"x": None, "y": [2]}]


def test_the_text_column_is_chosen_or_the_only_one(tmp_path: Path) -> None:
    two = write(tmp_path, "two.jsonl", '{"title": "T", "body": "B"}\n')
    assert load_texts(two, text_column="body").examples[0].extra == {"title": "T"}
    assert texts_of(load_texts(write(tmp_path, "one.csv", "sentence\nhello\n"))) == ["hello"]
    with pytest.raises(UsageError, match=r"which column .* `text_column`, one of: title, body"):
        load_texts(two)
    with pytest.raises(NotFound, match=r"no column 'boddy'.* it has: title, body"):
        load_texts(two, text_column="boddy")


def test_ids_are_the_users_own_or_made_from_place_and_text(tmp_path: Path) -> None:
    own = load_texts(write(tmp_path, "own.jsonl", '{"text": "a", "id": 7}\n{"text": "b", "id": "x"}\n'))
    assert [example.example_id for example in own.examples] == ["7", "x"]
    assert own.examples[0].extra == {}
    made = load_texts(write(tmp_path, "made.txt", "a\na\n"), split="test")
    assert made.examples[1].example_id == hashlib.sha1(b"made::test::1::a").hexdigest()[:16]
    assert made.examples[0].example_id != made.examples[1].example_id


def test_a_folder_has_the_splits_that_its_files_name(tmp_path: Path) -> None:
    for name, text in (("train-00000-of-00002", "a"), ("train-00001-of-00002", "b"), ("dev", "c"), ("x_test.v2", "d")):
        write(tmp_path, f"set/{name}.txt", f"{text}\n")
    write(tmp_path, "set/README.txt", "not a text\n")
    write(tmp_path, "set/.hidden.csv", "not a text\n")
    folder = str(tmp_path / "set")
    assert texts_of(load_texts(folder, split="train")) == ["a", "b"]
    assert texts_of(load_texts(folder, split="validation")) == texts_of(load_texts(folder)) == ["c"]
    assert texts_of(load_texts(folder, split="test")) == ["d"]
    with pytest.raises(NotFound, match="no split 'tset'; it has: dev, train, test"):
        load_texts(folder, split="tset")


def test_validation_names_stand_for_each_other_only_where_there_is_one(tmp_path: Path) -> None:
    write(tmp_path, "set/dev.txt", "dev\n")
    write(tmp_path, "set/train.txt", "train\n")
    folder = str(tmp_path / "set")
    ids = {load_texts(folder, split=split).examples[0].example_id for split in ("dev", "val", "validation", None)}
    assert len(ids) == 1
    assert load_texts(folder, split="dev").split == "validation"
    write(tmp_path, "set/val.txt", "val\n")
    assert [load_texts(folder, split=split).split for split in ("dev", "val")] == ["dev", "val"]
    with pytest.raises(NotFound, match="no split 'validation'; it has: dev, train, val"):
        load_texts(folder)


def test_splits_may_be_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path, f"set/{split}/part.jsonl", f'{{"text": "{split}"}}\n')
    assert texts_of(load_texts(str(tmp_path / "set"), split="test")) == ["test"]
    with pytest.raises(NotFound, match="no split 'validation'; it has: test, train"):
        load_texts(str(tmp_path / "set"))


def test_a_folder_without_split_names_is_one_set_numbered_through(tmp_path: Path) -> None:
    for name in "cab":
        write(tmp_path, f"books/{name}.txt", f"{name}1\n{name}2\n")
    source = load_texts(str(tmp_path / "books"), limit=5)
    assert texts_of(source) == ["a1", "a2", "b1", "b2", "c1"]
    assert [example.index for example in source.examples] == [0, 1, 2, 3, 4]
    assert source.examples[4].text == "c1"
    assert (source.name, source.split) == ("books", "all")


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_counts_texts_and_reads_no_further(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": ["a", "", "b", "c"]}), path)
    else:
        good = {
            "txt": "a\n\nb\n",
            "jsonl": '{"text": "a"}\n{"text": ""}\n{"text": "b"}\n',
            "csv": 'text,n\na,1\n"",2\nb,3\n',
            "conllu": "".join(f"1\t{w}\t_\tX\t_\t_\t0\troot\t_\t_\n\n" for w in ("a", " ", "b")),
        }[kind]
        path.write_bytes(good.encode() + b"\xff,,,\n")
    source = load_texts(str(path), limit=2)
    assert [(example.index, example.text) for example in source.examples] == [(0, "a"), (2, "b")]
    assert source.skipped == 1


def test_the_digest_changes_with_anything_selected_and_with_nothing_else(tmp_path: Path) -> None:
    def digest(content: str) -> str:
        return load_texts(write(tmp_path, "a.jsonl", content), limit=2).digest

    first = digest('{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n')
    assert digest('{"label": 1, "text": "a"}\n\n{"text": "b", "label": 2}\n{"text": "c"}\n') == first
    assert digest('{"text": "a", "label": 1}\n{"text": "b ", "label": 2}\n') != first
    assert digest('{"text": "a", "label": 1}\n{"text": "b", "label": 3}\n') != first
    assert digest('{"text": "b", "label": 2}\n{"text": "a", "label": 1}\n') != first


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_a_file_that_changes_after_loading_is_refused(tmp_path: Path, kind: str) -> None:
    def write_text(text: str) -> None:
        if kind == "txt":
            path.write_text(text)
        else:
            pq.write_table(pa.table({"text": [text]}), path)

    path = tmp_path / f"a.{kind}"
    write_text("old")
    os.utime(path, ns=(1, 1))
    examples = load_texts(str(path)).examples
    assert examples[0].text == "old"
    write_text("new")
    with pytest.raises(Unreadable, match="changed while it was being read"):
        examples[0]


def test_a_json_file_holds_a_list_of_records_or_of_strings_or_json_lines(tmp_path: Path) -> None:
    records = load_texts(write(tmp_path, "a.json", '\ufeff [{"text": "a", "n": 1}, {"text": "b", "n": [null]}]'))
    assert [(e.index, e.text, e.extra) for e in records.examples] == [(0, "a", {"n": 1}), (1, "b", {"n": [None]})]
    strings = load_texts(write(tmp_path, "b.json", '["a", null, " ", "d\\n"]'))
    assert [(e.index, e.text) for e in strings.examples] == [(0, "a"), (3, "d\n")]
    assert strings.skipped == 2
    lines = load_texts(write(tmp_path, "c.json", '{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n'))
    assert [(e.text, e.extra) for e in lines.examples] == [("a", {"n": 1}), ("b", {"n": 2})]


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_null_texts_are_passed_over_as_blank_ones_are_and_rows_keep_their_numbers(tmp_path: Path, kind: str) -> None:
    texts = [None, "a", "\u00a0", "b", None]
    rows = [{"text": text, "id": None if text is None else text} for text in texts]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        source = load_texts(tmp_path / "a.parquet")
    else:
        content = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
        source = load_texts(write(tmp_path, f"a.{kind}", content))
    assert [(e.index, e.text) for e in source.examples] == [(1, "a"), (3, "b")]
    assert source.skipped == 3


def test_the_text_may_be_a_part_of_a_column(tmp_path: Path) -> None:
    rows = [
        {"a": {"b": {"c": "deep"}, "n": 1}},
        {"a": None},
        {"a": {"b": None}},
        {"a": {"b": {"c": "last"}, "n": None}},
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    source = load_texts(path, text_column="a.b.c")
    assert [(e.index, e.text, e.extra) for e in source.examples] == [(0, "deep", rows[0]), (3, "last", rows[3])]
    whole = load_texts(write(tmp_path, "b.jsonl", '{"a.b": "dots", "a": {"b": "part"}}'), text_column="a.b")
    assert texts_of(whole) == ["dots"]
    with pytest.raises(Unreadable, match=r"line 1: nothing where the text 'a.x' should be; a has: b, n"):
        load_texts(path, text_column="a.x")
    with pytest.raises(Unreadable, match=r"line 1: nothing where .*; a.n is of type int, which has no part 'x'"):
        load_texts(path, text_column="a.n.x")
    with pytest.raises(NotFound, match="no column 'x'"):
        load_texts(path, text_column="x.b")


def test_what_describes_a_data_set_beside_its_files_is_no_part_of_it(tmp_path: Path) -> None:
    write(tmp_path, "set/train.jsonl", '{"text": "a"}\n')
    write(tmp_path, "set/dataset_infos.json", '{"default": {}}')
    assert texts_of(load_texts(tmp_path / "set")) == ["a"]
    write(tmp_path, "set/more.json", '["b"]')
    with pytest.raises(Unreadable, match=r"mixes .json and .jsonl files"):
        load_texts(tmp_path / "set")


def test_a_time_of_day_keeps_its_nanoseconds(tmp_path: Path) -> None:
    at = pa.array([86_399_999_999_999, None, 5], pa.time64("ns"))
    pq.write_table(pa.table({"text": ["a", "b", "c"], "at": at}), tmp_path / "a.parquet")
    examples = load_texts(tmp_path / "a.parquet").examples
    assert [example.extra["at"] for example in examples] == ["23:59:59.999999999", None, "00:00:00.000000005"]
