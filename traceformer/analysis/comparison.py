"""Two runs over the same texts, compared: their streams, their heads, and what they predict, as values.

The first run is A, the second is B. What could not be compared is None, and `left_out` says why.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Float64, Int64
from traceformer.sites import ArrayKey, Stack

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PARTS",
    "Align",
    "Apart",
    "Compared",
    "Comparison",
    "HeadDistances",
    "ReadoutDivergence",
    "StreamSimilarity",
]

PARTS = ("readouts", "streams", "heads")
"""What is compared."""

Align: TypeAlias = Literal["characters", "start"]
"""How tokens are matched where those of both runs are not the same: at the characters at which tokens of both end, or
as far as both texts begin with the same tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Which runs were compared, over what.

    Attributes:
        runs: What both are called.
        models: Their models, with adapters.
        stack: Whose tokens they are.
        texts: How many texts both have.
        tokens: How many tokens of these, or pieces that tokens of both end.
        align: How tokens were matched; None where they are the same.
    """

    runs: tuple[str, str]
    models: tuple[str | None, str | None]
    stack: Stack
    texts: int
    tokens: int
    align: Align | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StreamSimilarity:
    """How alike the rows of each layer of A are to those of each layer of B; see `analysis/similarity.py`.

    Attributes:
        key: The array.
        layers_a, layers_b: The models' numbers; `(None,)` where the site has no layers.
        widths: How wide the rows of both are.
        tokens: How many rows of each were compared.
        unknown: How many were left out, since a layer of one of them holds no number there.
        cka: Linear CKA without bias.
        cka_biased: As it was first defined.
        procrustes: What a rotation leaves apart, from 0 to 2.
    """

    key: ArrayKey
    layers_a: tuple[int | None, ...]
    layers_b: tuple[int | None, ...]
    widths: tuple[int, int]
    tokens: int
    unknown: int
    cka: Float64[np.ndarray, "layer other"]
    cka_biased: Float64[np.ndarray, "layer other"]
    procrustes: Float64[np.ndarray, "layer other"]

    def __repr__(self) -> str:
        shape = f"{len(self.layers_a)} x {len(self.layers_b)} layers"
        return f"StreamSimilarity({self.key}: {shape}, {self.tokens:,} tokens)"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields a row per pair of layers."""
        for (i, j), cka in np.ndenumerate(self.cka):
            yield {
                "layer_a": self.layers_a[i],
                "layer_b": self.layers_b[j],
                "cka": float(cka),
                "cka_biased": float(self.cka_biased[i, j]),
                "procrustes": float(self.procrustes[i, j]),
            }

    def to_frame(self) -> "pd.DataFrame":
        """Returns these rows as a table."""
        return _frame(self.rows(), "layer_a", "layer_b")

    def to_json(self) -> dict[str, Any]:
        """Returns everything; lists run over layers of A, and within each over layers of B."""
        return plain({**asdict(self), "key": str(self.key)})


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HeadDistances:
    """How far apart the attention of heads is, as a mean over queries; see `analysis/divergence.py`.

    Attributes:
        key: The array.
        heads_a, heads_b: Layer and number of each head.
        queries: How many rows of attention of each head were compared.
        unknown: How many were left out, since a head of one of the runs holds no number there.
        all_pairs: Whether each head of A was compared with every one of B, or with that of the same layer and number.
        total_variation: From 0 to 1: (head) of A and of B, or (head of A, head of B).
        jensen_shannon: In bits, from 0 to 1; None of all pairs.
    """

    key: ArrayKey
    heads_a: tuple[tuple[int, int], ...]
    heads_b: tuple[tuple[int, int], ...]
    queries: int
    unknown: int
    all_pairs: bool
    total_variation: Float64[np.ndarray, "*shape"]
    jensen_shannon: Float64[np.ndarray, "head"] | None

    def __repr__(self) -> str:
        pairs = f"{len(self.heads_a)} x {len(self.heads_b)} heads" if self.all_pairs else f"{len(self.heads_a)} heads"
        return f"HeadDistances({self.key}: {pairs}, {self.queries:,} queries)"

    @property
    def nearest(self) -> tuple[int, ...]:
        """For each head of A the place in `heads_b` of the nearest one; by number unless all are known."""
        if not self.all_pairs:
            return tuple(range(len(self.heads_a)))
        return tuple(np.nan_to_num(self.total_variation, nan=np.inf).argmin(axis=1).tolist())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields a row per pair of heads."""
        for place, distance in np.ndenumerate(self.total_variation):
            (layer, head), (other_layer, other_head) = self.heads_a[place[0]], self.heads_b[place[-1]]
            row = {"layer_a": layer, "head_a": head, "layer_b": other_layer, "head_b": other_head}
            row |= {"total_variation": float(distance)}
            if self.jensen_shannon is not None:
                row["jensen_shannon"] = float(self.jensen_shannon[place[0]])
            yield row

    def to_frame(self) -> "pd.DataFrame":
        """Returns these rows as a table."""
        return _frame(self.rows())

    def to_json(self) -> dict[str, Any]:
        """Returns everything; lists run over heads of A, and of all pairs within each over heads of B."""
        names = {name: [f"L{layer}H{head}" for layer, head in getattr(self, name)] for name in ("heads_a", "heads_b")}
        return plain({**asdict(self), "key": str(self.key), **names})


class Apart(NamedTuple):
    """A token at which both predict another continuation; `position` is that in A."""

    example_id: str
    position: int
    token: str
    kl_ab: float
    kl_ba: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ReadoutDivergence:
    """How far apart the predictions of the next token are, in nats, as means over tokens.

    Attributes:
        sources: What both were read from: `logits`, or what was read out with the model's own head.
        tokens: How many predictions were compared.
        unknown: How many were left out, since one of both holds no number there.
        kl_ab: KL(A, B): what B's prediction costs where A's is right.
        kl_ba: KL(B, A).
        same_top: The share of tokens at which both have the same likeliest next token.
        examples: The texts, in their order.
        of_text: Of each text its tokens, and the three means; NaN where it has none.
        of_position: Of each position the same.
        most_apart: The tokens of the largest KL(A, B).
    """

    sources: tuple[str, str]
    tokens: int
    unknown: int
    kl_ab: float
    kl_ba: float
    same_top: float
    examples: tuple[str, ...]
    of_text: Mapping[str, Float64[np.ndarray, "text"] | Int64[np.ndarray, "text"]]
    of_position: Mapping[str, Float64[np.ndarray, "position"] | Int64[np.ndarray, "position"]]
    most_apart: tuple[Apart, ...]

    def __repr__(self) -> str:
        means = f"KL(A, B) {self.kl_ab:.4g} nats, KL(B, A) {self.kl_ba:.4g}, same token {self.same_top:.1%}"
        return f"ReadoutDivergence({self.tokens:,} tokens: {means})"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields a row per text."""
        for number, example_id in enumerate(self.examples):
            yield {"example_id": example_id, **{name: own[number].item() for name, own in self.of_text.items()}}

    def to_frame(self) -> "pd.DataFrame":
        """Returns these rows as a table."""
        return _frame(self.rows())

    def to_json(self) -> dict[str, Any]:
        """Returns everything; lists run over texts, or over positions."""
        names = ("sources", "tokens", "unknown", "kl_ab", "kl_ba", "same_top", "examples")
        return plain(
            {
                **{name: getattr(self, name) for name in names},
                "of_text": dict(self.of_text),
                "of_position": dict(self.of_position),
                "most_apart": [each._asdict() for each in self.most_apart],
            }
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison:
    """Two runs compared; each part is None where it was not asked for or could not be.

        compared.to_frame()             # all of it, a row per number
        compared.heads.to_frame().sort_values("total_variation")
        compared.streams.cka            # (layer of A, layer of B)

    Attributes:
        about: Which runs, over what.
        readouts: How far apart their predictions are.
        streams: How alike their layers are.
        heads: How far apart their heads' attention is.
        left_out: Why a part is not there.
    """

    about: Compared
    readouts: ReadoutDivergence | None
    streams: StreamSimilarity | None
    heads: HeadDistances | None
    left_out: Mapping[str, str]

    def __repr__(self) -> str:
        about = self.about
        parts = " ".join(name for name in PARTS if getattr(self, name) is not None)
        texts = f"{about.texts} text{'' if about.texts == 1 else 's'}"
        return f"Comparison({about.runs[0]} | {about.runs[1]}: {texts}, {about.tokens:,} tokens; {parts})"

    def _repr_html_(self) -> str:
        return in_notebook(self)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields a row per number: of what part, of what in A and in B, and what is measured."""
        for part, (names, measures) in _LONG.items():
            own = getattr(self, part)
            for row in () if own is None else own.rows():
                a, b = (_named(row, names, side) for side in ("a", "b"))
                for measure in measures:
                    if measure in row:
                        yield {"part": part, "a": a, "b": b, "measure": measure, "value": row[measure]}

    def to_frame(self) -> "pd.DataFrame":
        """Returns these rows as a table; those of a part are wider in its own `to_frame()`."""
        return _frame(self.rows())

    def to_json(self) -> dict[str, Any]:
        """Returns everything, part by part, with None for NaN."""
        about = self.about
        pair = zip("ab", about.runs, about.models, strict=True)
        parts = {name: getattr(self, name) for name in PARTS}
        return {
            **{name: {"run": run, "model": model} for name, run, model in pair},
            "stack": about.stack,
            "texts": about.texts,
            "tokens": about.tokens,
            "align": about.align,
            **{name: None if own is None else own.to_json() for name, own in parts.items()},
            "left_out": dict(self.left_out),
        }


_LONG: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "readouts": ("example_id", ("kl_ab", "kl_ba", "same_top")),
    "streams": ("layer", ("cka", "cka_biased", "procrustes")),
    "heads": ("head", ("total_variation", "jensen_shannon")),
}


def _named(row: Mapping[str, Any], what: str, side: str) -> str | None:
    """What a row of a part is about: a text, a layer, a head."""
    if what == "example_id":
        return row[what]
    layer = row[f"layer_{side}"]
    written = None if layer is None else f"L{layer}"
    return written if what == "layer" else f"{written}H{row[f'head_{side}']}"


def _frame(rows: Iterator[dict[str, Any]], *whole: str) -> "pd.DataFrame":
    import pandas as pd

    table = pd.DataFrame(list(rows))
    return table.astype({name: "Int64" for name in whole if name in table})
