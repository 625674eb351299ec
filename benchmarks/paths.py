"""Measures reverse attention against the reverse-attention package (PyPI, 0.1.0), in the same run.

    python benchmarks/paths.py [--json FILE] [--quick]

Ratios are of runs that alternate, medians of three. Searches are in synthetic attention, the mean of 14 heads that
look back over 2 to 2000 tokens and at token 0; and in a softmax of noise. The model has random weights in Qwen2-0.5B's
shape. Memory is the peak above the loaded model, in a process of its own.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reverse_attention import ReverseAttentionTracer as ForeignTracer
from reverse_attention.beam import beam_search_backward as foreign_search
from table import Row, in_process, main, memory, row, seconds

from traceformer.analysis.paths.beam import LengthNorm, beam_search
from traceformer.analysis.paths.exact import best_paths
from traceformer.analysis.paths.graph import Graph
from traceformer.compat.reverse_attention import ReverseAttentionTracer

REPEATS = 3
TOP_BEAM, TOP_K = 50, 20
RANDOM = np.random.default_rng(0)
QWEN2 = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def softmax(scores: np.ndarray) -> np.ndarray:
    scores[np.triu_indices(len(scores), 1)] = -np.inf
    np.exp(scores - scores.max(axis=1, keepdims=True), out=scores)
    return scores / scores.sum(axis=1, keepdims=True)


def attention(n: int, heads: int = 14) -> np.ndarray:
    """Returns the mean of causal heads with reaches from 2 to 2000 tokens and a sink at token 0."""
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    mean = np.zeros((n, n), np.float32)
    for reach in np.geomspace(2, 2000, heads):
        scores = RANDOM.standard_normal((n, n), np.float32) * 1.5 - (distance / reach).astype(np.float32)
        scores[:, 0] += 2
        mean += softmax(scores) / heads
    return mean


def graph_of(weights: np.ndarray) -> Graph:
    n = len(weights)
    return Graph(weights[None], "causal", np.arange(n) == 0, np.ones(n, bool))


def own_search(weights: np.ndarray, targets: list[int]) -> list[Any]:
    return beam_search(graph_of(weights), targets, top_beam=TOP_BEAM, top_k=TOP_K, norm=LengthNorm(1.0))


def their_search(weights: np.ndarray, targets: list[int]) -> list[Any]:
    tensor = torch.from_numpy(weights)
    return [foreign_search(tensor, target, TOP_BEAM, TOP_K, bos_positions=[0]) for target in targets]


def alternate(one: Callable[[], object], other: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Returns the seconds that each took, turn by turn, after a first turn of the first one that does not count."""
    one()
    turns = [(seconds(one), seconds(other)) for _ in range(REPEATS)]
    return [turn[0] for turn in turns], [turn[1] for turn in turns]


def measure_search(n: int, n_targets: int) -> Iterator[Row]:
    noise = softmax(RANDOM.standard_normal((n, n), np.float32))
    for what, weights, target in (
        (f"search, T = {n}, {TOP_BEAM} x {TOP_K}, times faster", attention(n), 10.0),
        ("  the same in a softmax of noise, whose paths are short", noise, None),
    ):
        found = [path.positions for path in own_search(weights, [n - 1])[0]]
        if found != [path.positions for path in their_search(weights, [n - 1])[0]]:
            raise SystemExit("the two searches disagree")
        ours, theirs = alternate(lambda w=weights: own_search(w, [n - 1]), lambda w=weights: their_search(w, [n - 1]))
        ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
        note = f"{min(ours) * 1e3:.0f} over {min(theirs) * 1e3:.0f} ms"
        yield row(what, ratios, target, at_least=True, note=note)
    weights = attention(n_targets)
    sample = list(range(15, n_targets, 16))
    ours, theirs = alternate(lambda: own_search(weights, list(range(n_targets))), lambda: their_search(weights, sample))
    ratios = [16 * slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    note = f"{min(ours):.1f} s; theirs from every 16th, {16 * min(theirs):.0f} s"
    yield row(f"a target per token of {n_targets}, times faster", ratios, 30.0, at_least=True, note=note)


def measure_exact(n: int) -> Iterator[Row]:
    graph = graph_of(attention(n))
    for name, power in (("none", 0.0), ("avg_logprob", 1.0), ("sqrt", 0.5)):
        norm = LengthNorm(power)
        took = [seconds(lambda norm=norm: best_paths(graph, [n - 1], k=5, norm=norm)) for _ in range(REPEATS)]
        best = best_paths(graph, [n - 1], k=1, norm=norm)[0][0]
        beam = beam_search(graph, [n - 1], top_beam=5, top_k=5, norm=norm)[0][0]
        scores = [norm.score(path.log_score, path.num_edges) for path in (beam, best)]
        note = f"a beam of 5 x 5 scores {scores[0]:.2f}, the best path {scores[1]:.2f}"
        yield row(f"exact search, 5 best, T = {n}, {name}, in s", took, None, note=note)


class Numbers:
    """A tokenizer that calls token 7 ` 7`; no text is tokenised here."""

    bos_token_id = eos_token_id = pad_token_id = cls_token_id = sep_token_id = None

    def decode(self, ids: list[int]) -> str:
        return f" {ids[0]}"

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [str(each) for each in ids]


def random_model(layers: int, implementation: str) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**{**QWEN2, "num_hidden_layers": layers, "attn_implementation": implementation})
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05) if parameter.dim() > 1 else parameter.fill_(1)
        rotary: Any = model.model.rotary_emb
        model.model.rotary_emb = type(rotary)(config)  # its buffers are computed, not weights
        model.tie_weights()
    return model


def peak_of(what: str, n: int, layers: int) -> float:
    """Returns how many bytes more than the loaded model a process needs that traces once."""
    return in_process(f"import paths; paths.print_peak({what!r}, {n}, {layers})")


def print_peak(what: str, n: int, layers: int) -> None:
    model = random_model(layers, "eager" if what == "theirs" else "sdpa")
    tracer: Any = (ForeignTracer if what == "theirs" else ReverseAttentionTracer)(model, Numbers())
    ids = torch.from_numpy(RANDOM.integers(0, 1000, (1, n)))
    tracer.trace(ids[:, :8], stop_at_bos=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = memory("VmRSS")
    if what == "forward":
        with torch.inference_mode():
            model(ids, use_cache=False)
    else:
        tracer.trace(ids, stop_at_bos=False)
    print(memory("VmHWM") - before)


def measure_end_to_end(n: int, layers: int) -> Iterator[Row]:
    peaks = {what: peak_of(what, n, layers) for what in ("ours", "theirs", "forward")}
    note = "; ".join(f"{what} {peak / 2**20:.0f} MiB" for what, peak in peaks.items())
    yield row(
        f"trace, Qwen2-0.5B's shape, T = {n}: peak over theirs", [peaks["ours"] / peaks["theirs"]], 0.2, note=note
    )
    model = random_model(layers, "sdpa")
    tracer = ReverseAttentionTracer(model, Numbers())
    ids = torch.from_numpy(RANDOM.integers(0, 1000, (1, n)))

    def forward() -> None:
        with torch.inference_mode():
            model(ids, use_cache=False)

    ours, plain = alternate(lambda: tracer.trace(ids), forward)
    note = f"{min(ours):.1f} over {min(plain):.1f} s"
    yield row(
        "  the last layer: time over a plain forward pass",
        [a / b for a, b in zip(ours, plain, strict=True)],
        1.2,
        note=note,
    )
    across, plain = alternate(lambda: tracer.trace(ids, layer="all", weighting="rollout"), forward)
    note = f"{min(across):.1f} over {min(plain):.1f} s"
    yield row("  across all layers", [a / b for a, b in zip(across, plain, strict=True)], None, note=note)


def measure(quick: bool) -> Iterator[Row]:
    yield from measure_search(256 if quick else 2048, 64 if quick else 512)
    yield from measure_exact(256 if quick else 2048)
    yield from measure_end_to_end(64 if quick else 1024, 2 if quick else 24)


if __name__ == "__main__":
    main(__doc__, measure, threads=2)
