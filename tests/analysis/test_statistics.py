"""Statistics against torch's own arithmetic, brute force, and the formulas of the nanochat traces."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.capture.asked import Extraction, extracted
from tests.tiny_folders import TEXTS
from traceformer import Selection, TraceStore
from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.run_statistics import ExampleLogits
from traceformer.analysis.statistics import AttentionTally, ValueTally, logit_statistics
from traceformer.analysis.visibility import Visibility
from traceformer.errors import ExampleNotFound, UsageError
from traceformer.models.tiny import TINY
from traceformer.questions.sights import sights_of
from traceformer.questions.statistics import statistics

EXACT, NANOCHAT = CONVENTIONS["exact"], CONVENTIONS["nanochat"]


def causal_patterns(seed: int, heads: int, length: int) -> np.ndarray:
    scores = torch.from_numpy(np.random.default_rng(seed).normal(size=(heads, length, length)) * 3)
    hidden = torch.ones(length, length).triu(1).bool()
    return scores.masked_fill(hidden, -torch.inf).softmax(-1).float().numpy()


def test_the_nanochat_convention_gives_what_its_formulas_give() -> None:
    pattern = causal_patterns(1, 3, 17)
    tally = AttentionTally(3, NANOCHAT, Visibility(causal=True))
    tally.add(pattern)
    found = tally.result()
    weights = torch.from_numpy(pattern)
    assert found.entropy == pytest.approx(-(weights * (weights + 1e-8).log()).sum(-1).mean(-1).numpy(), rel=1e-5)
    assert found.mean == pytest.approx(np.full(3, 1 / 17), rel=1e-6)
    assert found.max == pytest.approx(weights.amax((1, 2)).numpy())
    assert found.sparsity == pytest.approx((weights < 0.01).double().mean((1, 2)).numpy())

    values = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    values[0, :2] = 0
    numbers = ValueTally(NANOCHAT)
    numbers.add(values.numpy())
    told = numbers.result()
    expected = (values.mean(), values.std(), values.min(), values.max(), (values.abs() < 1e-6).double().mean())
    assert (told.mean, told.std, told.min, told.max, told.sparsity) == pytest.approx(tuple(map(float, expected)))


def test_the_exact_convention_equals_brute_force_over_the_cells_that_can_be_seen() -> None:
    pattern = causal_patterns(2, 2, 11)
    tally = AttentionTally(2, EXACT, Visibility(causal=True))
    tally.add(pattern)
    found = tally.result()
    for head in range(2):
        cells = [float(pattern[head, i, j]) for i in range(11) for j in range(i + 1)]
        entropy = [-sum(p * np.log(p) for p in map(float, row) if p > 0) for row in pattern[head]]
        assert found.mean[head] == pytest.approx(sum(cells) / 66)
        assert found.sparsity[head] == sum(p < 1e-4 for p in cells) / 66
        assert found.entropy[head] == pytest.approx(sum(entropy) / 11)


def test_even_and_single_minded_heads_have_the_entropies_of_the_book() -> None:
    length = 1024
    even = np.tril(np.ones((1, length, length), np.float32)) / np.arange(1, length + 1)[:, None].astype(np.float32)
    tally = AttentionTally(1, EXACT, Visibility(causal=True))
    tally.add(even)
    assert tally.result().entropy[0] == pytest.approx(np.log(np.arange(1, length + 1)).mean(), rel=1e-6)
    single = AttentionTally(1, EXACT, Visibility(causal=True))
    single.add(np.eye(length, dtype=np.float32)[None])
    assert single.result().entropy[0] == 0
    assert single.result().sparsity[0] == 1 - length / (length * (length + 1) / 2)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_examples_one_by_one_give_what_all_rows_together_give(seed: int, lengths: list[int]) -> None:
    patterns = [causal_patterns(seed + i, 2, length) for i, length in enumerate(lengths)]
    tally = AttentionTally(2, EXACT, Visibility(causal=True))
    for pattern in patterns:
        tally.add(pattern)
    rows = [[row for pattern in patterns for row in pattern[head]] for head in range(2)]
    entropies = [[-sum(float(p) * np.log(p) for p in row if p > 0) for row in own] for own in rows]
    assert tally.result().entropy == pytest.approx(np.mean(entropies, axis=1), abs=1e-6)
    assert tally.result().queries == sum(lengths)


@pytest.mark.parametrize("size", [1, 2, 1000, (1 << 20) + 77])
def test_std_does_not_cancel_far_from_zero(size: int) -> None:
    values = (1e4 + np.random.default_rng(0).normal(size=(size, 1))).astype(np.float32)
    tally = ValueTally(EXACT)
    for part in np.array_split(values, 3):
        if len(part):
            tally.add(part)
    assert tally.result().count == size
    assert tally.result().std == pytest.approx(np.std(values.astype(np.float64)), rel=1e-9)


def test_too_little_gives_nan_and_no_warning() -> None:
    assert np.isnan(ValueTally(EXACT).result().mean)
    one = ValueTally(NANOCHAT)
    one.add(np.ones((1, 1), np.float32))
    assert np.isnan(one.result().std)
    assert np.isnan(AttentionTally(2, EXACT, Visibility(causal=True)).result().entropy).all()


def test_rows_that_are_not_known_do_not_count() -> None:
    pattern = causal_patterns(3, 2, 8)
    gaps = pattern.copy()
    gaps[:, 2:5] = np.nan
    tally, expected = (AttentionTally(2, EXACT, Visibility(causal=True)) for _ in range(2))
    tally.add(gaps)
    for rows in (slice(0, 2), slice(5, 8)):
        expected.add(pattern[:, rows, : rows.stop])
    assert tally.result().queries == 5
    assert tally.result().entropy == pytest.approx(expected.result().entropy)
    assert tally.result().sparsity == pytest.approx(expected.result().sparsity)
    values, whole = ValueTally(EXACT), ValueTally(EXACT)
    values.add(np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32))
    whole.add(np.array([[1, 2], [3, 4]], np.float32))
    assert values.result() == whole.result()


def test_logits_agree_with_torch() -> None:
    logits = torch.randn(40, 301, generator=torch.Generator().manual_seed(3)) * 4
    came = torch.randint(0, 301, (40,), generator=torch.Generator().manual_seed(4))
    found = logit_statistics(logits.numpy(), np.append(came.numpy()[:-1], -1), EXACT, top=5)
    p = logits.double().softmax(-1)
    best = p.topk(5)
    assert found.entropy == pytest.approx(torch.distributions.Categorical(p).entropy().numpy())
    assert np.array_equal(found.top_ids, best.indices.numpy())
    assert found.top_probabilities == pytest.approx(best.values.numpy())
    assert found.target_probability[:-1] == pytest.approx(p[torch.arange(40), came].numpy()[:-1])
    order = logits.argsort(-1, descending=True)
    ranks = [int((order[i] == came[i]).nonzero()) + 1 for i in range(39)]
    assert found.target_rank.tolist() == [*ranks, 0]
    assert np.isnan(found.target_probability[-1])
    nanochat = logit_statistics(logits.numpy(), came.numpy(), NANOCHAT)
    assert nanochat.entropy == pytest.approx(-(p * (p + 1e-8).log()).sum(-1).numpy(), rel=1e-6)


def test_of_equally_likely_tokens_the_lower_id_comes_first() -> None:
    logits = np.array([[2, 1, 2, 0, 1, 1]], np.float16)
    found = logit_statistics(logits, np.array([4]), EXACT, top=4)
    assert found.top_ids.tolist() == [[0, 2, 1, 4]]
    assert found.target_rank.tolist() == [4]


def test_a_position_without_logits_says_nothing() -> None:
    logits = np.array([[np.nan] * 3, [0, 0, 0]], np.float32)
    found = logit_statistics(logits, np.array([1, 1]), EXACT, top=1)
    assert np.isnan(found.entropy[0])
    assert (found.top_ids[0, 0], found.target_rank[0]) == (-1, 0)
    assert found.entropy[1] == pytest.approx(np.log(3))


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="tokens up to 3, of 3"):
        logit_statistics(np.zeros((1, 3), np.float32), np.array([3]), EXACT, top=1)


def record(folder: Path, texts: Path, out: Path, **options: object) -> TraceStore:
    request = {"selection": Selection(("attn", "resid_post", "logits")), "dataset": str(texts), "limit": 4}
    request |= {"model": str(folder), "dtype": "float32", "device": "cpu", "out_dir": out, **options}
    return TraceStore(extracted(Extraction(**request)))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return path


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *[(family, {}) for family in ("gpt2", "mistral", "gemma2", "modernbert", "bert", "t5")],
        ("gemma3_text", {"use_bidirectional_attention": True, "sliding_window": 8}),
    ],
)
def test_no_weight_lies_where_a_query_is_said_to_see_nothing(
    family: str, changes: dict[str, Any], tiny_folder: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    targets = texts if TINY[family][0].startswith("T5") else None
    store = record(
        tiny_folder(family, **changes),
        texts,
        tmp_path / "run",
        selection=Selection(("attn",)),
        targets_file=targets,
        limit=9,
    )
    longest = max(store.ids, key=store.length)
    for spec in store.layout.arrays:
        for layer in spec.layers:
            pattern = store.get(longest, spec.key, layer)
            seen = sights_of(store, spec)[layer].count(*pattern.shape[1:])
            # Softmax weights of these models are small but never 0, so the cells in sight are those above 0.
            assert np.array_equal(np.count_nonzero(pattern, axis=2), np.broadcast_to(seen, pattern.shape[:2]))


def test_a_run_is_gone_through_whole_or_by_example(
    tiny_folder: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    store = record(tiny_folder("gpt2"), texts, tmp_path / "run")
    told: list[ExampleLogits] = []
    steps: list[tuple[int, int]] = []
    found = statistics(store, each=told.append, progress=lambda done, of: steps.append((done, of)))
    assert steps[-1] == (28, 28)  # 4 examples x (3 layers of patterns, 3 of the residual stream, logits)
    entropy = torch.stack([torch.from_numpy(store.attn(eid)).double() for eid in store.ids[:1]])
    first = statistics(store, examples=store.ids[:1])
    assert first.attention[0].entropy == pytest.approx((-torch.xlogy(entropy, entropy)).sum(-1).mean(-1)[0].numpy())
    residual = np.concatenate([store.get(eid, "resid_post", 1) for eid in store.ids]).astype(np.float64)
    assert found.activations[0].by_layer[1].mean == pytest.approx(residual.mean())
    assert found.activations[0].by_layer[1].std == pytest.approx(residual.std())

    logits = [torch.from_numpy(store.get(eid, "logits")).double() for eid in store.ids]
    ids = [torch.tensor(list(store.encodings(eid)["input_ids"])) for eid in store.ids]
    losses = torch.cat(
        [
            torch.nn.functional.cross_entropy(own[:-1], came[1:], reduction="none")
            for own, came in zip(logits, ids, strict=True)
        ]
    )
    summary = found.logits[0]
    assert summary.positions == sum(map(len, ids))
    assert summary.targets == len(losses)
    assert summary.perplexity == pytest.approx(losses.mean().exp().item())
    assert summary.target_probability == pytest.approx((-losses).exp().mean().item())
    assert [each.example_id for each in told] == list(store.ids)
    assert told[0].targets.tolist() == [*ids[0][1:].tolist(), -1]


def test_an_encoders_logits_speak_about_their_own_place_and_a_targets_about_its_labels(
    tiny_folder: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    told: list[ExampleLogits] = []
    encoder = record(tiny_folder("bert"), texts, tmp_path / "enc", selection=Selection(("logits",)))
    statistics(encoder, each=told.append)
    assert told[0].targets.tolist() == list(encoder.encodings(encoder.ids[0])["input_ids"])
    both = record(tiny_folder("t5"), texts, tmp_path / "encdec", selection=Selection(("logits",)), targets_file=texts)
    statistics(both, examples=both.ids[2:3], each=told.append)
    assert told[-1].targets.tolist() == list(both.tokens.dec_labels[2])


def test_an_example_that_is_not_there_is_refused(tiny_folder: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    store = record(tiny_folder("gpt2"), texts, tmp_path / "run", limit=1)
    with pytest.raises(ExampleNotFound):
        statistics(store, examples=["nobody"])


def test_some_rows_after_the_other_are_the_whole_pattern() -> None:
    weights = np.tril(np.random.default_rng(3).random((2, 9, 9)))
    pattern = (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)
    whole, rows = (AttentionTally(2, CONVENTIONS["exact"], Visibility(causal=True, window=4)) for _ in range(2))
    whole.add(pattern)
    rows.add_rows((pattern[:, first : first + 2] for first in range(0, 9, 2)), 9)
    for name in ("mean", "max", "entropy", "sparsity"):
        np.testing.assert_allclose(getattr(rows.result(), name), getattr(whole.result(), name), rtol=1e-6)
    assert rows.result().queries == whole.result().queries == 9
