"""Where training text comes from, how it is split, and that nothing held out was trained on."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traceformer.bytelm.corpus import Corpus, Span, Split, open_corpus, separate
from traceformer.bytelm.pydoc_texts import pydoc_texts
from traceformer.errors import NotFound, Unreadable
from traceformer.store.beside import cache_folder

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def prose(seed: int, n_words: int = 60) -> bytes:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words)).encode()


def parts(corpus: Corpus) -> tuple[Span, Span, Span]:
    return corpus.train, corpus.validation, corpus.test


def documents_of(span: Span) -> set[bytes]:
    ids = span.tokens(0, len(span))
    pieces = np.split(ids, np.flatnonzero(ids == 256))
    return {piece[piece < 256].astype(np.uint8).tobytes() for piece in pieces} - {b""}


@pytest.mark.parametrize(("split", "sizes"), [("standard", (90_000, 5_000, 5_000)), ("thesis", (90_000, 10_000, 0))])
def test_a_file_is_cut_where_the_split_says(tmp_path: Path, split: Split, sizes: tuple[int, ...]) -> None:
    content = random.Random(0).randbytes(100_000)
    (tmp_path / "file").write_bytes(content)
    corpus = open_corpus(str(tmp_path / "file"), split=split)
    assert tuple(len(span) for span in parts(corpus)) == sizes
    assert b"".join(span.data.tobytes() for span in parts(corpus)) == content
    assert sum(span.n_bytes for span in parts(corpus)) == 100_000


def test_a_file_is_mapped_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(50_000_000)
    data = open_corpus(str(tmp_path / "sparse")).train.data
    assert isinstance(data, np.memmap)
    assert data.dtype == np.uint8


def test_files_of_a_folder_become_documents_between_separators(tmp_path: Path) -> None:
    texts = {f"sub{i % 3}/{i}.txt": prose(i) for i in range(100)}
    for name, text in texts.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_bytes(text)
    (tmp_path / "texts/image.png").write_bytes(b"\x89PNG\0\0" + bytes(100))
    (tmp_path / "texts/.hidden").write_bytes(b"secret " * 500)
    corpus = open_corpus(str(tmp_path / "texts"))
    found = [documents_of(span) for span in parts(corpus)]
    assert set.union(*found) == set(texts.values())
    assert sum(map(len, found)) == 100  # each on one side only
    assert all(found)
    assert corpus.train.tokens(0, 1).tolist() == [256]


def test_the_names_of_files_do_not_decide_the_split(tmp_path: Path) -> None:
    for i in range(30):
        for folder, name in (("a", i), ("b", 29 - i)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name:02d}.txt").write_bytes(prose(i))
    first, second = (open_corpus(str(tmp_path / folder)) for folder in "ab")
    assert first.digest == second.digest


def test_a_folder_that_grew_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_bytes(prose(i))
    before = open_corpus(str(folder))
    (folder / "more.txt").write_bytes(prose(77))
    assert open_corpus(str(folder)).digest != before.digest
    assert len(list(cache_folder().iterdir())) == 2


def test_documents_that_share_a_paragraph_stay_together_and_copies_are_dropped() -> None:
    shared = b"This paragraph stands in two documents, so no cut between documents may part them from each other."
    texts = [prose(i) for i in range(20)]
    texts[3] += b"\n\n" + shared
    texts[17] = shared.replace(b" ", b"\n") + b"\n\n" + texts[17]
    order = separate([*texts, texts[5], texts[5]])
    assert sorted(order) == sorted(texts)
    assert abs(order.index(texts[3]) - order.index(texts[17])) == 1


@given(st.lists(st.binary(min_size=1, max_size=12), max_size=12), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_documents_follows_from_their_content(texts: list[bytes], shuffle: random.Random) -> None:
    shuffled = shuffle.sample(texts, len(texts))
    assert separate(texts) == separate(shuffled)
    assert set(separate(texts)) == set(texts)


def test_a_zero_byte_of_the_text_is_not_a_separator() -> None:
    span = Span(np.array([0, 65, 0, 66, 0], np.uint8), np.array([0, 4]))
    assert span.tokens(0, 5).tolist() == [256, 65, 0, 66, 256]
    assert span.tokens(1, 4).tolist() == [65, 0, 66]
    assert span.part(2, 5).tokens(0, 3).tolist() == [0, 66, 256]
    assert (span.n_bytes, len(span)) == (3, 5)


def test_pydoc_texts_are_topics_then_docstrings_in_the_order_of_the_source(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    (tmp_path / "b.py").write_text('"""Module."""\nclass C:\n    """Class."""\n    def f(self):\n        """One."""\n')
    (tmp_path / "a.py").write_text('async def g():\n    """One."""\n\ndef h():\n    """Two\n\n    lines."""\n')
    (tmp_path / "bad.py").write_text("def (:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/t.py").write_text('"""Left out."""\n')
    texts = list(pydoc_texts(tmp_path))
    assert texts[: len(topics)] == [topics[name].strip().encode() for name in sorted(topics)]
    assert texts[len(topics) :] == [b"One.\n\nTwo\n\nlines.", b"Module.\n\nClass."]


@pytest.mark.slow
def test_pydoc_holds_out_no_paragraph_that_it_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus("pydoc")
    assert corpus.train.n_bytes > 1_000_000
    paragraphs = [
        {b" ".join(p.split()) for document in documents_of(span) for p in document.split(b"\n\n") if len(p) > 80}
        for span in parts(corpus)
    ]
    shared = paragraphs[0] & (paragraphs[1] | paragraphs[2])
    assert len(shared) <= 0.01 * len(paragraphs[1] | paragraphs[2])
    assert open_corpus("pydoc").digest == corpus.digest


def no_file(folder: Path) -> str:
    return str(folder / "missing")


def empty_file(folder: Path) -> str:
    (folder / "empty").touch()
    return str(folder / "empty")


def tiny_file(folder: Path) -> str:
    (folder / "tiny").write_bytes(b"too little")
    return str(folder / "tiny")


def binary_folder(folder: Path) -> str:
    (folder / "binary").mkdir()
    (folder / "binary/x").write_bytes(bytes(5000))
    return str(folder / "binary")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (no_file, NotFound, "no data"),
        (empty_file, Unreadable, "is empty"),
        (tiny_file, Unreadable, "10 bytes of text; at least 1000 are needed"),
        (binary_folder, NotFound, "no text files in the folder"),
    ],
)
def test_data_that_cannot_be_used_is_refused(
    make: Callable[[Path], str], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        open_corpus(make(tmp_path))
    assert not cache_folder().exists() or os.listdir(cache_folder()) == []
