"""Measures the paths page in Chromium with software rendering: drawing it anew, filtering, and opening it from disk.

    python benchmarks/viewer_paths.py [--json FILE] [--quick]

The page has about 1,000 links between 300 nodes, of random attention. Times are from the event to the end of the frame
that shows its effect, and beside them how long the page's own thread was at work until then, in processor time.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from browser import chromium, new_page
from table import Row, main, row, took

from traceformer.analysis.paths.result import Paths, format_path
from traceformer.analysis.paths.sankey import BeamPath, beams_to_sankey
from traceformer.analysis.paths.trace import EdgeWeights, PathOptions, TokenRow, search_paths, trace_paths
from traceformer.presentation import plain
from traceformer.viewer.pages import paths_html
from traceformer.viewer.path_payloads import paths_payload

if TYPE_CHECKING:
    from playwright.sync_api import Page

TURNS = 15
SHOWN = """async act => {
    const start = performance.now();
    eval(act);
    await bench.painted();
    return performance.now() - start;
}"""
PAINTED = """new Promise(done => new PerformanceObserver((list, all) => {
    all.disconnect();
    done(list.getEntriesByName("first-contentful-paint")[0].startTime);
}).observe({ type: "paint", buffered: true }))"""
PICK = """((selector, value) => {
    const choice = document.querySelector(selector);
    choice.value = value;
    choice.dispatchEvent(new Event("change", { bubbles: true }));
})"""


def attention(layers: int, n: int, seed: int) -> np.ndarray:
    """Returns random causal patterns that look nearby more often, in float32."""
    random = np.random.default_rng(seed)
    scores = 2.2 * random.standard_normal((layers, n, n), np.float32)
    scores -= ((np.arange(n)[:, None] - np.arange(n)) / 64).astype(np.float32)
    scores[:, np.triu_indices(n, 1)[0], np.triu_indices(n, 1)[1]] = -np.inf
    np.exp(scores - scores.max(axis=-1, keepdims=True), out=scores)
    return scores / scores.sum(axis=-1, keepdims=True)


def tokens(n: int) -> TokenRow:
    return TokenRow(list(range(n)), [f" w{i}" for i in range(n)], [None] * n, np.arange(n) == 0, np.ones(n, bool))


def large(seed: int = 0) -> Paths:
    """Returns 100 paths of 10 edges through 300 tokens of one layer: about 1,000 links, hardly any of them shared."""
    random, n = np.random.default_rng(seed), 300
    rows = tokens(n)
    beams: list[BeamPath] = []
    for _ in range(100):
        inner = np.sort(random.choice(np.arange(1, n - 1), 9, replace=False))[::-1].tolist()
        positions, edges = [n - 1, *inner, 0], random.uniform(0.05, 0.9, 10).tolist()
        score = float(np.log(edges).sum())
        texts = [rows.texts[position] for position in positions]
        beams.append(BeamPath(positions, texts, positions, edges, score, score / len(edges)))
    beams.sort(key=lambda beam: -beam.score_norm)
    settings = {"length_norm": "avg_logprob", "heads": [seed], "kind": "causal"}
    lines = [format_path(beam) for beam in beams]
    return Paths(n, n - 1, 5, 100, 5, rows.texts, beams, beams_to_sankey(beams, 5), lines, settings)


def two_heads() -> Paths:
    """Returns a result with such a trace for each of two heads, between which the page changes."""
    return replace(large(0), heads=[large(1), large(2)])


def usual() -> Paths:
    """Returns a trace as one is asked for: 5 paths through a text of 128 tokens."""
    return trace_paths([EdgeWeights(attention(1, 128, 3), 5, (0,))], tokens(128), [-1], PathOptions(certify=True))[0]


def timed(page: "Page", act: str) -> tuple[float, float]:
    """Returns how long it took until what an action does was shown, and the work of the page until then, in ms."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # of the processor, not of the clock

    def worked() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return 1e3 * next(one["value"] for one in metrics if one["name"] == "TaskDuration")

    page.wait_for_timeout(150)  # whatever is put off until the page has nothing to do
    before = worked()
    until_shown = page.evaluate(SHOWN, act)
    work = worked() - before
    session.detach()
    return until_shown, work


def timed_often(page: "Page", acts: list[str], turns: int) -> list[tuple[list[float], list[float]]]:
    """Returns for each of some actions, which take turns, the times until they were shown and the work, in ms."""
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in acts]
    for turn in range(turns + 1):
        for times, act in zip(found, acts, strict=True):
            measured = timed(page, act)
            if turn:  # the first one warms up
                for kept, value in zip(times, measured, strict=True):
                    kept.append(value)
    return found


def measure_page(turns: int) -> Iterator[Row]:
    result = two_heads()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        large_file, usual_file = Path(folder) / "large.html", Path(folder) / "usual.html"
        large_file.write_text(paths_html(result), encoding="utf-8")
        usual_file.write_text(paths_html(usual()), encoding="utf-8")
        page = new_page(browser)
        page.goto(large_file.as_uri() + "#trace=1")
        page.wait_for_selector(".lane")
        size = f"{len(result.heads[0].sankey.nodes)} nodes, {len(result.heads[0].sankey.links)} links"
        for (times, works), (what, goal) in zip(
            timed_often(page, [f"{PICK}('[aria-label=Trace]', '{index}')" for index in (2, 1)], turns),
            [("another", 150.0), ("", None)],
            strict=True,
        ):
            if what:
                yield row(f"{size}: another trace drawn, in ms", times, goal, note=f"work {median(works):.0f} ms")
        acts = [f"{PICK}('.beams select', '{value}')" for value in ("3", "all")]
        for (times, works), what in zip(
            timed_often(page, acts, turns), ("one path alone", "all paths again"), strict=True
        ):
            yield row(f"  {what}, in ms", times, 50.0, note=f"work {median(works):.0f} ms")
        for file, what in ((usual_file, "a usual trace"), (large_file, size)):
            shown: list[float] = []
            for _ in range(min(turns, 7)):
                page.goto(f"{file.as_uri()}?{len(shown)}")
                page.wait_for_selector(".lane")
                shown.append(page.evaluate(PAINTED))
            note = f"{file.stat().st_size / 1e3:.0f} kB"
            yield row(
                f"{what}, opened from disk and painted, in ms", shown, 500.0 if "usual" in what else None, note=note
            )
        page.close()


def measure_search(layers: int, n: int, turns: int) -> Iterator[Row]:
    weights = [EdgeWeights(attention(layers, n, 5), "all", (0,))]
    row_of = tokens(n)
    for certify, goal in ((False, 150.0), (True, None)):
        options = PathOptions(top_beam=10, certify=certify)

        def answer(target: int, options: PathOptions = options) -> None:
            (result,) = search_paths(weights, row_of, [target], options)
            json.dumps(plain(paths_payload(result.to_json())), ensure_ascii=False, allow_nan=False)

        times = [took(partial(answer, n - 1 - turn)) for turn in range(turns + 1)][1:]
        what = "compared with the best there are" if certify else "10 paths"
        note = f"processor {1e3 * median(one.processor for one in times):.0f} ms"
        yield row(
            f"search again, {layers} layers, T = {n}, {what}, in ms", [1e3 * one.wall for one in times], goal, note=note
        )


def measure(quick: bool) -> Iterator[Row]:
    turns = 3 if quick else TURNS
    yield from measure_page(turns)
    yield from measure_search(4 if quick else 32, 128 if quick else 1024, turns)


if __name__ == "__main__":
    main(__doc__, measure, threads=2)
