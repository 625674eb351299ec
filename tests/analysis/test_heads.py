"""Head metrics against closed forms and against their definitions, cell by cell."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.plain_heads import Sees, causal, everything, plain_metrics, random_patterns
from traceformer.analysis.conventions import CONVENTIONS, ConventionName
from traceformer.analysis.head_metrics import HeadMetrics
from traceformer.analysis.head_tally import Measurement
from traceformer.analysis.heads import METRICS, Geometry, block_sums
from traceformer.analysis.visibility import Visibility
from traceformer.errors import NumericError, Unsupported, UsageError

CAUSAL = Visibility(causal=True)
DTYPES = (np.float16, np.float32, np.float64)


def measure(
    pattern: np.ndarray | torch.Tensor,
    sight: Visibility = CAUSAL,
    tokens: np.ndarray | None = None,
    convention: ConventionName = "exact",
    aligned: bool = True,
) -> HeadMetrics:
    layers, heads, queries, keys = pattern.shape
    with Measurement("dec.self", range(layers), range(heads), convention=CONVENTIONS[convention]) as measurement:
        measurement.add(pattern, Geometry(queries, keys, sight, aligned, tokens))
        return measurement.metrics()


def metrics_of(found: HeadMetrics, row: int) -> dict[str, float]:
    """The metrics of one head, without thresholds in their names."""
    return {name: float(found.values[found.column(name)][row]) for name in METRICS}


def only(found: HeadMetrics) -> dict[str, float]:
    """The metrics of the only head."""
    assert len(found.rows) == 1
    return metrics_of(found, 0)


def uniform(n: int) -> np.ndarray:
    return (np.tri(n) / np.arange(1, n + 1)[:, None])[None, None]


def previous(n: int) -> np.ndarray:
    pattern = np.eye(n, k=-1)
    pattern[0, 0] = 1
    return pattern[None, None]


def tolerance(convention: ConventionName, dtype: type) -> float:
    # float16 holds 1 / n rounded. Rows are divided by their sums, so that its metrics are as exact as float32's, but
    # for nanochat's, whose rows stay as they are; its 1e-8 in logarithms takes up to 1e-5 off an entropy
    # over 1024 keys.
    return 1e-6 if convention != "nanochat" else 1e-3 if dtype is np.float16 else 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_uniform_causal_attention_has_its_closed_forms(dtype: type, convention: ConventionName) -> None:
    n, rel = 1024, tolerance(convention, dtype)
    found = only(measure(uniform(n).astype(dtype), convention=convention))
    entropy = math.lgamma(n + 1) / n  # the mean of ln 1 .. ln n
    assert found["entropy"] == pytest.approx(entropy, rel=rel)
    assert entropy == pytest.approx(5.935754, abs=5e-7)
    # Of nanochat's: a weight of 1 / i is sparse from i = 101 on.
    sparsity = {"exact": 0, "thesis": 0.499512, "nanochat": 1 - 100 * 101 / 2 / n**2}[convention]
    assert found["sparsity"] == pytest.approx(sparsity, abs=5e-7)
    assert found["distance"] == pytest.approx(255.75, rel=rel)
    harmonic = sum(1 / i for i in range(1, n + 1))
    assert found["max_weight"] == pytest.approx(harmonic / n, rel=rel)
    assert found["self"] == pytest.approx(harmonic / n, rel=rel)
    assert found["first_token"] == pytest.approx(harmonic / n, rel=rel)
    assert found["previous_token"] == pytest.approx((harmonic - 1) / (n - 1), rel=rel)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_attention_to_oneself_has_its_closed_forms(dtype: type, convention: ConventionName) -> None:
    n, rel = 1024, tolerance(convention, dtype)
    found = only(measure(np.eye(n)[None, None].astype(dtype), convention=convention))
    cells = n * (n + 1) / 2 if convention == "exact" else n * n
    assert found["entropy"] == pytest.approx(0, abs=1e-6)
    assert found["sparsity"] == pytest.approx(1 - n / cells, rel=1e-9)
    assert found["distance"] == pytest.approx(0, abs=1e-6)
    assert found["self"] == pytest.approx(1, rel=rel)
    assert found["previous_token"] == found["effective_span"] == 0
    assert found["first_token"] == pytest.approx(1 / n, rel=rel)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_attention_to_the_token_before_has_its_closed_forms(dtype: type, convention: ConventionName) -> None:
    n, rel = 1024, tolerance(convention, dtype)
    found = only(measure(previous(n).astype(dtype), convention=convention))
    assert found["entropy"] == pytest.approx(0, abs=1e-6)
    assert found["distance"] == pytest.approx((n - 1) / n, rel=rel)
    assert found["previous_token"] == pytest.approx(1, rel=rel)
    assert found["effective_span"] == 1
    assert found["local_mass"] == pytest.approx(1, rel=rel)


def test_an_induction_head_on_a_repeated_text_scores_one() -> None:
    half = 20
    tokens = np.tile(np.arange(half), 2)
    pattern = np.zeros((2 * half, 2 * half))
    pattern[:half, 0] = 1
    for query in range(half, 2 * half):
        pattern[query, query - half + 1] = 1
    found = only(measure(pattern[None, None], tokens=tokens))
    assert found["induction"] == 1
    assert found["retrieval"] == 1  # what follows the same token is what comes next
    assert found["duplicate_token"] == 0
    found = only(
        measure(
            (np.eye(2 * half, k=-half) + np.eye(2 * half) * (np.arange(2 * half) < half))[None, None], tokens=tokens
        )
    )
    assert found["duplicate_token"] == 1
    assert found["induction"] == 0


@pytest.mark.parametrize("sees", [causal, everything])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("n", [1, 2, 5, 33, 50])
def test_metrics_are_their_definitions(sees: Sees, dtype: type, convention: ConventionName, n: int) -> None:
    pattern = random_patterns((2, 3, n, n), sees).astype(dtype)
    tokens = np.random.default_rng(n).integers(0, 6, n)
    found = measure(pattern, Visibility(causal=sees is causal), tokens, convention)
    tolerance = 1e-10 if dtype is np.float64 else 2e-6  # sums of up to 50 float32 numbers
    for layer in range(2):
        for head in range(3):
            expected = plain_metrics(pattern[layer, head], tokens.tolist(), sees, convention)
            got = metrics_of(found, 3 * layer + head)
            assert expected.keys() == METRICS.keys()
            assert got == pytest.approx(expected, rel=tolerance, abs=tolerance, nan_ok=True)


@pytest.mark.parametrize("sight", [Visibility(causal=True, window=6), Visibility(causal=False, window=3)])
def test_cells_outside_of_a_sliding_window_do_not_count(sight: Visibility) -> None:
    def sees(query: int, key: int) -> bool:
        return 0 <= query - key < 6 if sight.causal else abs(query - key) <= 3

    pattern = random_patterns((1, 1, 40, 40), sees)
    tokens = np.random.default_rng(1).integers(0, 4, 40)
    expected = plain_metrics(pattern[0, 0], tokens.tolist(), sees)
    assert only(measure(pattern, sight, tokens)) == pytest.approx(expected, rel=1e-10)


def test_across_two_texts_only_what_needs_no_common_positions_has_a_meaning() -> None:
    pattern = random_patterns((1, 1, 7, 11), everything)
    found = only(measure(pattern, Visibility(causal=False), aligned=False))
    expected = plain_metrics(pattern[0, 0], None, everything)
    assert {name: found.pop(name) for name in expected} == pytest.approx(expected, rel=1e-10)
    assert len(found) == 8
    assert all(math.isnan(value) for value in found.values())


def test_without_tokens_nothing_is_said_of_repeated_ones() -> None:
    found = only(measure(random_patterns((1, 1, 9, 9))))
    assert [name for name, value in found.items() if math.isnan(value)] == [
        "duplicate_token",
        "induction",
        "retrieval",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_tensors_give_what_arrays_give(dtype: torch.dtype, convention: ConventionName) -> None:
    with torch.inference_mode():  # as while recording
        tensor = torch.from_numpy(random_patterns((2, 3, 40, 40))).to(dtype)
    tokens = np.random.default_rng(0).integers(0, 5, 40)
    of_tensor = measure(tensor, tokens=tokens, convention=convention)
    of_array = measure(tensor.float().numpy(), tokens=tokens, convention=convention)
    for name, values in of_array.values.items():
        assert of_tensor.values[name] == pytest.approx(values, rel=1e-5, abs=1e-6)


@given(cuts=st.sets(st.integers(1, 69)), wide=st.booleans())
@settings(max_examples=20, deadline=None)
def test_rows_may_come_in_any_blocks(cuts: set[int], wide: bool) -> None:
    n = 70
    pattern = random_patterns((2, 3, n, n))
    geometry = Geometry(n, n, CAUSAL, tokens=np.arange(n) % 7)
    whole = measure(pattern, tokens=np.arange(n) % 7)
    with Measurement("dec.self", (4, 9), (0, 1, 2)) as measurement:
        for i, layer in enumerate((4, 9)):
            for first, stop in zip((0, *sorted(cuts)), (*sorted(cuts), n), strict=True):
                block = pattern[i, :, first:stop, : n if wide else stop]
                measurement.add(block, geometry, layer=layer, first=first, stop=stop)
        found = measurement.metrics()
    for name, values in whole.values.items():
        assert found.values[name] == pytest.approx(values, rel=1e-10)


def test_long_rows_are_cut_into_tiles_without_a_seam() -> None:
    pattern = random_patterns((1, 5, 600, 600)).astype(np.float32)
    tokens = np.random.default_rng(0).integers(0, 50, 600)
    found = measure(pattern, tokens=tokens)
    a = pattern[0].astype(np.float64)
    offset = np.arange(600) - np.arange(600)[:, None]
    same = (tokens[:, None] == tokens) & (offset < 0)
    assert found.values["distance"] == pytest.approx((a * -offset).sum((1, 2)) / 600, rel=1e-5)
    assert found.values["self"] == pytest.approx(a.diagonal(axis1=1, axis2=2).mean(1), rel=1e-5)
    assert found.values["duplicate_token"] == pytest.approx((a * same).sum((1, 2)) / same.any(1).sum(), rel=1e-5)
    assert found.values["max_weight"] == pytest.approx(a.max(2).mean(1), rel=1e-5)


def test_the_thesis_weighs_examples_and_the_others_weigh_queries() -> None:
    examples = [random_patterns((1, 1, n, n), seed=n) for n in (30, 3)]
    for convention in CONVENTIONS:
        with Measurement("dec.self", (0,), (0,), convention=CONVENTIONS[convention]) as measurement:
            for pattern in examples:
                n = pattern.shape[-1]
                measurement.add(pattern, Geometry(n, n, CAUSAL))
            found = measurement.metrics()
        weights = (1, 1) if convention == "thesis" else (30, 3)
        each = [plain_metrics(pattern[0, 0], range(30), causal, convention) for pattern in examples]
        expected = np.average([own["entropy"] for own in each], weights=weights)
        assert found.values["entropy"][0] == pytest.approx(expected, rel=1e-10)
        assert (found.about.examples, found.about.queries) == ({"dec.self": 2}, {"dec.self": 33})


def test_a_later_example_may_be_longer() -> None:
    n = 12
    with Measurement("dec.self", (0,), (0,)) as measurement:
        for pattern in (np.eye(1), np.eye(n, k=-(n - 1)) + np.eye(n) * (np.arange(n) < n - 1)):
            own = len(pattern)
            measurement.add(pattern[None, None], Geometry(own, own, CAUSAL))
        found = only(measurement.metrics())
    assert found["distance"] == pytest.approx((n - 1) / (n + 1))
    assert found["effective_span"] == 0  # of 13 queries, 12 look at themselves


def test_a_query_that_looks_nowhere_is_an_error() -> None:
    pattern = uniform(8)
    pattern[0, 0, 5] = 0
    with pytest.raises(NumericError, match="adds up to nothing"):
        measure(pattern)
    pattern[0, 0, 5] = np.nan
    with pytest.raises(NumericError, match="adds up to nothing"):
        measure(pattern)


def test_a_decoder_that_looks_ahead_is_an_error() -> None:
    with pytest.raises(Unsupported, match="later token"):
        measure(random_patterns((1, 1, 9, 9), everything))


def test_nothing_to_measure_is_an_error() -> None:
    with Measurement("dec.self", (0,), (0,)) as measurement, pytest.raises(UsageError, match="no attention to measure"):
        measurement.metrics()
    with pytest.raises(UsageError, match="window"):
        Measurement("dec.self", (0,), (0,), window=-1)


def test_sums_of_halves_are_those_of_the_whole() -> None:
    pattern = random_patterns((3, 20, 20))
    geometry = Geometry(20, 20, CAUSAL)
    halves = block_sums(pattern[:, :11, :11], geometry) + block_sums(pattern[:, 11:], geometry, 11)
    whole = block_sums(pattern, geometry)
    assert halves.direct == pytest.approx(whole.direct, rel=1e-10)
    assert halves.profile == pytest.approx(whole.profile, rel=1e-10)
