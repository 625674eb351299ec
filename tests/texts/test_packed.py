"""Compressed files are read as what is in them, as far as it is asked for."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from traceformer.errors import OutOfSpace, Unreadable
from traceformer.texts.load import load_texts

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.mark.parametrize("end", PACK)
def test_a_compressed_file_gives_the_examples_of_the_file_itself(tmp_path: Path, end: str) -> None:
    rows = [{"text": f"{n} " * (n * 97 % 3000), "n": n} for n in range(100)]
    for name, content in (
        ("rows.jsonl", "\n".join(map(json.dumps, rows))),
        ("rows.json", json.dumps(rows)),
        ("rows.tsv", "text\tn\n" + "".join(f"{row['text']}\t{row['n']}\n" for row in rows)),
    ):
        (tmp_path / name).write_text(content)
        middle = len(content) // 2  # two parts, one after the other, are a file, too
        packed = PACK[end](content[:middle].encode()) + PACK[end](content[middle:].encode())
        (tmp_path / f"{name}.{end}").write_bytes(packed)
        plain, found = load_texts(tmp_path / name), load_texts(tmp_path / f"{name}.{end}")
        assert list(found.examples) == list(plain.examples)
        assert (found.name, found.digest, found.skipped) == (plain.name, plain.digest, 1)
        assert found.examples[-1] == plain.examples[-1]


@pytest.mark.parametrize("end", PACK)
def test_a_damaged_file_is_refused_and_nothing_behind_the_limit_is_read(tmp_path: Path, end: str) -> None:
    content = b"".join(b"%d %s\n" % (n, random.randbytes(10_000).hex().encode()) for n in range(60))
    path = tmp_path / f"a.txt.{end}"
    path.write_bytes(PACK[end](content)[:-20])
    assert load_texts(path, limit=1).examples[0].text.startswith("0 ")
    with pytest.raises(Unreadable, match=f"cannot be unpacked.*damaged, or no .{end} file"):
        load_texts(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(Unreadable, match=f"cannot be unpacked.*damaged, or no .{end} file"):
        load_texts(path)
    path.write_bytes(PACK[end](b""))
    with pytest.raises(Unreadable, match="holds no text"):
        load_texts(path)


def test_a_full_disk_is_said_with_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a text\n"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(OutOfSpace, match=r"no room to unpack .*TMPDIR"):
        load_texts(path)


def test_a_folder_may_hold_compressed_files_but_not_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "test.txt.gz").write_bytes(gzip.compress(b"b\n"))
    assert [load_texts(tmp_path, split=split).examples[0].text for split in ("train", "test")] == ["a", "b"]
    (tmp_path / "train.txt.xz").write_bytes(lzma.compress(b"a\n"))
    with pytest.raises(Unreadable, match=r"has train.txt and train.txt.xz; leave one"):
        load_texts(tmp_path, split="train")
