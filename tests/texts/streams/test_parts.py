"""Each kind of file as a part of a stream: the rows that it has when it is not streamed, from any number on."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traceformer.errors import Unreadable
from traceformer.texts.files import open_files
from traceformer.texts.load import load_texts
from traceformer.texts.streams.load import open_stream
from traceformer.texts.streams.parts import Found, file_part

ROWS = [{"text": f"text {n} " * (n % 7), "n": n, "even": n % 2 == 0} for n in range(60)]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}
CONLLU = "".join(f"# sent_id = {n}\n1\tword{n}\t_\tX\t_\t_\t0\troot\t_\t_\n\n" for n in range(12))
CONTENT = {
    ".jsonl": "\n\n".join(map(json.dumps, ROWS)) + "\n",
    ".json": "\n".join(map(json.dumps, ROWS)),
    ".txt": "\n".join(f"line {n}" if n % 5 else "" for n in range(40)),
    ".csv": "text,n\n" + "".join(f'"a, ""b""\nsecond line {n}",{n}\n' for n in range(30)),
    ".tsv": "text\tn\n" + "".join(f"a {n}\t{n}\n" for n in range(30)),
    ".conllu": CONLLU,
}


def rows_from(path: Path, kind: str, start: int) -> list[dict[str, Any]]:
    return [dict(found.row) for found in file_part(path, kind).read(start)]


@pytest.mark.parametrize("end", PACK)
@pytest.mark.parametrize("kind", CONTENT)
def test_a_file_of_lines_has_the_same_rows_from_any_number_on(tmp_path: Path, kind: str, end: str) -> None:
    path = tmp_path / f"a{kind}{end}"
    path.write_bytes(PACK[end](CONTENT[kind].encode()))
    whole = [dict(row) for row in open_files([path], "it")]
    assert len(whole) > 10
    for start in (0, 1, 7, len(whole) - 1, len(whole), len(whole) + 5):
        assert rows_from(path, kind, start) == whole[start:]


def test_records_say_the_lines_that_they_stand_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n\n{"text": "b"}\n')
    assert [found.place for found in file_part(path, ".jsonl").read(0)] == ["line 1", "line 4"]
    assert [found.place for found in file_part(path, ".jsonl").read(1)] == ["line 4"]


def test_a_parquet_file_is_read_from_any_row_on_and_no_row_group_before_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
    for start in (0, 1, 6, 7, 8, 59, 60, 61):
        assert rows_from(path, ".parquet", start) == ROWS[start:]
    # The first row group damaged: what lies behind it can still be read.
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    assert rows_from(path, ".parquet", 7) == ROWS[7:]
    with pytest.raises(Unreadable, match=r"a\.parquet, from row 0 on: it cannot be read"):
        rows_from(path, ".parquet", 0)


@pytest.mark.parametrize("end", [".gz", ".bz2", ".xz", ".zst"])
def test_a_packed_file_that_breaks_in_the_middle_gives_what_comes_before_and_says_where(
    tmp_path: Path, end: str
) -> None:
    lines = [json.dumps({"text": random.Random(n).randbytes(4000).hex()}) for n in range(300)]
    packed = PACK[end]("\n".join(lines).encode())
    path = tmp_path / f"a.jsonl{end}"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    found: list[Found] = []
    with pytest.raises(Unreadable, match=rf"a\.jsonl{end}, after line \d+: the rest cannot be read") as refused:
        found.extend(taking(file_part(path, ".jsonl").read(0), found))
    assert f"after line {len(found)}" in refused.value.message
    assert 50 < len(found) < 200
    assert [json.dumps(dict(each.row)) for each in found] == lines[: len(found)]


@pytest.mark.parametrize("end", [".gz", ".bz2", ".xz", ".zst"])
def test_a_packed_file_of_which_nothing_can_be_read_says_no_line(tmp_path: Path, end: str) -> None:
    path = tmp_path / f"a.jsonl{end}"
    packed = PACK[end](b'{"text": "a"}\n')
    for damaged in (packed[: len(packed) // 2], b"no such file" * 9):
        path.write_bytes(damaged)
        with pytest.raises(Unreadable, match=rf"a\.jsonl{end}: it cannot be read"):
            [*file_part(path, ".jsonl").read(0)]


def taking(records: Iterator[Found], into: list[Found]) -> Iterator[Found]:
    for record in records:
        into.append(record)
    return iter(())


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(Unreadable, match=r"a\.jsonl, line 2: not JSON"):
        rows_from(path, ".jsonl", 0)


def tar(path: Path, members: Sequence[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            told = tarfile.TarInfo(name)
            told.size = len(content)
            archive.addfile(told, io.BytesIO(content))
    return path


def texts_of(path: Path, **options: Any) -> list[Any]:
    return [came.example for came in open_stream(path, **options).read()]


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")]
)
def test_a_tar_of_texts_and_objects_is_read_record_by_record(tmp_path: Path, name: str, mode: str) -> None:
    path = tar(
        tmp_path / name,
        [
            ("d/0001.txt", b"first"),
            ("d/0001.json", b'{"label": 3}'),
            ("d/.hidden", b"x"),
            ("d/0002.json", b'{"label": 4, "text": "second"}'),
            ("d/0003.TXT", "dritte, grüße".encode()),
        ],
        mode,
    )
    examples = texts_of(path)
    assert [example.text for example in examples] == ["first", "second", "dritte, grüße"]
    assert [dict(example.extra) for example in examples] == [
        {"__key__": "d/0001", "label": 3},
        {"__key__": "d/0002", "label": 4},
        {"__key__": "d/0003"},
    ]
    kind = ".tgz" if name.endswith("tgz") else ".tar"
    for start in range(5):
        assert len(list(file_part(path, kind).read(start))) == max(0, 3 - start)
    assert [found.place for found in file_part(path, kind).read(2)] == ["record 2 (d/0003)"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("1.txt", b"a"), ("2.jpg", b"\xff")], r"record 1 \(2\.jpg\): no text"),
        ([("1.txt", b"a"), ("2.txt", b"\xff")], r"record 1 \(2\): its \.txt is not UTF-8"),
        ([("1.json", b"{"), ("2.txt", b"b")], r"record 0 \(1\): its \.json is not JSON"),
        ([("1.json", b"[1]")], r"record 0 \(1\): its \.json is no object"),
        ([("1.txt", b"a"), ("1.json", b'{"text": "b"}')], r"record 0 \(1\): its \.txt is another text"),
        ([("1.txt", b"a"), ("1.txt", b"b")], r"record 0 \(1\.txt\): a second member of this name"),
    ],
)
def test_a_member_of_a_tar_that_is_no_text_is_named(
    tmp_path: Path, members: Sequence[tuple[str, bytes]], words: str
) -> None:
    with pytest.raises(Unreadable, match=rf"a\.tar, {words}"):
        texts_of(tar(tmp_path / "a.tar", members))


@pytest.mark.parametrize("kept", [0.3, 0.6, "before the end"])
def test_a_tar_that_was_cut_off_is_refused_wherever_that_was(tmp_path: Path, kept: float | str) -> None:
    path = tar(tmp_path / "a.tar", [(f"{n}.txt", b"x" * (700 * n + 1)) for n in range(20)])
    data = path.read_bytes()
    end = data.rstrip(b"\0")
    whole = -(-len(end) // 512) * 512  # all members, and none of the zeros that end an archive
    path.write_bytes(data[:whole] if isinstance(kept, str) else data[: int(len(end) * kept)])
    with pytest.raises(Unreadable, match=r"a\.tar, from record \d+ on: the rest cannot be read"):
        texts_of(path)


def test_a_list_in_a_file_is_not_streamed_and_an_empty_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["a", "b"]')
    with pytest.raises(Unreadable, match="is a list, which is held in memory"):
        open_stream(tmp_path / "a.json")
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(Unreadable, match=r"b\.jsonl is empty"):
        open_stream(tmp_path / "b.jsonl")
    (tmp_path / "c.xyz").write_text("a")
    with pytest.raises(Unreadable, match="no kind that can be streamed"):
        open_stream(tmp_path / "c.xyz")


def test_streamed_and_listed_examples_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for part in range(3):
        rows = [json.dumps({**row, "id": f"{part}-{row['n']}"}) for row in ROWS[part * 20 : part * 20 + 20]]
        (folder / f"part-{part}.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    listed = load_texts(folder)
    assert texts_of(folder) == list(listed.examples)
    assert texts_of(folder / "*.jsonl.gz") == list(listed.examples)  # ids are the rows' own
    assert open_stream(folder).name == listed.name == "texts"
