"""From a data set, its split, a limit and targets to examples."""

import subprocess
import sys
from pathlib import Path

import pytest

from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.texts.load import load_targets, load_texts


def test_the_demo_is_64_different_texts_on_many_topics_and_needs_no_split() -> None:
    source = load_texts("demo")
    texts = [example.text for example in source.examples]
    assert len(set(texts)) == 64
    assert len({example.extra["topic"] for example in source.examples}) > 10
    assert (source.name, source.split, source.skipped) == ("demo", "validation", 0)
    assert max(map(len, texts)) > 1000
    assert min(map(len, texts)) < 6
    assert any(ord(character) > 0xFFFF for character in "".join(texts))


def test_the_demo_has_one_split() -> None:
    assert load_texts("demo", split="validation", limit=3).digest == load_texts("demo", limit=3).digest
    with pytest.raises(NotFound, match="demo has no split 'train'; it has: validation"):
        load_texts("demo", split="train")


@pytest.mark.parametrize(
    ("dataset", "hint"),
    [
        ("ud_ewk", "did you mean ud_ewt"),
        ("go-emotions", "did you mean go_emotions"),
        ("tau/commonsense_qa", "write hf:tau/commonsense_qa"),
        ("nothing/like/this.txt", "give demo, ud_ewt"),
        ("bad\0name", "give demo"),
    ],
)
def test_an_unknown_data_set_is_refused_with_what_would_work(dataset: str, hint: str) -> None:
    with pytest.raises(NotFound, match=hint):
        load_texts(dataset)


def test_no_data_set_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="no data set was named; give demo"):
        load_texts("")


def test_an_unknown_file_proposes_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "reviews.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(NotFound, match=r"did you mean .*reviews\.jsonl"):
        load_texts(str(tmp_path / "review.jsonl"))


def test_a_name_too_long_for_a_file_is_refused() -> None:
    with pytest.raises((NotFound, Unreadable), match="x" * 50):
        load_texts("x" * 5000)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_selects_nothing_is_refused(limit: int) -> None:
    with pytest.raises(UsageError, match="selects nothing"):
        load_texts("demo", limit=limit)


def test_a_limit_beyond_the_end_takes_all() -> None:
    assert len(load_texts("demo", limit=1000).examples) == 64


def test_a_single_file_takes_the_split_that_the_user_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    path = str(tmp_path / "a.txt")
    assert load_texts(path).split == "all"
    assert load_texts(path, split="validation").split == "validation"
    with pytest.raises(UsageError, match="cannot name a split"):
        load_texts(path, split="../out")


def test_a_name_is_always_fit_for_a_folder(tmp_path: Path) -> None:
    for name, expected in (("..a b..txt", "a-b"), ("中文.txt", "texts"), ("v1.2_x.txt", "v1.2_x")):
        (tmp_path / name).write_text("a\n")
        assert load_texts(str(tmp_path / name)).name == expected


def test_targets_are_lines_by_row_and_further_ones_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "targets.txt"
    path.write_bytes(b"eins\r\n\nzwei \ndrei\n")
    assert load_targets(path, 3) == ["eins", "", "zwei "]
    assert load_targets(str(path), 4) == ["eins", "", "zwei ", "drei"]


def test_missing_targets_are_refused_with_both_counts(tmp_path: Path) -> None:
    path = tmp_path / "targets.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(Unreadable, match="has 2 lines, but 5 rows need one each; add the 3 missing lines"):
        load_targets(path, 5)
    path.write_bytes(b"")
    with pytest.raises(Unreadable, match="has 0 lines"):
        load_targets(path, 1)
    path.write_bytes(b"\xe4\n")
    with pytest.raises(Unreadable, match="not UTF-8"):
        load_targets(path, 1)
    with pytest.raises(NotFound, match="no targets file"):
        load_targets(tmp_path / "none.txt", 1)
    with pytest.raises(NotFound, match="no targets file"):
        load_targets(tmp_path, 1)


def test_loading_files_imports_neither_torch_nor_datasets(tmp_path: Path) -> None:
    code = (
        "import sys; from traceformer.texts.load import load_texts; load_texts('demo');"
        "sys.exit(', '.join({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
