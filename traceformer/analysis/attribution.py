"""What each part of a model adds to a logit, as one value: tables by part, by layer and by source token."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from traceformer.analysis.logit_split import Kind, Part
from traceformer.errors import NotRecorded
from traceformer.presentation import in_notebook, plain
from traceformer.shapes import Float64
from traceformer.sites import Attention
from traceformer.texts.shown import visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Attribution", "NamedToken"]


class NamedToken(NamedTuple):
    """A token by its number in the vocabulary, and its text."""

    id: int
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """A logit, or a difference of two, at one position, as the sum of what each part of the model adds to it.

    Norms are linear maps at the scale that they had there; a softcap is left away.

    Attributes:
        example_id: Which example.
        position: Where the logit is read, counted from 0.
        token: The text of the token there.
        to: The token whose logit it is.
        against: The token whose logit is subtracted; None for none.
        is_likeliest: Whether `to` was not said, and is the likeliest next token.
        parts: In the order of the model.
        contributions: What each adds.
        total: The logit, read from the recorded residual stream.
        explained: The largest remainder that rounding in the run and in the model explains.
        softcap: The bound that the model's own logits have, of which `total` knows nothing; None for none.
        sources: Of the heads that were asked for, what each adds by way of each source token.
        source_tokens: The texts of the tokens that each attention reads, up to where they count.
    """

    example_id: str
    position: int
    token: str
    to: NamedToken
    against: NamedToken | None
    is_likeliest: bool
    parts: tuple[Part, ...]
    contributions: Float64[np.ndarray, "part"]
    total: float
    explained: float
    softcap: float | None
    sources: Mapping[Part, Float64[np.ndarray, "source"]]
    source_tokens: Mapping[Attention, tuple[str, ...]]

    def __repr__(self) -> str:
        return (
            f"Attribution({self.example_id!r}, position {self.position}: {self.what} {self.total:.4f} = "
            f"{len(self.parts)} parts, remainder {self.remainder:.1g})"
        )

    def _repr_html_(self) -> str:
        return in_notebook(self)

    @property
    def what(self) -> str:
        """What is split, in words: `logit of a`, `logit of a - o`."""
        behind = "" if self.against is None else f" - {visible(self.against.text)}"
        return f"logit of {visible(self.to.text)}{behind}"

    @property
    def remainder(self) -> float:
        """What the parts leave of the logit: what storing them and the model's own rounding did."""
        return self.total - float(self.contributions.sum())

    def sums(self) -> dict[Kind, float]:
        """Returns what all parts of a kind add together, for every kind that there is."""
        sums: dict[Kind, float] = {}
        for part, value in zip(self.parts, self.contributions.tolist(), strict=True):
            sums[part.kind] = sums.get(part.kind, 0.0) + value
        return sums

    def grid(self, attention: Attention = "self") -> Float64[np.ndarray, "layer head"]:
        """Returns the contributions of all heads of an attention; of no layers where it has no heads by themselves."""
        heads = [i for i, part in enumerate(self.parts) if part.kind == "head" and part.attention == attention]
        n_layers = len({self.parts[i].layer for i in heads})
        return self.contributions[heads].reshape(n_layers, -1) if heads else np.zeros((0, 0))

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per part, in the order of the model; what does not apply to it is a gap."""
        import pandas as pd

        return pd.DataFrame(
            {
                "part": [str(part) for part in self.parts],
                "kind": [part.kind for part in self.parts],
                "layer": pd.array([part.layer for part in self.parts], "Int64"),
                "head": pd.array([part.head for part in self.parts], "Int64"),
                "attention": [part.attention for part in self.parts],
                "contribution": self.contributions,
            }
        )

    def accumulated(self) -> "pd.DataFrame":
        """Returns a row per sublayer, in order, with what it adds and the logit up to there; the last one is `total`.

        Up to there is what the stream behind the sublayer says through the final norm at its own, later scale, before
        the biases behind the last block. The remainder has the last row.
        """
        import pandas as pd

        rows = [
            (place, layer, float(sum(value for _, value in own)))
            for (place, layer), own in groupby(
                zip(self.parts, self.contributions.tolist(), strict=True), lambda pair: _sublayer(pair[0])
            )
        ]
        rows.append(("remainder", None, self.remainder))
        values = [value for _, _, value in rows]
        return pd.DataFrame(
            {
                "sublayer": [place for place, _, _ in rows],
                "layer": pd.array([layer for _, layer, _ in rows], "Int64"),
                "contribution": values,
                "accumulated": np.cumsum(values),
            }
        )

    def by_source(self) -> "pd.DataFrame":
        """Returns a row per head and source token: what the head adds by way of this token.

        Raises:
            NotRecorded: no heads were asked for.
        """
        import pandas as pd

        if not self.sources:
            raise NotRecorded("no head was split by source token", hint="`by_source=True`, or pairs of layer and head")
        rows = [
            (
                str(part),
                part.layer,
                part.head,
                part.attention,
                source,
                self.source_tokens[part.attention][source],
                value,
            )
            for part, values in self.sources.items()
            if part.attention is not None
            for source, value in enumerate(values.tolist())
        ]
        names = ["part", "layer", "head", "attention", "source", "token", "contribution"]
        return pd.DataFrame(rows, columns=names)

    def to_json(self) -> dict[str, Any]:
        """Returns everything; `parts` in the order of the model."""
        return {
            "example_id": self.example_id,
            "position": self.position,
            "token": self.token,
            "to": {"id": self.to.id, "token": self.to.text, "is_likeliest": self.is_likeliest},
            "against": None if self.against is None else {"id": self.against.id, "token": self.against.text},
            "total": self.total,
            "remainder": self.remainder,
            "explained": self.explained,
            "softcap": self.softcap,
            "parts": [
                {"part": str(part), **part._asdict(), "contribution": value}
                for part, value in zip(self.parts, self.contributions.tolist(), strict=True)
            ],
            "sources": [
                {"part": str(part), **part._asdict(), "contributions": plain(values)}
                for part, values in self.sources.items()
            ],
            "source_tokens": {attention: list(tokens) for attention, tokens in self.source_tokens.items()},
        }


def _sublayer(part: Part) -> tuple[str, int | None]:
    """Where a part is added: an attention with its heads, bias and norm, an MLP with its norm, or behind all blocks."""
    if part.kind == "embed":
        return "embed", None
    if part.layer is None:
        return "biases behind", None
    cross = " cross" if part.attention == "cross" else ""
    return f"L{part.layer}{cross} {'MLP' if part.attention is None else 'attn'}", part.layer
