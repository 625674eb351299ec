"""What a search for paths found, in lines of text."""

import shutil
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

from traceformer.analysis.paths.result import Paths, chain
from traceformer.analysis.paths.sankey import BeamPath
from traceformer.cli.terminal import table
from traceformer.texts.shown import visible

__all__ = ["report"]

_INDENT = "      "
_MOST_SHARES = 5


def report(result: Paths) -> str:
    """Returns the paths as chains of tokens, the earliest first, with weights and scores; and how good they are."""
    lines = [f"which tokens led to {_named(result.tokens, result.target_pos)}?", _where(result), ""]
    if result.heads:
        lines += [*_by_head(result), "", f"the best {len(result.beams)} of all heads", ""]
    for rank, beam in enumerate(result.beams, start=1):
        lines += _path(rank, beam, result)
    lines += ["", *_verdict(result)]
    for name, shares in result.attribution.items():
        lines.append(_shares(name.replace("_", " "), shares, result))
    return "\n".join(line.rstrip() for line in lines)


def _where(result: Paths) -> str:
    settings = result.settings
    heads = settings["heads"]
    n_heads = f"{len(heads)} heads"
    how = {"mean": f"mean of {n_heads}", "max": f"the strongest of {n_heads} for each edge", "none": n_heads}.get(
        settings["agg_heads"], f"head {settings['agg_heads']}"
    )
    layer = "all layers" if result.layer == "all" else f"layer {result.layer}"
    stack = {"any": ", which looks ahead", "cross": " of the decoder, into the source"}.get(settings["kind"], "")
    weighting = "" if settings["weighting"] == "attention" else f"; weighted by {settings['weighting']}"
    share = settings["residual_share"]
    residual = f", {share:g} for staying in the residual stream" if share else ""
    left_out = [name for name, key in (("self-attention", "exclude_self"), ("sinks", "exclude_sink")) if settings[key]]
    without = f"; without {' and '.join(left_out)}, rows brought back to their sum" if left_out else ""
    gaps = settings.get("without_attention")
    passed = f"; no attention in layers {', '.join(map(str, gaps))}: what these mix is not seen" if gaps else ""
    return f"{settings['model']}, {layer}{stack}, {how}{weighting}{residual}{without}{passed}"


def _named(tokens: Sequence[str], position: int) -> str:
    return f"{position} {visible(tokens[position])}"


def _path(rank: int, beam: BeamPath, result: Paths) -> Iterator[str]:
    n_edges = len(beam.edge_attns)
    yield f"{rank:>3}   score {beam.score_norm:.4f}, {n_edges} edge{'s' * (n_edges != 1)}"
    yield from _wrapped(_links(beam, result))


def _links(beam: BeamPath, result: Paths) -> Iterator[str]:
    """The tokens from the earliest on, each with the weight of the edge to the next; stays are counted."""
    steps = range(len(beam.positions) - 1, -1, -1)
    stayed: list[float] = []
    for step in steps:
        tokens = result.source_tokens if beam.stacks is not None and beam.stacks[step] == "enc" else result.tokens
        assert tokens is not None
        edge = beam.edge_attns[step - 1] if step else None
        if edge is not None and beam.states is not None and beam.positions[step] == beam.positions[step - 1]:
            stayed.append(edge)
            continue
        stays = f" (stays {_times(stayed)})" if stayed else ""
        stayed = []
        source = "source " if tokens is result.source_tokens else ""
        yield f"{source}{_named(tokens, beam.positions[step])}{stays}" + (f" ─{_edge(beam, step)}→" if step else "")


def _times(weights: Sequence[float]) -> str:
    return f"{len(weights)} layer{'s' * (len(weights) != 1)}: {' '.join(f'{weight:.2f}' for weight in weights)}"


def _edge(beam: BeamPath, step: int) -> str:
    """An edge's weight, and where several layers or heads are possible, which it is in."""
    layer = f"L{beam.states[step]}" if beam.states is not None else ""
    head = f"H{beam.heads[step - 1]}" if beam.heads is not None else ""
    return " ".join(part for part in (layer + head, f"{beam.edge_attns[step - 1]:.2f}") if part)


def _wrapped(links: Iterator[str]) -> Iterator[str]:
    width = shutil.get_terminal_size((100, 24)).columns
    line = _INDENT
    for link in links:
        if line != _INDENT and cell_len(line) + cell_len(link) > width:
            yield line
            line = _INDENT
        line += f"{link} "
    yield line


def _by_head(result: Paths) -> list[str]:
    rows = [
        (f"L{head.layer}H{head.settings['heads'][0]}", f"{head.beams[0].score_norm:.4f}", chain(head.beams[0]))
        for head in result.heads
    ]
    return table(("head", "score", "its best path"), rows, numeric=(1,)).splitlines()


def _verdict(result: Paths) -> Iterator[str]:
    certificate, count = result.certificate, len(result.beams)
    if result.settings["search"] == "exact":
        yield f"these are the {count} best of all paths" if count != 1 else "this is the best of all paths"
    elif result.heads:
        pass
    elif certificate is None:
        yield "whether there are better paths is not known: no exact search in one layer that looks ahead"
    elif certificate.found == len(certificate.best_scores):
        yield (
            f"the beam found the optimum: these are the {count} best of all paths"
            if count > 1
            else ("the beam found the optimum: this is the best of all paths")
        )
    elif certificate.optimum:
        of = len(certificate.best_scores)
        yield f"the beam found the optimum; {certificate.found} of its {count} paths are among the {of} best of all"
    else:
        yield (
            f"the beam missed the optimum: the best of all paths scores {certificate.best_scores[0]:.4f}, "
            f"{certificate.gap:.4f} more; --search exact shows it"
        )


def _shares(name: str, shares: Sequence[float], result: Paths) -> str:
    order = sorted(range(len(shares)), key=lambda position: (-shares[position], position))[:_MOST_SHARES]
    shown = [f"{_named(result.tokens, position)} {shares[position]:.3f}" for position in order]
    return f"{name} over all paths: {', '.join(shown)}"
