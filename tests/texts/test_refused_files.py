"""A user's own files that are refused, with the place; and any bytes at all: read, or refused in our own words."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.texts.test_files import KINDS, write
from traceformer.errors import TraceformerError, Unreadable
from traceformer.texts.load import load_texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\n \n\t\n", "holds no text; all 3 of its rows are blank"),
        ("a.jsonl", b"\n\n", "holds no text|no column"),
        ("a.csv", b"text\n", "holds no text"),
        ("a.txt", "fine\nna\u00efve\n".encode("latin1"), "line 2 holds 0xef, 2 bytes into the line and 7 into"),
        ("a.csv", "text\nna\u00efve\n".encode("latin1"), "not UTF-8; line 2"),
        ("a.jsonl", "fine".encode("utf-16"), "not UTF-8; line 1 holds 0xff"),
        ("a.conllu", b"# \xff\n", "not UTF-8; line 1"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', "line 3: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2: a JSON list, not an object"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2: nothing where the text 'text' should be"),
        ("a.jsonl", b'{"text": {"b": "a"}}\n', "line 1: a value of type dict where the text"),
        ("a.json", b'["a", {"text": "b"}]', "entry 1: a JSON dict, not the string it should be; a list of strings"),
        ("a.json", b'[{"text": "a"}, "b"]', "entry 1: a JSON str, not the object"),
        ("a.json", b'[["a"]]', "entry 0: a JSON list, not the string"),
        ("a.json", b'{\n "text": "a"\n}', "neither a list of records or strings, nor JSON lines"),
        ("a.json", b'"a"', "neither a list of records or strings, nor JSON lines"),
        ("a.json", b'["a"', "is not JSON"),
        ("a.json", b'[]', "holds no text|no column"),
        ("a.json", b'["\xff"]', "is not UTF-8"),
        ("a.parquet.gz", b"x", "is compressed; Parquet files are, inside; unpack it"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}\n', "line 2: a value of type int where the text"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', "line 1: half a surrogate pair"),
        ("a.jsonl", b'{"text": "a", "id": 1}\n{"text": "b"}\n', "line 2: no value in the id column 'id'"),
        ("a.jsonl", b'{"text": "a", "id": 1}\n\n{"text": "b", "id": "1"}\n', "id '1' occurs twice: .* 1 and .* 3"),
        ("a.csv", b"text,example_id\na,x\nb,y\nc,x\n", "id 'x' occurs twice: .*line 2 and .*line 4"),
        ("a.csv", b"text,n\na,1\nb\n", "line 3: not CSV; the header has 2 columns, this row has 1"),
        ("a.csv", b"text,n\nhello, world,1\n", "line 2: not CSV.*quotes around texts"),
        ("a.csv", b'text,n\n"a,1\n', "not CSV"),
        ("a.csv", b"text,text\na,b\n", "names text more than once"),
        ("a.parquet", b"not a Parquet file", "not a readable Parquet file"),
        ("a.docx", b"x", "of no kind that can be read; give .txt, .jsonl"),
        ("folder/a.docx", b"x", "no texts in the folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write(tmp_path, name, content)
    with pytest.raises(TraceformerError, match=message):
        load_texts(str(tmp_path / name.split("/")[0]))


CLUTTER = [
    "{",
    "}",
    "[",
    '"',
    '"text":',
    '"a"',
    ",",
    "text",
    "\t",
    "\n",
    "\n\n",
    "1",
    "1-2",
    "1.1",
    "_",
    "#",
    "\ufeff",
    "\0",
    "\r",
]


BYTES = st.one_of(st.binary(), st.lists(st.sampled_from(CLUTTER)).map(lambda parts: "".join(parts).encode()))


@pytest.mark.parametrize("kind", KINDS)
@given(content=BYTES)
def test_any_bytes_are_read_or_refused_in_our_own_words(
    tmp_path_factory: pytest.TempPathFactory, kind: str, content: bytes
) -> None:
    _read_or_refused(tmp_path_factory.getbasetemp(), kind, content)


@pytest.mark.parametrize("kind", ["json", "tsv", "jsonl.gz", "txt.zst"])
@settings(max_examples=20)
@given(content=BYTES)
def test_so_are_those_of_further_kinds(tmp_path_factory: pytest.TempPathFactory, kind: str, content: bytes) -> None:
    _read_or_refused(tmp_path_factory.getbasetemp(), kind, content)
    if kind == "jsonl.gz":
        _read_or_refused(tmp_path_factory.getbasetemp(), kind, gzip.compress(content))


def _read_or_refused(folder: Path, kind: str, content: bytes) -> None:
    path = write(folder, f"clutter.{kind}", content)
    try:
        examples = load_texts(path).examples
    except TraceformerError as error:
        outcome = str(error)
    else:
        outcome = f"{len(examples)} texts in clutter.{kind}"
        assert all(example.text.strip() for example in examples)
    assert f"clutter.{kind}" in outcome


def test_json_that_only_python_refuses_is_refused_with_its_line(tmp_path: Path) -> None:
    for value in ("1" * 5000, "[" * 100_000):
        with pytest.raises(Unreadable, match="line 1: not JSON"):
            load_texts(write(tmp_path, "a.jsonl", f'{{"text": {value}}}'))


def test_parquet_without_strings_or_with_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(Unreadable, match="row 0: a value of type int"):
        load_texts(str(path))
    pq.write_table(pa.table({"text": ["some text that is long enough"] * 1000}), path, compression="zstd")
    damaged = bytearray(path.read_bytes())
    damaged[20:60] = b"\xff" * 40
    path.write_bytes(damaged)
    with pytest.raises(Unreadable, match="not a readable Parquet file"):
        load_texts(str(path))


def test_a_folder_of_mixed_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "kinds/a.txt", "a\n")
    write(tmp_path, "kinds/b.csv", "text\nb\n")
    with pytest.raises(Unreadable, match=r"mixes .csv and .txt files"):
        load_texts(str(tmp_path / "kinds"))
    write(tmp_path, "splits/train.txt", "a\n")
    write(tmp_path, "splits/more.txt", "b\n")
    with pytest.raises(Unreadable, match=r"others do not, such as more.txt"):
        load_texts(str(tmp_path / "splits"))


def test_a_damaged_file_among_several_is_named(tmp_path: Path) -> None:
    write(tmp_path, "set/a.jsonl", '{"text": "a"}\n')
    write(tmp_path, "set/b.jsonl", '{"text": "b"}\n{"text":\n')
    with pytest.raises(Unreadable, match=r"b.jsonl, line 2: not JSON"):
        load_texts(str(tmp_path / "set"))


def test_columns_with_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(Unreadable, match="several columns called text"):
        load_texts(tmp_path / "a.parquet")
