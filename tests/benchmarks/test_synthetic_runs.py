"""Runs that no model has made are whole runs, with patterns as a causal model has them, and texts that fit."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from traceformer.store.run import Run
from traceformer.store.sizes import estimated_bytes
from traceformer.texts.shown import pieces_of_text

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LENGTHS = (40, 96, 7)


@pytest.fixture(scope="module")
def synthetic_runs() -> ModuleType:
    sys.path.append(str(BENCHMARKS))
    try:
        import synthetic_runs  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(BENCHMARKS))
    return synthetic_runs


@pytest.fixture(scope="module")
def run(synthetic_runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Run:
    shape = synthetic_runs.Shape(LENGTHS, layers=3, heads=4, width=8)
    return Run(synthetic_runs.write_run(tmp_path_factory.mktemp("runs") / "tiny", shape))


def test_it_is_as_the_store_wrote_it(run: Run) -> None:
    assert run.verify().ok
    assert run.finished
    assert [run.length(example) for example in range(run.n)] == [*LENGTHS]


def test_patterns_are_causal_and_their_rows_sum_to_one(run: Run) -> None:
    for example, n in enumerate(LENGTHS):
        patterns = run.attn(example)
        assert patterns.shape == (3, 4, n, n)
        assert not np.triu(patterns, 1).any()
        np.testing.assert_allclose(patterns.sum(-1), 1, atol=2e-3)  # of float16


def test_one_head_looks_at_what_came_after_the_same_token(run: Run) -> None:
    ids = run.encodings(1)["input_ids"]
    places = [(q, k) for q in range(len(ids)) for k in range(1, q + 1) if ids[k - 1] == ids[q]]
    queries = len({q for q, _ in places})
    mass = sum(run.attn(1)[:, :, q, k] for q, k in places) / queries
    assert queries > 10
    assert mass.max() > 0.5
    assert np.median(mass) < 0.25


def test_what_enters_a_layer_is_what_left_the_one_before(run: Run) -> None:
    for layer in range(2):
        np.testing.assert_array_equal(run.activations("resid_post", layer), run.activations("resid_pre", layer + 1))
    np.testing.assert_array_equal(run.activations("embed"), run.activations("hidden", 0))


def test_tokens_are_the_text_and_some_are_hard_to_show(run: Run) -> None:
    names, shown = [], []
    for example in range(run.n):
        encodings = run.encodings(example)
        pieces = pieces_of_text(encodings["tokens"], encodings["offset_mapping"], run.text(example), byte_level=False)
        names += encodings["tokens"]
        shown += [piece.text for piece in pieces]
        plain = "".join(piece.text for piece in pieces[1:] if piece.hex is None)
        assert pieces[0].text == "<s>"
        assert plain == run.text(example).replace("🙂", "")
    assert {"\n", "\\xf0", "▁日本語"} <= {*shown, *names}
    assert max(map(len, shown)) > 40


def test_as_many_examples_are_made_as_fill_a_size(synthetic_runs: ModuleType) -> None:
    shape = synthetic_runs.LIKE["wide"].of_size(10e9)
    estimated = estimated_bytes(shape.layout, {"dec": shape.lengths})
    assert 10e9 <= estimated < 10.3e9
    assert 256 <= min(shape.lengths) <= max(shape.lengths) == 512
