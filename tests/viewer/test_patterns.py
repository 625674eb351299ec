"""What the head screen is sent is what the run holds, to float equality; what it does not hold is refused in words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from tests.store.runs import as_read, plan, spec, truth
from tests.store.runs import write as write_run
from tests.viewer.small_runs import PATTERNS, Writing, pattern
from traceformer import record
from traceformer.errors import ExampleNotFound, NotRecorded, SelectionError, TraceformerError, Unsupported, UsageError
from traceformer.models.loaded import LoadedModel
from traceformer.store.run import Run
from traceformer.viewer.library import Library
from traceformer.viewer.query import Query
from traceformer.viewer.resources import alignment, patterns

TEXTS = [list("return the name"), list("return the big name"), list("0123456789")]


@pytest.fixture(scope="module", params=["squares", "triangles"])
def causal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Patterns of layers 1 and 3 in which no query sees a later key, stored in both ways."""
    triangles = [PATTERNS.key] if request.param == "triangles" else []
    run = Run(Writing(tmp_path_factory.mktemp("causal") / "run", TEXTS, triangles=triangles).finish())
    assert run.layout.is_triangle(PATTERNS) == bool(triangles)
    return run


@pytest.fixture(scope="module", params=["float16", "float32", "bfloat16", "sqrt8"])
def crossed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Squares, and patterns between two texts, of an encoder-decoder in each precision."""
    arrays = (spec("enc.self.attn_pattern"), spec("dec.cross.attn_pattern"))
    exact = {} if request.param == "sqrt8" else {"dtype": request.param}
    codec = {"attn_codec": "sqrt8"} if request.param == "sqrt8" else {}
    layout = plan("encdec", arrays, n_examples=3, shard_examples=2, **exact, **codec)
    return Run(write_run(tmp_path_factory.mktemp("crossed") / "run", layout))


def asked(resource: Any, run: Run, **fields: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays that a page is sent, as it reads them, and what is said of them."""
    stated = {"run": run.name, "ex": 0, "attn": "dec.self", "layer": 1, "head": 0} | fields
    packet = resource(Library.of(run), Query({name: str(value) for name, value in stated.items()}))
    return load(packet.to_bytes()), dict(packet.about)


def test_a_pattern_is_sent_as_the_numbers_that_were_written(causal: Run) -> None:
    for example in range(3):
        arrays, about = asked(patterns.matrix, causal, ex=example, layer=3, head=1)
        expected = pattern(example, 3, 1, len(TEXTS[example])).astype(np.float32)
        assert arrays["values"].dtype == np.float32
        np.testing.assert_array_equal(arrays["values"], expected)
        assert about == {
            "queries": len(expected),
            "keys": len(expected),
            "block": 1,
            "stored": "float16",
            "largest": expected.max(),
        }


def test_squares_and_patterns_between_texts_are_what_was_written(crossed: Run) -> None:
    for key in ("enc.self", "dec.cross"):
        array = crossed.spec(f"{key}.attn_pattern")
        written = as_read(crossed.layout, array, truth(crossed.layout, array, 2))[1, 2]  # layer 4, head 3
        arrays, about = asked(patterns.matrix, crossed, ex=2, attn=key, layer=4, head=3)
        np.testing.assert_array_equal(arrays["values"], written)
        assert (about["queries"], about["keys"]) == written.shape
        lines, _ = asked(patterns.row, crossed, ex=2, attn=key, layer=4, head=3, q=1, k=2)
        np.testing.assert_array_equal(lines["row"], written[1])
        np.testing.assert_array_equal(lines["column"], written[:, 2])


@pytest.fixture(scope="module")
def by_recipe(byte: LoadedModel) -> Run:
    """Patterns of layers 1 and 3 that are made anew whenever they are read."""
    run = record(byte, ["".join(tokens) for tokens in TEXTS], "attn", layers=[1, 3], patterns="recipe")
    assert run.layout.recipes
    return run


def test_a_pattern_by_recipe_is_sent_as_it_is_read(by_recipe: Run) -> None:
    for example in range(by_recipe.n):
        expected = by_recipe.attn(example, 3, 5)
        arrays, about = asked(patterns.matrix, by_recipe, ex=example, layer=3, head=5)
        assert arrays["values"].dtype == np.float32
        np.testing.assert_array_equal(arrays["values"], expected)
        assert (about["queries"], about["keys"]) == expected.shape
        assert (about["stored"], about["largest"]) == ("float16", expected.max())
        lines, _ = asked(patterns.row, by_recipe, ex=example, layer=3, head=5, q=7, k=2)
        np.testing.assert_array_equal(lines["row"], expected[7])
        np.testing.assert_array_equal(lines["column"], expected[:, 2])


def test_pictures_and_differences_of_patterns_by_recipe_are_of_what_is_read(
    by_recipe: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = by_recipe.attn(0, 1, 0), by_recipe.attn(0, 3, 1)
    arrays, _ = asked(patterns.difference, by_recipe, ex=0, ex2=0, layer2=3, head2=1)
    np.testing.assert_array_equal(arrays["values"], ours - theirs)
    monkeypatch.setattr(patterns, "_EXACT_CELLS", 10)
    arrays, about = asked(patterns.matrix, by_recipe)
    assert about["largest"] == ours.max()
    np.testing.assert_allclose(arrays["pixels"] / 255, np.sqrt(ours / ours.max()), atol=0.5 / 255 + 1e-7)


def test_a_long_text_is_sent_as_roots_in_bytes(crossed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_EXACT_CELLS", 10)
    monkeypatch.setattr(patterns, "_SMALL_SIDE", 16)
    monkeypatch.setattr(patterns, "_STRIP", 100)
    array = crossed.spec("dec.cross.attn_pattern")
    written = as_read(crossed.layout, array, truth(crossed.layout, array, 0))[0, 0].astype(np.float64)
    arrays, about = asked(patterns.matrix, crossed, attn="dec.cross")
    assert about["largest"] == written.max()
    assert arrays["pixels"].dtype == np.uint8
    np.testing.assert_allclose(arrays["pixels"] / 255, np.sqrt(written / written.max()), atol=0.5 / 255 + 1e-7)

    small, told = asked(patterns.matrix, crossed, attn="dec.cross", form="small")
    block = -(-max(written.shape) // 16)
    assert told["block"] == block
    expected = [
        [arrays["pixels"][i : i + block, j : j + block].max() for j in range(0, written.shape[1], block)]
        for i in range(0, written.shape[0], block)
    ]
    np.testing.assert_array_equal(small["pixels"], expected)


def test_a_difference_is_taken_where_tokens_are_the_same(causal: Run) -> None:
    arrays, about = asked(patterns.difference, causal, ex=0, ex2=1, layer2=3, head2=1)
    ours, theirs = causal.attn(0, layer=1, head=0), causal.attn(1, layer=3, head=1)
    where = {**{at: at for at in range(11)}, **{at: at + 4 for at in range(11, 15)}}  # " big" was put in behind "the"
    expected = np.full(ours.shape, np.nan, np.float32)
    for query, other_query in where.items():
        for key, other_key in where.items():
            expected[query, key] = ours[query, key] - theirs[other_query, other_key]
    np.testing.assert_array_equal(arrays["values"], expected)
    assert about["largest"] == np.abs(expected).max()
    assert (about["aligned_queries"], about["aligned_keys"], about["block"]) == (15, 15, 1)


def test_of_a_long_difference_each_block_shows_what_is_farthest_from_zero(
    causal: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, _ = asked(patterns.difference, causal, ex=1, ex2=0)
    monkeypatch.setattr(patterns, "_DIFFERENCE_SIDE", 5)
    monkeypatch.setattr(patterns, "_STRIP", 1)
    arrays, about = asked(patterns.difference, causal, ex=1, ex2=0)
    block = about["block"]
    assert block == 4
    for row, column in np.ndindex(arrays["values"].shape):
        cells = exact["values"][row * block : (row + 1) * block, column * block : (column + 1) * block].ravel()
        known = cells[~np.isnan(cells)]
        found = arrays["values"][row, column]
        if len(known):
            assert np.abs(found) == np.abs(known).max()
            assert found in known
        else:
            assert np.isnan(found)


def test_texts_without_a_common_token_have_no_difference(causal: Run) -> None:
    with pytest.raises(Unsupported, match="no token in common"):
        asked(patterns.difference, causal, ex=0, ex2=2)


def test_an_example_without_tokens_has_an_empty_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.store.runs.lengths", lambda layout, example: {"dec": 3 * (example != 1)})
    run = Run(write_run(tmp_path / "run", plan(arrays=(spec("dec.self.attn_pattern"),), n_examples=2)))
    arrays, about = asked(patterns.matrix, run, ex=1)
    assert arrays["values"].shape == (0, 0)
    assert about["largest"] == 0


def test_the_alignment_is_told_as_stretches(causal: Run) -> None:
    found = alignment.alignment(Library.of(causal), Query({"run": causal.name, "ex": "0", "ex2": "1"}))
    assert found["stacks"]["dec"] == [
        {"first": 0, "second": 0, "size": 11, "same": True},
        {"first": 11, "second": 15, "size": 4, "same": True},
    ]


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"layer": 0}, SelectionError, "layer 0 requested; there are layers 1,3 of dec.self.attn_pattern"),
        ({"head": 99}, SelectionError, "head 99 requested"),
        ({"attn": "dec.cross"}, NotRecorded, "not recorded"),
        ({"attn": "<img onerror=alert(1)>"}, UsageError, "img"),
        ({"ex": 7}, ExampleNotFound, "this run holds 3"),
        ({"q": 15}, SelectionError, "position 15 requested; there are positions 0-14 of the queries"),
        ({"k": -1}, SelectionError, "position -1 requested; there are positions 0-14 of the keys"),
        ({"q": "first"}, UsageError, "a whole number"),
    ],
)
def test_what_is_not_there_is_refused(
    fields: dict[str, Any], error: type[TraceformerError], words: str, causal: Run
) -> None:
    with pytest.raises(error, match=words):
        asked(patterns.row, causal, **{"q": 0, **fields})


def test_a_matrix_is_read_once(causal: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = causal.save(tmp_path / "run")
    library = Library.of(run)
    read: list[Any] = []
    get = Run.get
    monkeypatch.setattr(Run, "get", lambda self, *args, **named: read.append(args) or get(self, *args, **named))
    fields = {"run": run.name, "ex": "0", "attn": "dec.self", "layer": "1", "head": "0"}
    for resource, more in ((patterns.matrix, {}), (patterns.row, {"q": "3"}), (patterns.row, {"k": "3"})):
        resource(library, Query({**fields, **more}))
    assert len(read) == 1


def test_examples_are_asked_for_by_number_where_ids_are_numbers_too(tmp_path: Path) -> None:
    texts = [["a"], ["b", "c"], ["d"], ["e"], ["f"]]
    run = Run(Writing(tmp_path / "run", texts, ids=["1", "2", "0", "007", "9"]).finish())
    for named, number in {"0": 0, "1": 1, "2": 2, "007": 3, "9": 4}.items():
        arrays, _ = asked(patterns.matrix, run, ex=named, layer=1, head=1)
        np.testing.assert_array_equal(arrays["values"], pattern(number, 1, 1, len(texts[number])))
