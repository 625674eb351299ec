"""Circuits from weights: what each head copies, how full its matrices are, and which heads feed which.

A head reads the stream through W_Q, W_K and W_V and writes through W_O; QK = W_Q W_K^T says what it attends to, OV =
W_V W_O what it moves. Both are d_model x d_model of rank d_head, and neither is ever formed:

1. Copying: the eigenvalues of W_E OV W_U (a token's own logit, by the head alone) are those of the d_head x d_head
   matrix W_O (W_U W_E) W_V. Their sum over the sum of their absolute values is 1 where all are positive: attending to a
   token then raises that token. W_U W_E is summed once, a block of words at a time.
2. Composition of an earlier head with a later one: |OV B| / (|OV| |B|) in Frobenius norms, where B is QK (Q), QK^T (K)
   or OV (V) of the later one. With QR = W_V, |W_V W_O| is |R W_O|; so is B's outer factor reduced to R. What is left is
   one product of matrices for a pair of layers.
3. Effective rank: exp of the entropy of singular values that are divided by their sum.
4. Previous token, where positions were learned: how often, of a position's products with all keys that it sees, that
   with the position before is the largest, if nothing but positions stood in the stream.
5. Induction: the eigenvalues of W_E QK (OV of a head below)^T W_E^T, as a share like 1: whether a head looks for
   its own token where the head below has put the token before. It is that of the strongest previous-token head in the
   layers below, times that head's score.

Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021), is the source of 1, 2 and 5; Roy and
Vetterli, "The effective rank" (2007), of 3. The length that a norm divides by is left out: no share or ratio sees it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from traceformer.errors import Unsupported, UsageError, check_choice
from traceformer.models.head_weights import HeadWeights, LayerHeads
from traceformer.models.readout import Readout
from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Float, Float32, Float64, Int64

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COMPOSITIONS",
    "OF_WEIGHTS",
    "Circuits",
    "Composition",
    "Edge",
    "circuits_of",
    "effective_rank",
    "positive_share",
]

Composition: TypeAlias = Literal["Q", "K", "V"]
COMPOSITIONS: tuple[Composition, ...] = ("Q", "K", "V")
OF_WEIGHTS: Mapping[str, str] = {
    "copying": "share of positive eigenvalues of W_E W_V W_O W_U: 1 where what is attended to becomes likelier",
    "ov_rank": "effective rank of W_V W_O",
    "qk_rank": "effective rank of W_Q W_K^T",
    "previous_token": "share of positions whose best key, by positions alone, is the one before",
    "induction": "positive share of the match with what the best previous-token head below has moved, times its score",
}
"""Every column of `Circuits.to_frame()` and its meaning."""

_WORDS = 4096
_POSITIONS = 512


class Edge(NamedTuple):
    """A composition of an earlier head with a later one."""

    kind: Composition
    from_layer: int
    from_head: int
    to_layer: int
    to_head: int
    score: float

    @property
    def names(self) -> tuple[str, str]:
        """`L1H7` and `L2H6`."""
        return f"L{self.from_layer}H{self.from_head}", f"L{self.to_layer}H{self.to_head}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Circuits:
    """What the weights of a decoder say of its heads.

        circuits.to_frame().sort_values("copying").tail(3)
        circuits.edges("K", top=5)

    Attributes:
        model: The model's name.
        values: Each column of `OF_WEIGHTS`; NaN where it has no meaning.
        composition: How much of what an earlier head writes a later one reads, by `COMPOSITIONS`; NaN unless the first
            is in an earlier layer.
        through: The previous-token head that `induction` of each layer goes through: (layer, head); None if none.
        notes: Column -> why it is empty, or what it is of.
    """

    model: str
    values: Mapping[str, Float64[np.ndarray, "layer head"]]
    composition: Float32[np.ndarray, "kind from_layer from_head to_layer to_head"]
    through: tuple[tuple[int, int] | None, ...]
    notes: Mapping[str, str]

    @property
    def shape(self) -> tuple[int, int]:
        """How many layers there are, and how many heads each has."""
        return self.composition.shape[1], self.composition.shape[2]

    @property
    def heads(self) -> "pd.DataFrame":
        """`to_frame()`."""
        return self.to_frame()

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per head: layer, head, and a column per number of `OF_WEIGHTS`."""
        import pandas as pd

        layer, head = (index.reshape(-1) for index in np.indices(self.shape))
        columns = {name: values.reshape(-1) for name, values in self.values.items()}
        return pd.DataFrame({"layer": layer, "head": head, **columns})

    def strongest(self, top: int, kind: str | None = None) -> list[Edge]:
        """Returns the strongest compositions, of one kind or of all.

        Raises:
            UsageError: no such kind.
        """
        places, scores = self._ordered(kind, top)
        rows = zip(*(index.tolist() for index in places), scores.tolist(), strict=True)
        return [Edge(COMPOSITIONS[number], *heads) for number, *heads in rows]

    def edges(self, kind: str | None = None, *, top: int | None = None) -> "pd.DataFrame":
        """Returns a row per pair of heads and kind of composition, the strongest first; errors as of `strongest`."""
        import pandas as pd

        places, scores = self._ordered(kind, top)
        kinds, *heads = places
        columns = dict(zip(Edge._fields[1:-1], heads, strict=True))
        return pd.DataFrame({"kind": np.array(COMPOSITIONS)[kinds], **columns, "score": scores})

    def _ordered(
        self, kind: str | None, top: int | None
    ) -> tuple[tuple[Int64[np.ndarray, "edge"], ...], Float32[np.ndarray, "edge"]]:
        """Where the scores are, as indices of `composition`, and what they are: the strongest first."""
        if kind is not None:
            check_choice("kind", kind, COMPOSITIONS)
        places = np.nonzero(np.isfinite(self.composition))
        if kind is not None:
            own = places[0] == COMPOSITIONS.index(kind)  # pyright: ignore[reportArgumentType]
            places = tuple(index[own] for index in places)
        scores = self.composition[places]
        order = np.argsort(-scores, kind="stable")[:top]
        return tuple(index[order] for index in places), scores[order]

    def to_json(self) -> dict[str, Any]:
        """Returns everything; lists run over layers, and within each over heads, with None for NaN."""
        return {
            "model": self.model,
            "heads": {name: plain(values) for name, values in self.values.items()},
            "through": [None if place is None else list(place) for place in self.through],
            "composition": {kind: plain(own) for kind, own in zip(COMPOSITIONS, self.composition, strict=True)},
            "notes": dict(self.notes),
        }

    def __repr__(self) -> str:
        n_layers, n_heads = self.shape
        return f"Circuits({self.model!r}: {n_layers} layers of {n_heads} heads, from weights)"

    def _repr_html_(self) -> str:
        return in_notebook(self)


def effective_rank(singular: Float[np.ndarray, "matrix value"]) -> Float64[np.ndarray, "matrix"]:
    """Returns exp of the entropy of singular values divided by their sum (Roy and Vetterli 2007); NaN for zeros."""
    values = singular.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = values / values.sum(axis=-1, keepdims=True)
        return np.exp(-(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=-1))


def positive_share(matrices: Float[np.ndarray, "matrix d d"]) -> Float64[np.ndarray, "matrix"]:
    """Returns the sum of eigenvalues over the sum of their absolute values: 1 for positive ones alone, -1 for none."""
    eigenvalues = np.linalg.eigvals(matrices.astype(np.float64))
    sizes = np.abs(eigenvalues).sum(axis=-1)
    return np.divide(eigenvalues.sum(axis=-1).real, sizes, out=np.full(sizes.shape, np.nan), where=sizes > 0)


def circuits_of(
    weights: HeadWeights,
    previous: Float[np.ndarray, "layer head"] | None = None,
    *,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Circuits:
    """Returns the circuits of a decoder's heads.

    Args:
        weights: Its weights, read layer by layer; what is kept of a layer is an OV matrix of rank d_head for each head.
        previous: How much each head attends to the token before, where that was measured; by default what the
            positions say, if they were learned.
        progress: Told how many of how many steps are done.

    Raises:
        UsageError: `previous` is of other layers or heads.
        Unsupported: tokens are embedded and read out of two vocabularies.
    """
    n_layers, n_heads = weights.dims.n_layers, weights.dims.n_heads
    if previous is not None and previous.shape != (n_layers, n_heads):
        raise UsageError(f"numbers of {previous.shape} heads", why=f"the model has {n_layers} x {n_heads}")
    steps = -(-weights.embedding.shape[0] // _WORDS) + n_layers
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        progress(done, steps)

    to_logits, alike = _over_words(weights, told)
    values = {name: np.full((n_layers, n_heads), np.nan) for name in OF_WEIGHTS}
    composition = np.full((len(COMPOSITIONS), n_layers, n_heads, n_layers, n_heads), np.nan, np.float32)
    through: list[tuple[int, int] | None] = []
    below: dict[int, _Written] = {}
    for layer in range(n_layers):
        if layer not in weights.dims.attention_layers:
            through.append(None)
            told()
            continue
        heads = weights.layer(layer)
        parts = _Reduced.of(heads)
        values["copying"][layer] = positive_share(_between(heads.out, to_logits, heads.value))
        values["ov_rank"][layer] = effective_rank(np.linalg.svd(parts.value @ _turned(parts.out), compute_uv=False))
        values["qk_rank"][layer] = effective_rank(np.linalg.svd(parts.query @ _turned(parts.key), compute_uv=False))
        if weights.positions is not None:
            rows = _normed_positions(weights.positions, weights.readout)
            values["previous_token"][layer] = _previous_token(rows, heads)
        for earlier, written in below.items():
            composition[:, earlier, :, layer] = _composed(written, heads, parts)
        scores = values["previous_token"] if previous is None else previous
        place = _strongest(scores[:layer])
        through.append(place)
        if place is not None:
            matches = _matches(weights.layer(place[0]), place[1], heads, alike)
            values["induction"][layer] = scores[place] * matches
        below[layer] = _Written.of(heads, parts)
        told()
    return Circuits(weights.name, values, composition, tuple(through), _notes(weights, previous is not None))


def _notes(weights: HeadWeights, measured: bool) -> dict[str, str]:
    notes = {"induction": "layer 0 has no head below it"}
    if weights.dims.attending is not None:
        notes["copying"] = f"attention in layers {', '.join(map(str, weights.dims.attending))} only"
    if weights.positions is None:
        why = f"positions are {weights.kind}, so no weights say which position is before which"
        notes["previous_token"] = why
        if not measured:
            notes["induction"] = f"{why}; what `heads` measures on texts can take their place"
    if measured:
        notes["induction"] = "through the strongest previous-token head below, as measured; layer 0 has none below"
    return notes


def _over_words(
    weights: HeadWeights, told: Callable[[], None]
) -> tuple[Float64[np.ndarray, "d_model d_model"], Float64[np.ndarray, "d_model d_model"]]:
    """W_U W_E and W_E^T W_E: from what is written to what was read, through the logits and through the embeddings.

    Logits mean the same whatever is added to them all: the mean unembedding is taken off, where no softcap follows.
    """
    embedding, readout = weights.embedding, weights.readout
    if embedding.shape[0] != readout.d_vocab:
        why = f"{embedding.shape[0]} tokens are embedded and {readout.d_vocab} are read out"
        raise Unsupported(f"circuits of {weights.name}", why=why)
    d_model = weights.dims.d_model
    to_logits, alike = np.zeros((2, d_model, d_model))
    sum_in, sum_out = np.zeros((2, d_model))
    for first in range(0, readout.d_vocab, _WORDS):
        read = embedding.rows(first, min(first + _WORDS, readout.d_vocab))
        words = _folded(readout.unembedding.rows(first, first + len(read)), readout)
        to_logits += words.T @ read
        alike += read.T @ read
        sum_in += read.sum(axis=0, dtype=np.float64)
        sum_out += words.sum(axis=0, dtype=np.float64)
        told()
    if readout.softcap is None:
        to_logits -= np.outer(sum_out / readout.d_vocab, sum_in)
    return to_logits, alike


def _folded(words: Float32[np.ndarray, "word d_model"], readout: Readout) -> Float32[np.ndarray, "word d_model"]:
    """The unembedding with the final norm folded in."""
    assert readout.norm is not None
    if readout.norm_weight is not None:
        words = words * (readout.norm_weight + np.float32(readout.norm.endswith("plus_one")))
    return words - words.mean(axis=1, keepdims=True) if readout.norm.startswith("layer") else words


def _between(
    left: Float32[np.ndarray, "head d_head d_model"],
    middle: Float64[np.ndarray, "d_model d_model"],
    right: Float32[np.ndarray, "head d_model d_head"],
) -> Float64[np.ndarray, "head d_head d_head"]:
    return (left @ middle) @ right


def _turned(matrices: Float[np.ndarray, "*matrix m n"]) -> Float[np.ndarray, "*matrix n m"]:
    return matrices.swapaxes(-1, -2)


@dataclass(frozen=True, slots=True)
class _Reduced:
    """R of the QR decompositions of W_Q, W_K, W_V and W_O^T: all that is left of them in a norm from outside."""

    query: Float32[np.ndarray, "head d_head d_head"]
    key: Float32[np.ndarray, "head d_head d_head"]
    value: Float32[np.ndarray, "head d_value d_value"]
    out: Float32[np.ndarray, "head d_value d_value"]

    @classmethod
    def of(cls, heads: LayerHeads) -> "_Reduced":
        tall = (heads.query, heads.key, heads.value, _turned(heads.out))
        reduced: Any = [np.linalg.qr(each, mode="r") for each in tall]
        return cls(*reduced)


@dataclass(frozen=True, slots=True)
class _Written:
    """OV of each head of a layer, on its way into later ones: R W_O, whose norms and products are those of OV."""

    rows: Float32[np.ndarray, "head d_head d_model"]
    norms: Float64[np.ndarray, "head"]

    @classmethod
    def of(cls, heads: LayerHeads, parts: _Reduced) -> "_Written":
        rows = parts.value @ heads.out
        return cls(rows, _norms(rows))


def _norms(matrices: Float32[np.ndarray, "head m n"]) -> Float64[np.ndarray, "head"]:
    return np.sqrt(np.einsum("hmn,hmn->h", matrices, matrices, dtype=np.float64))


def _composed(written: _Written, heads: LayerHeads, parts: _Reduced) -> Float64[np.ndarray, "kind from_head to_head"]:
    """The composition scores of a layer's heads with those of an earlier one."""
    n_heads, d_head, d_model = written.rows.shape
    flat = written.rows.reshape(-1, d_model)
    read = {
        "Q": heads.query @ _turned(parts.key),
        "K": heads.key @ _turned(parts.query),
        "V": heads.value @ _turned(parts.out),
    }
    found: list[Float64[np.ndarray, "from_head to_head"]] = []
    for kind in COMPOSITIONS:
        product = flat @ read[kind].transpose(1, 0, 2).reshape(d_model, -1)
        cells = product.reshape(n_heads, d_head, n_heads, -1)
        norms = np.sqrt(np.einsum("fdte,fdte->ft", cells, cells, dtype=np.float64))
        sizes = written.norms[:, None] * _norms(read[kind])
        found.append(np.divide(norms, sizes, out=np.full(sizes.shape, np.nan), where=sizes > 0))
    return np.stack(found)


def _normed_positions(
    positions: Float32[np.ndarray, "position d_model"], readout: Readout
) -> Float32[np.ndarray, "position d_model"]:
    """The first positions, as a norm leaves them if nothing else stands in the stream; its weights are in the heads."""
    rows = positions[:_POSITIONS]
    if readout.norm is not None and readout.norm.startswith("layer"):
        rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.sqrt(np.einsum("pd,pd->p", rows, rows) / rows.shape[1] + readout.epsilon)[:, None]


def _previous_token(rows: Float32[np.ndarray, "position d_model"], heads: LayerHeads) -> Float64[np.ndarray, "head"]:
    """Of positions from the second on, the share whose largest product with a key up to it is with the one before."""
    scores = (rows @ heads.query) @ _turned(rows @ heads.key)
    hidden = ~np.tri(len(rows), dtype=np.bool_)
    best = np.where(hidden, -np.inf, scores).argmax(axis=-1)[:, 1:]
    return (best == np.arange(len(rows) - 1)).mean(axis=-1)


def _strongest(scores: Float[np.ndarray, "layer head"]) -> tuple[int, int] | None:
    """Where the largest number is; None where there is none."""
    if not np.isfinite(scores).any():
        return None
    layer, head = np.unravel_index(int(np.nanargmax(scores)), scores.shape)
    return int(layer), int(head)


def _matches(
    below: LayerHeads, number: int, heads: LayerHeads, alike: Float64[np.ndarray, "d_model d_model"]
) -> Float64[np.ndarray, "head"]:
    """Whether heads look for their own token in what a head below has moved there."""
    value, out = below.value[number], below.out[number]
    return positive_share((value.T @ alike) @ heads.query @ _turned(out @ heads.key))
