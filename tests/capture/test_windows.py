"""Windows of a file, against the file's own bytes and the tokenizer's own ids."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from traceformer.bytelm.tokenizer import ByteTokenizer
from traceformer.capture.windows import file_windows
from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel


@pytest.fixture(scope="module")
def byte_model(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    from traceformer.models.tiny import tiny_model

    folder = tmp_path_factory.mktemp("bytes")
    tiny_model("llama", vocab_size=258).save_pretrained(folder)
    ByteTokenizer().save_pretrained(folder)
    return load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def text_model(tiny_folder: Callable[..., Path]) -> LoadedModel:
    return load_model(str(tiny_folder("gpt2")), device="cpu")


def ids_of(loaded: LoadedModel, *arguments: object) -> list[list[int]]:
    return [row.ids["dec"] for row in file_windows(loaded, *arguments)]  # pyright: ignore[reportArgumentType]


def test_windows_of_a_byte_model_are_the_bytes_of_the_last_tenth(byte_model: LoadedModel, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 1005).astype(np.uint8).tobytes()  # no UTF-8
    path = tmp_path / "data.bin"
    path.write_bytes(data)
    start = 904  # 90 % of 1005, rounded down
    assert ids_of(byte_model, path, 30, 2) == [list(data[start : start + 30]), list(data[start + 30 : start + 60])]
    assert len(ids_of(byte_model, path, 30, 100)) == 3  # 101 bytes
    assert ids_of(byte_model, path, 30, 1, "train") == [list(data[:30])]
    assert len(ids_of(byte_model, path, 30, 100, "train")) == 30
    assert len(ids_of(byte_model, path, 30, 100, "all")) == 33
    (row,) = file_windows(byte_model, path, 30, 1)
    assert len(row.tokens["dec"]) == 30


def test_windows_of_text_follow_one_another(text_model: LoadedModel, tmp_path: Path) -> None:
    text = " ".join(f"word{i} the cat said {i * i}, and é" for i in range(900))
    path = tmp_path / "data.txt"
    path.write_text(text, encoding="utf-8")
    expected = text_model.tokenizer(text)["input_ids"]
    windows = ids_of(text_model, path, 40, 7, "all")
    assert windows == [expected[first : first + 40] for first in range(0, 280, 40)]
    assert ids_of(text_model, path, 40, 10_000, "all") == [
        expected[first : first + 40] for first in range(0, len(expected) - 39, 40)
    ]


def test_a_cut_character_does_not_begin_a_window(text_model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"x" * 899 + "é".encode() + b"the cat said that the cat said that " * 3)
    unknown = text_model.tokenizer.unk_token_id
    assert unknown not in ids_of(text_model, path, 4, 1)[0]


def test_windows_that_cannot_be_are_refused(byte_model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    with pytest.raises(NotFound, match="no file"):
        ids_of(byte_model, path, 30, 1)
    path.write_bytes(b"x" * 100)
    with pytest.raises(Unreadable, match=r"the last tenth of .* has no 30 tokens"):
        ids_of(byte_model, path, 30, 1)
    with pytest.raises(UsageError, match="reads 64 tokens"):
        ids_of(byte_model, path, 65, 1)
    path.write_bytes(b"")
    with pytest.raises(Unreadable, match="it holds 0 bytes"):
        ids_of(byte_model, path, 30, 1, "all")
