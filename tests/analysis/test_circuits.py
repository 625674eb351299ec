"""Circuits from weights, against whole matrices: every product formed, every eigenvalue of vocabulary-sized ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from traceformer.analysis.circuits import COMPOSITIONS, Circuits, circuits_of, effective_rank, positive_share
from traceformer.errors import Unsupported, UsageError
from traceformer.models.dims import StackDims
from traceformer.models.family import Norm
from traceformer.models.head_weights import HeadWeights, LayerHeads
from traceformer.models.readout import Readout

LAYERS, HEADS, D_MODEL, D_HEAD, VOCABULARY, CONTEXT = 3, 4, 24, 6, 40, 9


@dataclass(frozen=True)
class Table:
    """Rows that are at hand."""

    table: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.table.shape

    def rows(self, first: int, last: int) -> np.ndarray:
        return self.table[first:last]


def weights(norm: Norm = "rms", *, softcap: float | None = None, learned: bool = True, words: int = VOCABULARY) -> Any:
    random = np.random.default_rng(3)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    layers = [
        LayerHeads(
            draw(HEADS, D_MODEL, D_HEAD),
            draw(HEADS, D_MODEL, D_HEAD),
            draw(HEADS, D_MODEL, D_HEAD),
            draw(HEADS, D_HEAD, D_MODEL),
        )
        for _ in range(LAYERS)
    ]
    readout = Readout(norm, draw(D_MODEL), None, 1e-6, None, 1.0, Table(draw(words, D_MODEL)), None, softcap)
    dims = StackDims(LAYERS, HEADS, HEADS, D_MODEL, D_MODEL, D_HEAD, 8, VOCABULARY, CONTEXT)
    positions = draw(CONTEXT, D_MODEL) if learned else None
    kind = "learned" if learned else "rotary"
    return HeadWeights("made", dims, layers.__getitem__, Table(draw(VOCABULARY, D_MODEL)), readout, positions, kind)


def share(matrix: np.ndarray) -> float:
    eigenvalues = np.linalg.eigvals(matrix)
    return float((eigenvalues.sum() / np.abs(eigenvalues).sum()).real)


def rank(matrix: np.ndarray) -> float:
    singular = np.linalg.svd(matrix, compute_uv=False)
    parts = singular[singular > 1e-6 * singular.max()] / singular.sum()
    return float(np.exp(-(parts * np.log(parts)).sum()))


def whole(made: HeadWeights, layer: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """QK and OV of a head, d_model x d_model."""
    own = made.layer(layer)
    query, key, value, out = (getattr(own, name)[head].astype(float) for name in LayerHeads.__slots__)
    return query @ key.T, value @ out


@pytest.mark.parametrize(("norm", "softcap"), [("rms", None), ("rms_plus_one", 30.0), ("layer", None)])
def test_every_number_is_that_of_whole_matrices(norm: Norm, softcap: float | None) -> None:
    made = weights(norm, softcap=softcap)
    found = circuits_of(made)
    embedding = made.embedding.rows(0, VOCABULARY).astype(float)
    gain = made.readout.norm_weight + (norm == "rms_plus_one")
    unembedding = made.readout.unembedding.rows(0, VOCABULARY).astype(float) * gain
    if norm == "layer":
        unembedding -= unembedding.mean(axis=1, keepdims=True)
    if softcap is None:
        unembedding -= unembedding.mean(axis=0)
    assert made.positions is not None
    rows = made.positions.astype(float)
    if norm == "layer":
        rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-6)
    previous = np.zeros((LAYERS, HEADS))
    for layer, head in np.ndindex(LAYERS, HEADS):
        qk, ov = whole(made, layer, head)
        assert found.values["copying"][layer, head] == pytest.approx(share(embedding @ ov @ unembedding.T), abs=1e-5)
        assert found.values["ov_rank"][layer, head] == pytest.approx(rank(ov), rel=1e-5)
        assert found.values["qk_rank"][layer, head] == pytest.approx(rank(qk), rel=1e-5)
        scores = rows @ qk @ rows.T
        hits = [int(np.argmax(scores[query, : query + 1])) == query - 1 for query in range(1, CONTEXT)]
        previous[layer, head] = np.mean(hits)
    np.testing.assert_allclose(found.values["previous_token"], previous)
    assert np.isnan(found.values["induction"][0]).all()
    for layer in range(1, LAYERS):
        place = divmod(int(previous[:layer].argmax()), HEADS)
        assert found.through[layer] == place
        _, moved = whole(made, *place)
        for head in range(HEADS):
            qk, _ = whole(made, layer, head)
            match = share(embedding @ qk @ moved.T @ embedding.T)
            assert found.values["induction"][layer, head] == pytest.approx(previous[place] * match, abs=1e-5)


def test_compositions_are_ratios_of_frobenius_norms() -> None:
    made = weights()
    found = circuits_of(made).composition
    assert found.shape == (len(COMPOSITIONS), LAYERS, HEADS, LAYERS, HEADS)
    for earlier, one, later, other in np.ndindex(found.shape[1:]):
        qk, read = whole(made, later, other)
        _, written = whole(made, earlier, one)
        for number, matrix in enumerate((qk, qk.T, read)):
            score = found[number, earlier, one, later, other]
            if earlier >= later:
                assert np.isnan(score)
                continue
            norms = np.linalg.norm(written) * np.linalg.norm(matrix)
            assert score == pytest.approx(np.linalg.norm(written @ matrix) / norms, rel=1e-5)


def test_the_strongest_edges_come_first() -> None:
    found = circuits_of(weights())
    edges = found.edges()
    assert len(edges) == 3 * 3 * HEADS**2
    assert edges["score"].is_monotonic_decreasing
    first = edges.iloc[0]
    place = (COMPOSITIONS.index(first.kind), first.from_layer, first.from_head, first.to_layer, first.to_head)
    assert found.composition[place] == first.score == np.nanmax(found.composition)
    assert set(found.edges("K", top=5)["kind"]) == {"K"}
    assert [edge.score for edge in found.strongest(5)] == edges["score"].head(5).tolist()
    assert found.strongest(1)[0].names == (f"L{place[1]}H{place[2]}", f"L{place[3]}H{place[4]}")
    with pytest.raises(UsageError, match="kind"):
        found.edges("O")


def test_a_head_made_to_look_at_the_token_before_scores_one() -> None:
    made = weights()
    positions = np.zeros((CONTEXT, D_MODEL), np.float32)
    positions[:, :CONTEXT] = np.eye(CONTEXT)
    shifted, plain = np.zeros((2, 1, D_MODEL, CONTEXT), np.float32)
    plain[0, :CONTEXT] = np.eye(CONTEXT)
    shifted[0, :CONTEXT] = np.eye(CONTEXT, k=-1)  # position i asks for i - 1
    heads = LayerHeads(shifted, plain, plain, np.swapaxes(plain, 1, 2))
    dims = StackDims(1, 1, 1, D_MODEL, D_MODEL, CONTEXT, 8, VOCABULARY, CONTEXT)
    made = HeadWeights("made", dims, lambda _: heads, made.embedding, made.readout, positions, "learned")
    assert circuits_of(made).values["previous_token"] == [[1.0]]


def test_rotary_positions_say_nothing_unless_scores_were_measured() -> None:
    made = weights(learned=False)
    found = circuits_of(made)
    assert np.isnan(found.values["previous_token"]).all()
    assert np.isnan(found.values["induction"]).all()
    assert "rotary" in found.notes["previous_token"]
    measured = np.zeros((LAYERS, HEADS))
    measured[0, 2] = 0.5
    found = circuits_of(made, measured)
    assert found.through == (None, (0, 2), (0, 2))
    embedding = made.embedding.rows(0, VOCABULARY).astype(float)
    match = share(embedding @ whole(made, 2, 1)[0] @ whole(made, 0, 2)[1].T @ embedding.T)
    assert found.values["induction"][2, 1] == pytest.approx(0.5 * match, abs=1e-5)
    with pytest.raises(UsageError, match="heads"):
        circuits_of(made, measured[1:])


def test_two_vocabularies_are_refused() -> None:
    with pytest.raises(Unsupported) as caught:
        circuits_of(weights(words=VOCABULARY + 1))
    assert "are read out" in caught.value.why


def test_ranks_and_shares_of_what_is_known() -> None:
    singular = np.array([[2.0, 2.0, 2.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(effective_rank(singular), [3, 1, np.nan])
    turned = np.array([[0.0, -1.0], [1.0, 0.0]])
    np.testing.assert_allclose(positive_share(np.stack([np.eye(2), -np.eye(2), turned])), [1, -1, 0], atol=1e-12)
    assert np.isnan(positive_share(np.zeros((1, 2, 2)))).all()


def test_json_and_frame_hold_every_head() -> None:
    found = circuits_of(weights(learned=False))
    data = found.to_json()
    assert data["heads"]["induction"] == [[None] * HEADS] * LAYERS
    assert np.array(data["composition"]["V"], float).shape == (LAYERS, HEADS, LAYERS, HEADS)
    frame = found.to_frame()
    assert frame.columns.tolist() == ["layer", "head", *data["heads"]]
    row = frame.iloc[HEADS + 2]
    assert (row["layer"], row["head"], row["copying"]) == (1, 2, found.values["copying"][1, 2])
    assert repr(found) == "Circuits('made': 3 layers of 4 heads, from weights)"
    assert isinstance(found, Circuits)
