"""What the live paths screen is sent is what `tf.paths` finds, and what cannot be searched is refused in words."""

import json
from typing import Any

import pytest

import traceformer as tf
from traceformer.errors import NotRecorded, SelectionError, TraceformerError, Unsupported, UsageError
from traceformer.presentation import plain
from traceformer.store.run import Run
from traceformer.viewer.library import Library
from traceformer.viewer.path_payloads import paths_payload
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer

TEXT = "return the name of the na"


@pytest.fixture(scope="module")
def library() -> Library:
    model = tf.load_model("byte", device="cpu")
    return Library.of(tf.record(model, [TEXT], capture="attn"))


@pytest.fixture(scope="module")
def run(library: Library) -> Run:
    return library.run(library.names()[0])


def asked(library: Library, **query: Any) -> Any:
    fields = {"run": library.names()[0], "ex": 0} | query
    while True:
        found = json.loads(answer(library, "paths", Query({name: str(value) for name, value in fields.items()})).body)
        if "pending" not in found:
            return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"to": 12, "top_beam": 9, "top_k": 2, "certify": True},
        {"to": 20, "layer": 2, "agg_heads": 6, "length_norm": "sqrt"},
        {"layer": 1, "agg_heads": "none", "min_attn": 0.05},
        {"layer": "all", "agg_heads": "max", "exclude_self": True},
        {"layer": 3, "exclude_sink": True, "exclude_self": True, "stop_at_bos": False},
        {"weighting": "rollout", "exclude_sink": True, "search": "exact"},
    ],
)
def test_the_answer_is_what_paths_finds_to_the_bit(options: dict[str, Any], library: Library, run: Run) -> None:
    fields = {"q" if name == "to" else name: int(v) if isinstance(v, bool) else v for name, v in options.items()}
    stated: dict[str, Any] = {"certify": False} | options
    expected = tf.paths(run, 0, **stated)
    for _ in range(2):  # from the store, and from what was kept
        assert asked(library, attn="dec.self", **fields) == plain(paths_payload(expected.to_json()))


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        ({"weighting": "value-norm"}, Unsupported, "the viewer loads none"),
        ({"agg_heads": 3}, UsageError, "followed across layers"),
        ({"layer": 2, "weighting": "rollout"}, UsageError, "rollout is across layers"),
        ({"q": 25}, UsageError, "the text has tokens 0-24"),
        ({"layer": 4}, SelectionError, "layers 0-3"),
        ({"attn": "enc.self"}, NotRecorded, "not recorded"),
        ({"top_beam": 0}, UsageError, "a whole number, 1 or more"),
        ({"top_k": "many"}, UsageError, "a whole number"),
        ({"min_attn": 2}, UsageError, "a number from 0 to 1"),
        ({"exclude_self": "yes"}, UsageError, "exclude_self"),
        ({"ex": 1}, TraceformerError, "this run holds 1"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    query: dict[str, Any], error: type[TraceformerError], words: str, library: Library
) -> None:
    with pytest.raises(error, match=words):
        asked(library, **query)


def test_a_run_that_lacks_layers_is_searched_in_those_it_has() -> None:
    library = Library.of(tf.record(tf.load_model("byte", device="cpu"), [TEXT], capture="attn", layers=[1, 3]))
    with pytest.raises(NotRecorded, match="stored: 1 3"):
        asked(library)
    assert asked(library, layer=3)["traces"][0]["layer"] == 3
