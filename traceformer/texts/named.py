"""The data sets that have a name of their own: where each lies on the Hub, and how its rows become examples.

Ids and the csqa prompt are those of Transformer-Decision-Traces, so that runs of both can be compared.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from traceformer.errors import Unreadable
from traceformer.texts import conllu
from traceformer.texts.examples import Described, Example, MakeExample, Row, example_maker, make_id

__all__ = ["DEMO_FILE", "NAMED_SETS", "Classed", "NamedSet", "make_named"]

DEMO_FILE = Path(__file__).with_name("demo.jsonl")


@runtime_checkable
class Classed(Described, Protocol):
    """What is known of rows in which classes may be numbers."""

    def class_names(self, column: str) -> list[str] | None:
        """Returns the names behind a column of class numbers, or of lists of them; None if it holds none."""
        ...


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A data set on the Hub, the columns it must have, and the function that turns its rows into examples."""

    repository: str
    config: str | None
    columns: tuple[str, ...]
    maker: Callable[[Classed, str], MakeExample]


def make_named(named: NamedSet, rows: Classed, split: str) -> MakeExample:
    """Returns the function that makes examples of a named set's rows; it refuses those that are not laid out so."""
    make = named.maker(rows, split)

    def checked(row: Row, index: int) -> Example:
        try:
            return make(row, index)
        except Unreadable:
            raise
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise Unreadable(
                f"{rows.where(index)}: not laid out as {named.repository} is", why=f"{type(error).__name__}: {error}"
            ) from error

    return checked


def _ud_ewt(rows: Classed, split: str) -> MakeExample:
    upos_names = rows.class_names("upos")

    def make(row: Row, index: int) -> Example:
        words = row["tokens"]
        spaces = [conllu.has_space_after(misc) for misc in row["misc"]]
        spans: dict[int, conllu.Span] = {}
        for token in row["mwt"]:
            first, last = map(int, token["id"].split("-"))
            if not first <= last <= len(words):
                raise Unreadable(f"{rows.where(index)}: no words {token['id']} for a multiword token")
            spans[first] = conllu.Span(last, token["form"], conllu.has_space_after(token["misc"]))
        annotations = {
            "lemmas": row["lemmas"],
            # Class numbers in older revisions of the repository, names now.
            "upos": [upos_names[upos] for upos in row["upos"]] if upos_names else row["upos"],
            "xpos": row["xpos"],
            "feats": row["feats"],
            "deprel": row["deprel"],
            # Strings in older revisions, numbers now.
            "head": [None if head in (None, "_", "None") else int(head) for head in row["head"]],
        }
        if any(len(values) != len(words) for values in (spaces, *annotations.values())):
            raise Unreadable(f"{rows.where(index)}: its columns differ in length")
        sentence = conllu.sentence_row(words, spaces, spans, sent_id=row["sent_id"], annotations=annotations)
        text = sentence.pop("text")
        return Example(make_id("ud_ewt", split, index, text), index, text, sentence)

    return make


def _go_emotions(rows: Classed, split: str) -> MakeExample:
    names = rows.class_names("labels")
    if names is None:
        raise Unreadable(f"{rows.label}: the column 'labels' does not name its classes")

    def make(row: Row, index: int) -> Example:
        text, labels = row["text"] or "", row["labels"]
        extra = {
            "labels_idx": labels,
            "labels_names": [names[label] for label in labels],
            "labels_multihot": [int(label in labels) for label in range(len(names))],
            "comment_id": row["id"],
        }
        return Example(make_id("go_emotions", split, index, text), index, text, extra)

    return make


def _csqa(rows: Classed, split: str) -> MakeExample:
    def make(row: Row, index: int) -> Example:
        if row["question"] is None:
            return Example("", index, "", {})
        question, choices = row["question"], _pairs(row["choices"])
        if len(choices) != 5:
            raise Unreadable(f"{rows.where(index)}: {len(choices)} choices, where csqa has 5")
        listed = "\n".join(f"{letter}: {choice['text']}" for letter, choice in zip("ABCDE", choices, strict=True))
        extra = {
            "answerKey": row["answerKey"],
            "csqa_choices": choices,
            "question": question,
            "question_concept": row["question_concept"],
        }
        # Identifies the question, as the reference did; not used for security.
        example_id = hashlib.md5(f"{split}::{index}::{question}".encode(), usedforsecurity=False).hexdigest()
        return Example(example_id, index, f"Q: {question}\nChoices:\n{listed}\nAnswer:", extra)

    return make


def _pairs(choices: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    return [{"label": label, "text": text} for label, text in zip(choices["label"], choices["text"], strict=True)]


def _wikitext(rows: Classed, split: str) -> MakeExample:
    return example_maker(rows, "wikitext", split, text_column="text", own_ids=False)


NAMED_SETS: Mapping[str, NamedSet] = {
    "ud_ewt": NamedSet(
        "universal-dependencies/universal_dependencies",
        "en_ewt",
        ("sent_id", "tokens", "lemmas", "upos", "xpos", "feats", "head", "deprel", "misc", "mwt"),
        _ud_ewt,
    ),
    "go_emotions": NamedSet(
        "google-research-datasets/go_emotions", "simplified", ("text", "labels", "id"), _go_emotions
    ),
    "csqa": NamedSet("tau/commonsense_qa", None, ("question", "question_concept", "choices", "answerKey"), _csqa),
    "wikitext": NamedSet("Salesforce/wikitext", "wikitext-2-raw-v1", ("text",), _wikitext),
}
