"""Tables as text: what separates their columns is found or asked about, never guessed."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traceformer.errors import Unreadable
from traceformer.texts.load import load_texts

TEXTS = ["Hello, you; and | others", 'He said "no"\tand left', "two\nlines", "x", "1,5"]


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t", "|", "^", "~", "\x01", "\x1f"])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_what_separates_columns_is_found_and_agrees_with_pandas(tmp_path: Path, mark: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    frame = pd.DataFrame({"label": range(len(TEXTS)), "text": TEXTS})
    frame.to_csv(path, sep=mark, index=False, encoding="utf-8-sig")
    source = load_texts(path)
    read = pd.read_csv(path, sep=mark, encoding="utf-8-sig", dtype=str)
    assert [e.text for e in source.examples] == TEXTS == read.text.tolist()
    assert [e.extra["label"] for e in source.examples] == read.label.tolist()
    assert source.examples[2].text == TEXTS[2]  # read again, from the middle of the file


@settings(max_examples=25)
@given(
    st.sampled_from(",;\t|"),
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1), min_size=1, max_size=5),
)
def test_whatever_the_texts_hold_they_come_back(
    tmp_path_factory: pytest.TempPathFactory, mark: str, texts: list[str]
) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=mark, quoting=csv.QUOTE_ALL)
    writer.writerows([["text", "n"], *([text, str(n)] for n, text in enumerate(texts))])
    kept = [text for text in texts if text.strip()]
    path = write(tmp_path_factory.getbasetemp(), "any.csv", stream.getvalue())
    if kept:
        assert [example.text for example in load_texts(path).examples] == kept


def test_of_several_the_one_that_fits_the_rows_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text;price, net\nHello, you, and you;1\nB;2\n")
    assert load_texts(path).examples[0].extra == {"price, net": "1"}
    path = write(tmp_path, "a.tsv", "text\tprice, net\nHello, you\t1\n")
    assert load_texts(path).examples[0].extra == {"price, net": "1"}


def test_where_several_fit_or_none_the_file_is_refused_and_can_say_it_itself(tmp_path: Path) -> None:
    both = "text,a;b\nHello,x;y\n"
    with pytest.raises(Unreadable, match=r"do commas or semicolons separate its columns.*so have the rows.*sep=;"):
        load_texts(write(tmp_path, "a.csv", both))
    with pytest.raises(Unreadable, match=r"do commas or semicolons .*neither as often"):
        load_texts(write(tmp_path, "a.csv", "text,a;b\nHello\n"))
    assert load_texts(write(tmp_path, "a.csv", f"sep=,\r\n{both}")).examples[0].extra == {"a;b": "x;y"}
    assert (
        load_texts(write(tmp_path, "a.csv", f'\ufeff"sep=;"\n{both}'), text_column="text,a").examples[0].text
        == "Hello,x"
    )
    assert load_texts(write(tmp_path, "a.csv", 'text,"a;b"\nHello,x\n')).examples[0].extra == {"a;b": "x"}


def test_a_single_column_needs_no_delimiter(tmp_path: Path) -> None:
    source = load_texts(write(tmp_path, "a.csv", 'text\n"one, two"\nthree; four\nfive\tsix\n'))
    assert [example.text for example in source.examples] == ["one, two", "three; four", "five\tsix"]
    with pytest.raises(Unreadable, match=r"line 2: not CSV; the header has 1 columns, this row has 2.*contain commas"):
        load_texts(write(tmp_path, "a.csv", "text\nHello, you\n"))
    with pytest.raises(Unreadable, match=r"line 3: not CSV.*contain semicolons"):
        load_texts(write(tmp_path, "a.csv", "text;n\na;1\nb;c;2\n"))


def test_rows_that_a_quote_would_swallow_are_refused(tmp_path: Path) -> None:
    """GLUE's tables have tabs and know no quotes; a reader that does makes one text of two rows."""
    swallowed = 'id\ttext\n1\t"Hello\n2\tWorld"\n'
    assert len(pd.read_csv(io.StringIO(swallowed), sep="\t")) == 1
    with pytest.raises(Unreadable, match="lines 2 to 3: one text in quotes, or several rows"):
        load_texts(write(tmp_path, "a.tsv", swallowed))
    source = load_texts(write(tmp_path, "a.tsv", 'id\ttext\n1\t"Hello\nWorld"\n'))
    assert [example.text for example in source.examples] == ["Hello\nWorld"]
