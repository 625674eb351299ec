"""The logit lens: what a model would say if each layer were its last.

1. `normed` puts rows of the residual stream through the model's own final norm (and projection and scale).
2. `read_out` multiplies them by the unembedding, a block of words at a time, so that neither all logits nor all of the
   unembedding is ever in memory. Each block's logits, softcapped, update what is kept of each row: the k largest, the
   sum of exponentials, and the rank of the target token, which came next.
3. Probabilities are those of the softmax over all words; entropy is in nats, and so is how far the last layer diverges.
4. `Lens` holds what that gives for the layers of an example, with the texts of its tokens.

Rows may be translated first, as `translators` says. The source is nostalgebraist, "interpreting GPT: the logit lens"
(2020).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from traceformer.analysis.lens_tally import WORDS, Compared, LensRows, Tally, capped
from traceformer.errors import UsageError
from traceformer.models.readout import Readout
from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Float, Float32, Float64, Int, Int64
from traceformer.sites import ArrayKey

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Compared", "KnownBy", "Lens", "LensRows", "Translated", "apart_from", "normed", "read_out"]


def normed(
    residual: Float[np.ndarray, "row d_model"], readout: Readout, *, skip_norm: bool = False
) -> Float32[np.ndarray, "row d_embed"]:
    """Returns what the unembedding is multiplied with; `skip_norm` for rows that are normed already."""
    rows = residual.astype(np.float32)
    if readout.norm is not None and not skip_norm:
        if readout.norm.startswith("layer"):
            rows -= rows.mean(axis=1, keepdims=True)
        rows /= np.sqrt(np.einsum("rd,rd->r", rows, rows) / rows.shape[1] + readout.epsilon)[:, None]
        if readout.norm_weight is not None:
            rows *= readout.norm_weight + 1 if readout.norm.endswith("plus_one") else readout.norm_weight
        if readout.norm_bias is not None:
            rows += readout.norm_bias
    if readout.project_out is not None:
        rows = rows @ readout.project_out.T
    return rows * np.float32(readout.scale)


def read_out(
    rows: Float32[np.ndarray, "row d_embed"],
    readout: Readout,
    *,
    targets: Int[np.ndarray, "row"] | None = None,
    top: int = 3,
    compared: Compared | None = None,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> LensRows:
    """Returns what each row says.

    Args:
        rows: As `normed` gives them.
        readout: The model's.
        targets: The token that came next at each row, negative where none did.
        top: How many of the likeliest words to keep.
        compared: The rows, such as the last layer's, from which the divergence is.
        progress: Told how many of how many blocks of words are done.

    Raises:
        UsageError: `targets` or `top` is no word of the model.
    """
    targets = np.full(len(rows), -1) if targets is None else targets
    if not 1 <= top <= readout.d_vocab or targets.max(initial=-1) >= readout.d_vocab:
        raise UsageError(f"the {top} likeliest words, and token {targets.max(initial=-1)}", why=_words_of(readout))
    tally = Tally(rows, targets, readout, top, compared)
    for first in range(0, readout.d_vocab, WORDS):
        tally.add(first)
        progress(min(first + WORDS, readout.d_vocab), readout.d_vocab)
    return tally.result()


def apart_from(
    rows: Float32[np.ndarray, "row d_embed"], readout: Readout, logits: Float[np.ndarray, "row d_vocab"]
) -> Float64[np.ndarray, "row"]:
    """Returns how far the logits of each row are from those given, as a share of how these spread about their mean.

    It is 0 for the same logits, and about 1.4 for those of a head that has nothing to do with them. Where those given
    are no numbers, or none at all, there is nothing to compare: NaN.

    Args:
        rows: As `normed` gives them.
        readout: Whose logits of them are compared.
        logits: What they are compared with.
    """
    there = np.isfinite(logits)
    known = np.where(there, logits, 0).astype(np.float64)
    count = there.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (np.where(there, known - known.sum(axis=1, keepdims=True) / count, 0) ** 2).sum(axis=1)
    difference = np.zeros(len(rows))
    for first in range(0, readout.d_vocab, WORDS):
        block = slice(first, min(first + WORDS, readout.d_vocab))
        own = capped(rows @ readout.unembedding.rows(block.start, block.stop).T, readout, first)
        difference += (np.where(there[:, block], own - known[:, block], 0) ** 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(difference / np.where(spread > 0, spread, np.nan))


def _words_of(readout: Readout) -> str:
    return f"the model has {readout.d_vocab} words"


KnownBy: TypeAlias = Literal["digest", "name", "width"]


@dataclass(frozen=True, slots=True)
class Translated:
    """Which translators rows went through before they were read out.

    Attributes:
        kind: `tuned`, `ridge` or `jacobian`.
        source: The file; None where they were at hand.
        layers: The layers that were translated; what the model's own last layer says is read as it is.
        known_by: How it is known that they are this model's: by the digest of its weights, by its name alone, or not at
            all but for the width of its rows.
    """

    kind: str
    source: str | None
    layers: tuple[int, ...]
    known_by: KnownBy

    def __str__(self) -> str:
        return f"{self.kind} lens" + ("" if self.source is None else f" of {PurePath(self.source).name}")

    def to_json(self) -> dict[str, Any]:
        """Returns everything."""
        return {"kind": self.kind, "source": self.source, "layers": list(self.layers), "known_by": self.known_by}


@dataclass(frozen=True, slots=True, eq=False)
class Lens:
    """What each layer of an example says at each position; see `LensRows` for what is the same.

    Attributes:
        example_id: Which example.
        key: The array that was read: `resid_post`, `hidden`, or `lens_topk`. That one has no entropy (NaN), and the
            target is known of where it is among the likeliest; elsewhere it is as if there were none.
        layers: The model's numbers of the layers.
        positions: Positions of the example.
        tokens: The texts of the example's tokens at these positions.
        targets: The token that came next at each position, -1 where none did.
        names: The text of every token that `targets` or `top_ids` names, `#id` where it is not known.
        kl: KL(what the model's last layer says || what this one says), in nats; NaN where the last layer is not
            stored, and of `lens_topk`.
        translated: Which translators the rows went through; None for none, the logit lens.
    """

    example_id: str
    key: ArrayKey
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    targets: Int64[np.ndarray, "position"]
    names: Mapping[int, str]
    top_ids: Int64[np.ndarray, "layer position k"]
    top_probabilities: Float32[np.ndarray, "layer position k"]
    entropy: Float32[np.ndarray, "layer position"]
    target_probability: Float32[np.ndarray, "layer position"]
    target_rank: Int64[np.ndarray, "layer position"]
    kl: Float32[np.ndarray, "layer position"]
    translated: Translated | None = None

    def __repr__(self) -> str:
        n_layers, n_positions, k = self.top_ids.shape
        through = "" if self.translated is None else f" through the {self.translated}"
        of = f"{n_layers} layers x {n_positions} positions of {self.key}{through}"
        return f"Lens({self.example_id!r}: {of}, top {k})"

    def _repr_html_(self) -> str:
        return in_notebook(self)

    @property
    def target_tokens(self) -> tuple[str | None, ...]:
        """The token that came next at each position, None where none did."""
        return tuple(self.names.get(target) for target in self.targets.tolist())

    @property
    def top_tokens(self) -> list[list[list[str]]]:
        """The likeliest tokens of each layer, at each position."""
        return [[[self.names[token_id] for token_id in row] for row in layer] for layer in self.top_ids.tolist()]

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per layer, position and rank, the likeliest token first; where nothing is known, a gap."""
        import pandas as pd

        layer, position, rank = (index.reshape(-1) for index in np.indices(self.top_ids.shape))
        target_rank = pd.Series(self.target_rank[layer, position], dtype="Int64")
        return pd.DataFrame(
            {
                "layer": np.array(self.layers)[layer],
                "position": np.array(self.positions)[position],
                "token": [self.tokens[i] for i in position],
                "rank": rank + 1,
                "top_token": [self.names[token_id] for token_id in self.top_ids.reshape(-1).tolist()],
                "probability": self.top_probabilities.reshape(-1),
                "entropy": self.entropy[layer, position],
                "target_token": np.array(self.target_tokens, object)[position],
                "target_probability": self.target_probability[layer, position],
                "target_rank": target_rank.where(target_rank > 0),
                "kl": self.kl[layer, position],
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Returns everything; lists run over layers, and within each over positions."""
        return {
            "example_id": self.example_id,
            "array": str(self.key),
            "layers": list(self.layers),
            "positions": list(self.positions),
            "tokens": list(self.tokens),
            "targets": [
                None if token is None else {"id": target, "token": token}
                for target, token in zip(self.targets.tolist(), self.target_tokens, strict=True)
            ],
            "top_ids": self.top_ids.tolist(),
            "top_tokens": self.top_tokens,
            "top_probabilities": plain(self.top_probabilities),
            "entropy": plain(self.entropy),
            "target_probability": plain(self.target_probability),
            "target_rank": [[rank or None for rank in layer] for layer in self.target_rank.tolist()],
            "kl": plain(self.kl),
            "translators": None if self.translated is None else self.translated.to_json(),
        }
