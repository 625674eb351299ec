"""A trace in the shape that its screen draws; `web/src/payload.ts` states the same."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from traceformer.analysis.paths.beam import LengthNorm
from traceformer.analysis.paths.sankey import BeamPath, path_weights
from traceformer.viewer.tokens import token_labels

__all__ = ["paths_payload"]

Json = dict[str, Any]


def paths_payload(result: Mapping[str, Any]) -> Json:
    """Returns what the paths screen shows of a trace, from `Paths.to_json()` or a `trace.json`.

    With one result per head, each head is a trace of its own behind that of all heads.
    """
    metadata = result["metadata"]
    target = metadata["target_pos"]
    tokens = token_labels(result["tokens"], result.get("token_bytes"))
    source = result.get("source_tokens")
    heads: Sequence[Mapping[str, Any]] = result.get("heads") or ()
    return {
        "kind": "paths",
        "title": f"Which tokens led to {tokens[target]['text']} {target}?",
        "subtitle": _subtitle(metadata),
        "tokens": tokens,
        "source_tokens": None if source is None else token_labels(source, result.get("source_bytes")),
        "traces": [_trace(result, "all heads")] + [_trace(head, _head_name(head)) for head in heads],
    }


def _subtitle(metadata: Mapping[str, Any]) -> str:
    settings = metadata.get("settings") or {}
    layer = metadata["layer"]
    parts = [
        settings.get("model"),
        "all layers" if layer == "all" else f"layer {layer}",
        _heads_in_words(settings),
        f"{metadata['seq_len']} tokens",
    ]
    return " · ".join(str(part) for part in parts if part)


def _heads_in_words(settings: Mapping[str, Any]) -> str:
    numbers: Sequence[int] = settings.get("heads") or ()
    if len(numbers) == 1:
        return f"head {numbers[0]}"
    return {"mean": "mean of heads", "max": "largest of heads", "none": "each head"}.get(
        settings.get("agg_heads", ""), ""
    )


def _head_name(result: Mapping[str, Any]) -> str:
    metadata = result["metadata"]
    return f"L{metadata['layer']}H{metadata['settings']['heads'][0]}"


def _trace(result: Mapping[str, Any], name: str) -> Json:
    metadata = result["metadata"]
    settings = metadata.get("settings") or {}
    beams = [BeamPath(**beam) for beam in result["beams"]]
    shares = path_weights(beams)
    nodes = result["sankey"]["nodes"] or [{"id": "", "position": metadata["target_pos"]}]
    columns = _Columns.of(nodes, across_layers=metadata["layer"] == "all")
    index = {node["id"]: place for place, node in enumerate(nodes)}
    at = {columns.place(node): place for place, node in enumerate(nodes)}
    paths = [[at[place] for place in columns.places(beam)] for beam in beams]
    length_norm = str(settings.get("length_norm", "avg_logprob"))
    return {
        "name": name,
        "target": paths[0][0] if paths else 0,
        "arrangement": "grid" if columns.titles else "flow",
        "columns": columns.titles,
        "layer": None if metadata["layer"] == "all" else metadata["layer"],
        "head": settings["heads"][0] if len(settings.get("heads") or ()) == 1 else None,
        "nodes": [
            {
                "position": node["position"],
                "source": node.get("stack") == "enc",
                "column": columns.column(node) if columns.titles else None,
            }
            for node in nodes
        ],
        "links": [
            {
                "source": index[link["source"]],
                "target": index[link["target"]],
                "value": link["value"],
                "lanes": [
                    _lane(beam, beams[beam], shares[beam], paths[beam].index(index[link["target"]]))
                    for beam in link["beam_indices"]
                ],
            }
            for link in result["sankey"]["links"]
        ],
        "beams": [
            {
                "nodes": path,
                "attentions": beam.edge_attns,
                "score_raw": beam.score_raw,
                "score_norm": beam.score_norm,
                "share": share,
            }
            for path, beam, share in zip(paths, beams, shares, strict=True)
        ],
        "settings": _settings(metadata),
        "length_norm": {"name": length_norm, "power": LengthNorm.parse(length_norm).power},
        "edge": _edge(metadata["layer"], settings),
        "certificate": _certificate(metadata.get("certificate")),
        "attributions": [
            {"name": method.replace("_", " "), "shares": shares}
            for method, shares in (result.get("attribution") or {}).items()
        ],
    }


def _lane(beam: int, path: BeamPath, share: float, step: int) -> Json:
    attention = path.edge_attns[step]
    head = path.heads[step] if path.heads and path.heads[step] >= 0 else None
    return {"beam": beam, "attention": attention, "head": head, "value": share * attention}


class _Columns(NamedTuple):
    """What sets nodes of the same token apart: the layer, or the number of steps from the target; or nothing."""

    titles: list[str]
    field: str | None

    @classmethod
    def of(cls, nodes: Sequence[Json], *, across_layers: bool) -> "_Columns":
        if any(node.get("step") is not None for node in nodes):
            most = max(node["step"] for node in nodes)
            back = [f"{step} back" for step in range(most, 0, -1)]
            return cls([*back, "target"], "step")
        if across_layers:
            return cls(["inputs", *(f"L{layer}" for layer in range(max(node["layer"] for node in nodes)))], "layer")
        return cls([], None)

    def column(self, node: Json) -> int:
        return len(self.titles) - 1 - node["step"] if self.field == "step" else node["layer"]

    def place(self, node: Json) -> tuple[int, str | None, int | None]:
        """Returns what tells a node from all others of its trace."""
        return node["position"], node.get("stack"), node[self.field] if self.field else None

    def places(self, beam: BeamPath) -> list[tuple[int, str | None, int | None]]:
        """Returns the same for each token of a path."""
        count = len(beam.positions)
        own: dict[str | None, Sequence[int | None] | None] = {"step": range(count), "layer": beam.states}
        return list(
            zip(beam.positions, beam.stacks or [None] * count, own.get(self.field) or [None] * count, strict=True)
        )


def _edge(layer: int | str, settings: Mapping[str, Any]) -> dict[str, str]:
    """What the weights of edges are called, and how they were made."""
    heads = _heads_in_words(settings) or "heads combined"
    where = "each layer" if layer == "all" else f"layer {layer}"
    weighting = settings.get("weighting", "attention")
    made = {
        "attention": f"An edge's attention is that of {where}, {heads}",
        "rollout": f"An edge's weight is half the attention of {where} ({heads}), half the residual stream staying",
        "value-norm": f"An edge's weight is the norm of what {where} moves along it (pattern times value through W_O, "
        f"{heads}), as a share of its row" + (", half of it the residual stream staying" if layer == "all" else ""),
    }[weighting]
    left_out = [words for name, words in _LEFT_OUT.items() if settings.get(name)]
    without = f"; {' and '.join(left_out)} taken out, the rest brought back to the row's sum" if left_out else ""
    gaps = settings.get("without_attention")
    passed = (
        f" Layers {_in_words(gaps)} have no attention: each token stays there, with weight 1, and what their linear "
        "attention or state mixes across tokens is not seen."
        if gaps
        else ""
    )
    return {"name": "attention" if weighting == "attention" else "weight", "made": f"{made}{without}.{passed}"}


_LEFT_OUT = {"exclude_self": "self-attention", "exclude_sink": "sinks"}


def _settings(metadata: Mapping[str, Any]) -> list[dict[str, str]]:
    stated = {
        "target": metadata["target_pos"],
        "layer": metadata["layer"],
        "paths asked for": metadata["top_beam"],
        "edges tried per token": metadata["top_k"],
        **(metadata.get("settings") or {}),
    }
    return [{"name": name.replace("_", " "), "value": _in_words(value)} for name, value in stated.items()]


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_in_words(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _certificate(certificate: Mapping[str, Any] | None) -> str:
    if certificate is None:
        return ""
    asked, found = len(certificate["best_scores"]), certificate["found"]
    if found == asked:
        best = "this is the best path there is" if asked == 1 else f"these are the {asked} best paths there are"
        return f"Certified: {best}."
    optimum = "the first is the best of all"
    first = optimum if certificate["optimum"] else f"the first falls short of the best by {certificate['gap']:.4g}"
    return f"Compared with every path there is: {first}; {found} of the {asked} best were found."
