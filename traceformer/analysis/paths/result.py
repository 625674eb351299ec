"""What a search for paths gives: the paths, their diagram, how they were found, and all of it as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from traceformer.analysis.paths.checked import check_bytes, check_diagram, check_path, check_settings, check_types
from traceformer.analysis.paths.sankey import BeamPath, SankeyData, SankeyLink, SankeyNode
from traceformer.errors import UsageError
from traceformer.presentation import in_notebook, present
from traceformer.texts.shown import visible

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Certificate", "Paths", "TraceResult", "chain", "format_path"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a search found, compared with the best paths there are among all edges of at least `min_attn`.

    Attributes:
        optimum: Whether the first path found is the best of all.
        found: How many of the paths found belong to as many best ones.
        best_scores: The scores of the best paths, as many as were asked for.
        gap: By how much the first path found falls short of the best.
    """

    optimum: bool
    found: int
    best_scores: list[float]
    gap: float


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths that lead to a target, and how they were found.

    Attributes:
        seq_len: Number of tokens.
        target_pos: Where the target stands, counted from 0.
        layer: The layer's number, or "all".
        top_beam: How many paths were asked for.
        top_k: How many edges of each token were tried.
        tokens: All tokens of the text, as they are shown.
        beams: The paths, best first.
        sankey: The same as nodes and links.
        paths_text: The same in words.
        settings: Everything else that decided the result, in words that `trace` takes.
        certificate: How the paths compare with the best there are, if that was asked for and can be known.
        attribution: Across layers, what share of the target each position has (`rollout`, `max_flow`).
        heads: With `agg_heads="none"` one result per head; `beams` are then the best of all heads.
        token_bytes: The bytes of tokens that are only parts of characters, as hexadecimal digits.
        source_tokens: The tokens of the source, where paths lead into one; `source_bytes` likewise.
    """

    seq_len: int
    target_pos: int
    layer: int | Literal["all"]
    top_beam: int
    top_k: int
    tokens: list[str]
    beams: list[BeamPath]
    sankey: SankeyData
    paths_text: list[str]
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    certificate: Certificate | None = None
    attribution: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    heads: list["Paths"] = field(default_factory=list["Paths"])
    token_bytes: list[str | None] = field(default_factory=list[str | None])
    source_tokens: list[str] | None = None
    source_bytes: list[str | None] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the result as reverse-attention's `trace.json` has it, with everything that it lacks beside it."""
        whole = asdict(replace(self, heads=[]))
        metadata = {name: whole.pop(name) for name in _METADATA}
        return {"metadata": metadata, **whole, "heads": [head.to_json() for head in self.heads]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Paths":
        """Returns the result that `to_json` wrote; files of the reverse-attention package are read as well.

        Raises:
            UsageError: it is neither.
        """
        try:
            fields = {name: value for name, value in data.items() if name in cls.__dataclass_fields__}
            fields |= {name: value for name, value in data["metadata"].items() if name in _METADATA}
            certificate = fields.get("certificate")
            nodes = [SankeyNode(**node) for node in data["sankey"]["nodes"]]
            links = [SankeyLink(**link) for link in data["sankey"]["links"]]
            fields |= {
                "beams": [BeamPath(**beam) for beam in data["beams"]],
                "sankey": SankeyData(nodes, links),
                "certificate": Certificate(**certificate) if certificate else None,
                "heads": [cls.from_json(head) for head in data.get("heads", ())],
            }
            return cls(**fields)._checked()
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError("this is no trace.json", why=f"{type(error).__name__}: {error}") from error

    def _checked(self) -> "Paths":
        """Returns the result itself, if it is what it is said to be."""
        check_types(replace(self, heads=[]), Paths, "the trace")
        check_settings(self.settings)
        if not 0 <= self.target_pos < len(self.tokens):
            raise TypeError(f"the target is {self.target_pos}, of {len(self.tokens)} tokens")
        for texts, notes in ((self.tokens, self.token_bytes or None), (self.source_tokens, self.source_bytes)):
            if notes is not None and len(notes) != len(texts or ()):
                raise TypeError(f"{len(texts or ())} tokens, but the bytes of {len(notes)}")
            check_bytes(notes or ())
        for number, beam in enumerate(self.beams):
            check_path(beam, f"path {number}")
        check_diagram(self.sankey, self.beams, across_layers=self.layer == "all")
        return self

    def __repr__(self) -> str:
        where = "all layers" if self.layer == "all" else f"layer {self.layer}"
        model = f" of {self.settings['model']}" if self.settings.get("model") else ""
        best = f", best score {self.beams[0].score_norm:.4f}" if self.beams else ""
        target = f"{self.target_pos} {visible(self.tokens[self.target_pos])}"
        return f"Paths({len(self.beams)} to {target} through {where}{model}{best})"

    def _repr_html_(self) -> str:
        """Shows the page in a notebook."""
        return in_notebook(self)

    def show(self) -> None:
        """Opens the page in a browser."""
        present(self, "browser")

    def to_frame(self) -> "pd.DataFrame":
        """Returns a row per edge of each path: from the token that looked, the query, to the one it looked at, the key.

        Paths are counted from 1, the best first, and the edges of each from the target on. A path without edges has no
        row. `stays` marks an edge across layers from a token to itself, as all are in a layer without attention; `head`
        is known where it was chosen per edge.
        """
        import pandas as pd

        rows = [
            {
                "path": rank,
                "score": beam.score_norm,
                "edge": edge + 1,
                "layer": self.layer if beam.states is None else beam.states[edge] - 1,
                "head": None if beam.heads is None or beam.heads[edge] < 0 else beam.heads[edge],
                "query": beam.positions[edge],
                "query_token": beam.tokens[edge],
                "key": beam.positions[edge + 1],
                "key_token": beam.tokens[edge + 1],
                "key_stack": None if beam.stacks is None else beam.stacks[edge + 1],
                "weight": weight,
                "stays": beam.states is not None and beam.positions[edge] == beam.positions[edge + 1],
            }
            for rank, beam in enumerate(self.beams, start=1)
            for edge, weight in enumerate(beam.edge_attns)
        ]
        return pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"layer": "int64", "head": "Int64"})


TraceResult = Paths
"""Its name in the reverse-attention package."""

_COLUMNS = (
    *("path", "score", "edge", "layer", "head", "query", "query_token", "key", "key_token", "key_stack"),
    *("weight", "stays"),
)
_METADATA = ("seq_len", "target_pos", "layer", "top_beam", "top_k", "settings", "certificate")


def format_path(path: BeamPath) -> str:
    """Returns a path in words, the earliest token first: `The -> ·quick -> ·fox (score: -1.2345)`.

    Across layers a token that stays where it is stands once.
    """
    tokens: list[str] = []
    previous: tuple[int, str | None] | None = None
    stacks = path.stacks or [None] * len(path.positions)
    for place, token in reversed(list(zip(zip(path.positions, stacks, strict=True), path.tokens, strict=True))):
        if place != previous:
            tokens.append(visible(token))
        previous = place
    return f"{' -> '.join(tokens)} (score: {path.score_norm:.4f})"


def chain(beam: BeamPath, *, most: int = 8) -> str:
    """Returns a path's tokens from the earliest on, those that only stay left out, and the middle of a long path."""
    places = list(zip(beam.positions, beam.stacks or [None] * len(beam.positions), strict=True))
    moves = [i for i in range(len(places)) if i == 0 or places[i] != places[i - 1]]
    tokens = [visible(beam.tokens[i]) for i in reversed(moves)]
    half = most // 2
    shown = tokens if len(tokens) <= most else [*tokens[:half], f"({len(tokens) - 2 * half} more)", *tokens[-half:]]
    return " → ".join(shown)
