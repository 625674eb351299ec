"""The four named data sets, read from copies in the Hub's own layout through the same code as the Hub."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.texts.hub_copy import CSQA_ROW, CSQA_SCHEMA, EMOTIONS, UD_ROWS, UD_SCHEMA
from traceformer.errors import Unreadable, UsageError
from traceformer.texts.load import load_texts
from traceformer.texts.named import NAMED_SETS


@pytest.mark.usefixtures("hub")
def test_ud_ewt_text_is_rebuilt_with_multiword_tokens_and_without_empty_nodes() -> None:
    source = load_texts("ud_ewt", split="validation")
    assert [example.text for example in source.examples] == [row["text"] for row in UD_ROWS]
    assert (source.name, source.split) == ("ud_ewt", "validation")


@pytest.mark.usefixtures("hub")
def test_ud_ewt_keeps_its_annotations_and_where_each_word_is() -> None:
    example = load_texts("ud_ewt").examples[0]
    assert example.extra["words"] == ["I", "do", "n't", "know", "."]
    assert [example.text[start:end] for start, end in example.extra["word_offsets"]] == example.extra["words"]
    for column in ("upos", "xpos", "feats", "head", "deprel", "lemmas", "sent_id"):
        assert example.extra[column] == UD_ROWS[0][column]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("asked", ["validation", "dev", None])
def test_ud_ewt_ids_do_not_depend_on_what_the_split_is_called(asked: str | None) -> None:
    example = load_texts("ud_ewt", split=asked).examples[1]
    assert example.example_id == hashlib.sha1(b"ud_ewt::validation::1::(Yes!)").hexdigest()[:16]


def test_ud_ewt_of_older_revisions_reads_like_the_present_one(hub: Path) -> None:
    present = load_texts("ud_ewt").examples
    tags = sorted({tag for row in UD_ROWS for tag in row["upos"]})
    older = [
        row | {"head": [str(head) for head in row["head"]], "upos": [tags.index(tag) for tag in row["upos"]]}
        for row in UD_ROWS
    ]
    schema = UD_SCHEMA.set(UD_SCHEMA.get_field_index("head"), pa.field("head", pa.list_(pa.string())))
    schema = schema.set(schema.get_field_index("upos"), pa.field("upos", pa.list_(pa.int64())))
    folder = hub / "universal-dependencies/universal_dependencies"
    pq.write_table(pa.Table.from_pylist(older, schema=schema), folder / "parquet/en_ewt/dev.parquet")
    names = "".join(f"            '{number}': {name}\n" for number, name in enumerate(tags))
    strings = "".join(f"  - name: {name}\n    sequence: string\n" for name in schema.names if name not in _STRUCTURED)
    (folder / "README.md").write_text(
        "---\ndataset_info:\n- config_name: en_ewt\n  features:\n"
        "  - name: sent_id\n    dtype: string\n  - name: text\n    dtype: string\n"
        f"  - name: upos\n    sequence:\n      class_label:\n          names:\n{names}{strings}"
        "  - name: mwt\n    list:\n"
        + _struct("id form feats misc")
        + "  - name: empty_nodes\n    list:\n"
        + _struct("id form lemma upos xpos feats")
        + "    - name: head\n      dtype: uint16\n"
        + _struct("deprel deps misc")
        + "configs:\n- config_name: en_ewt\n  data_files:\n  - split: dev\n    path: parquet/en_ewt/dev.parquet\n---\n"
    )
    assert list(load_texts("ud_ewt").examples) == list(present)


_STRUCTURED = ("sent_id", "text", "upos", "mwt", "empty_nodes")


def _struct(names: str) -> str:
    return "".join(f"    - name: {name}\n      dtype: string\n" for name in names.split())


@pytest.mark.usefixtures("hub")
def test_ud_ewt_from_the_treebanks_own_files_is_the_same(tmp_path: Path) -> None:
    columns = ("tokens", "lemmas", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
    lines: list[str] = []
    for row in UD_ROWS:
        lines.append(f"# sent_id = {row['sent_id']}")
        spans = {int(token["id"][0]): token for token in row["mwt"]}
        for number, word in enumerate(zip(*(row[column] for column in columns), strict=True), start=1):
            if number in spans:
                lines.append(f"{spans[number]['id']}\t{spans[number]['form']}" + "\t_" * 8)
            lines.append("\t".join(("_" if value is None else str(value)) for value in (number, *word)))
        lines.append("")
    folder = tmp_path / "ud_ewt"
    folder.mkdir()
    (folder / "en_ewt-ud-dev.conllu").write_text("\n".join(lines), encoding="utf-8")
    (folder / "LICENSE.txt").write_text("CC BY-SA 4.0")
    own, hub = load_texts(str(folder)), load_texts("ud_ewt")
    assert list(own.examples) == list(hub.examples)
    assert (own.name, own.split, own.digest) == (hub.name, hub.split, hub.digest)


@pytest.mark.usefixtures("hub")
def test_go_emotions_keeps_labels_as_numbers_names_and_flags() -> None:
    example = load_texts("go_emotions").examples[1]
    assert example.text == "Thank you, I love it!"
    assert example.extra["labels_idx"] == [15, 18]
    assert example.extra["labels_names"] == ["gratitude", "love"]
    assert [name for name, flag in zip(EMOTIONS, example.extra["labels_multihot"], strict=True) if flag] == [
        "gratitude",
        "love",
    ]
    assert example.example_id == hashlib.sha1(f"go_emotions::validation::1::{example.text}".encode()).hexdigest()[:16]


@pytest.mark.usefixtures("hub")
def test_csqa_has_the_prompt_id_and_columns_of_the_padded_store() -> None:
    example = load_texts("csqa").examples[0]
    question = CSQA_ROW["question"]
    assert example.text == (
        f"Q: {question}\nChoices:\nA: bank\nB: library\nC: department store\nD: mall\nE: new york\nAnswer:"
    )
    assert example.example_id == hashlib.md5(f"validation::0::{question}".encode()).hexdigest()
    assert example.extra["answerKey"] == "A"
    assert example.extra["csqa_choices"][2] == {"label": "C", "text": "department store"}
    assert load_texts("csqa", split="test").examples[0].extra["answerKey"] == ""


def test_csqa_with_four_choices_is_refused(hub: Path) -> None:
    short = CSQA_ROW | {"choices": {"label": list("ABCD"), "text": ["a", "b", "c", "d"]}}
    file = hub / "tau/commonsense_qa/data/validation-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([CSQA_ROW, short], schema=CSQA_SCHEMA), file)
    with pytest.raises(Unreadable, match="row 1: 4 choices"):
        load_texts("csqa")


@pytest.mark.usefixtures("hub")
def test_wikitext_keeps_its_texts_exactly_and_passes_over_blank_ones() -> None:
    source = load_texts("wikitext")
    assert [(example.index, example.text) for example in source.examples] == [
        (1, " = Robert Boulter = \n"),
        (3, " Robert Boulter is an English film actor . \n"),
    ]
    assert source.skipped == 2


def test_a_repository_that_lacks_a_column_is_refused_with_its_name(hub: Path) -> None:
    file = hub / "Salesforce/wikitext/wikitext-2-raw-v1/validation-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).rename_columns(["page"]), file)
    with pytest.raises(Unreadable, match=r"no column text; it has: page"):
        load_texts("wikitext")


@pytest.mark.parametrize("name", ["demo", *NAMED_SETS])
def test_a_text_column_is_refused_where_the_set_makes_its_own_text(name: str) -> None:
    with pytest.raises(UsageError, match="`text_column`"):
        load_texts(name, text_column="text")
