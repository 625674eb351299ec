"""Measures the viewer against its goals, in Chromium with software rendering, and other viewers beside it.

    python benchmarks/viewer.py [--runs FOLDER] [--libraries FOLDER] [--json FILE] [--folder FOLDER] [--quick]
                                [--only start|overview|head|moving|paths|export|beside]

The runs are made by `synthetic_runs.py`, 11 GB of them; those that lie in `--runs` already are taken, and left there.
Milliseconds are those of the page's own clock, from the key, the pointer or the address to the frame whose pixels are
there. A median's 95th percentile stands behind it. Before what is called cold, what the viewer keeps beside runs is
deleted and the system is told to forget the run's files. `viewer_peers.py` says what other viewers need.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

import numpy as np
from browser import chromium, new_page
from synthetic_runs import LIKE
from table import Row, main, row
from viewer_peers import measure_peers
from viewer_runs import figures, forget, runs_in, serving

from traceformer.store.run import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CANVAS = ".heatmap canvas"
HEAD = f"bench.look({CANVAS!r}).colours > 2"


def came_up(page: "Page", test: str, seconds: int = 60) -> float:
    """Returns the ms from the page's address to the frame in which `test` first held."""
    time = page.evaluate(f"bench.until(() => {test}, {1000 * seconds})")
    if time is None:
        raise SystemExit(f"after {seconds} s there is not: {test}")
    return time


# Starting


def measure_start(runs: Path, turns: int) -> Iterator[Row]:
    """From the process's begin, without the command line's own files compiled anew."""
    listening: list[float] = []
    answered: list[float] = []
    for turn in range(turns + 1):
        with serving(runs) as server:
            if turn:  # the first one compiles what is not compiled yet
                listening.append(server.listening)
                answered.append(server.answered)
    yield figures("server: listening, ms", listening, 800, note="torch is not loaded")
    yield figures("server: the first page sent, ms", answered, None)


# The overview

TEXT = 'document.querySelectorAll(".overview .tokens button").length === {tokens}'
TABLE = 'document.querySelector(".overview .bars svg") !== null'
ATLAS = 'bench.look(".atlas canvas", 0, 0).colours > 4'
ALL_DRAWN = f'{ATLAS} && document.querySelector(".overview .progress progress") === null'
MOVED = """performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
    .reduce((sum, entry) => sum + entry.transferSize, 0)"""


def measure_overview(runs: Path, browser: "Browser", turns: int) -> Iterator[Row]:
    """Each turn opens another example of the largest run in a new page of a new server."""
    run = Run(runs / "wide")
    size = sum(path.stat().st_size for path in (runs / "wide").rglob("*") if path.is_file()) / 1e9
    first: list[float] = []
    moved: list[float] = []
    all_drawn: list[float] = []
    again: list[float] = []
    for turn in range(turns):
        example = turn % run.n
        test = " && ".join((TEXT.format(tokens=run.length(example)), TABLE, ATLAS))
        forget(runs, "wide")
        with serving(runs) as server:
            where = server.at(run="wide", screen="overview", ex=example)
            page = new_page(browser)
            page.goto(where, wait_until="commit")
            first.append(came_up(page, test))
            moved.append(page.evaluate(MOVED) / 1e6)
            all_drawn.append(came_up(page, ALL_DRAWN, 120))
            page.context.close()
            page = new_page(browser)
            page.goto(where, wait_until="commit")
            again.append(came_up(page, test))
            page.context.close()
    what = f"overview of {size:.1f} GB"
    yield figures(f"{what}: text, table, first thumbnails, ms", first, 1000, note="cold")
    yield figures("  MB moved until then", moved, 5)
    yield figures("  all 1,024 thumbnails, ms", all_drawn, None)
    yield figures("  the same opened again: text, table, thumbnails, ms", again, None)


# One head

FOLLOW = """
globalThis.drawn = async (selector, start) => {
    performance.clearMarks();
    const changes = await bench.follow(selector, 700, 10000, start);
    const times = changes.filter(({ colours }) => colours > 2).map(({ at }) => at);
    const sharp = performance.getEntriesByName("head-sharp").map(({ startTime }) => startTime - start);
    return times.length ? [Math.min(...times), Math.max(...times, ...sharp)] : null;
};"""
JUMP = """([hash, selector]) => {
    const start = performance.now();
    location.hash = hash;
    return drawn(selector, start);
}"""
ARM = """selector => {
    globalThis.pressed = new Promise(resolve => addEventListener("keydown", event => {
        resolve(drawn(selector, event.timeStamp));
    }, { capture: true, once: true }));
}"""


class Drawn(NamedTuple):
    """When a picture could be recognised, and when it changed for the last time, in ms.

    The page draws the whole matrix so that it looks the same from afar, and marks when it has; the later counts.
    """

    recognisable: float
    sharp: float


def settle(page: "Page", seconds: float = 1.5) -> None:
    """Waits until nothing is asked for any more."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1000 * seconds)


def measure_head(runs: Path, browser: "Browser", turns: int) -> Iterator[Row]:
    """Heads that were not asked for before, nor are beside one that was; then those beside each other."""
    address: list[float] = []
    cold: list[Drawn] = []
    beside: list[Drawn] = []
    for _ in range(max(1, turns // 3)):
        forget(runs, "long")
        with serving(runs) as server:
            page = new_page(browser)
            page.goto(server.at(run="long", screen="head", ex=0, layer=0, head=0), wait_until="commit")
            address.append(came_up(page, HEAD))
            page.evaluate(FOLLOW)
            settle(page)
            for layer, head in ((0, 3), (0, 6), (0, 9), (1, 1), (1, 5), (1, 8)):
                forget(runs, "long")
                hash_ = urlencode({"run": "long", "screen": "head", "ex": 0, "layer": layer, "head": head})
                cold.append(Drawn(*page.evaluate(JUMP, [f"#{hash_}", CANVAS])))
                settle(page)
                page.evaluate(ARM, CANVAS)
                page.keyboard.press(".")
                beside.append(Drawn(*page.evaluate("pressed")))
                settle(page)
            page.context.close()
    yield figures("T = 4096: a head, from its address, ms", address, None, note="the page itself and the tokens too")
    yield figures("  a cold head: recognisable, ms", [each.recognisable for each in cold], 150)
    yield figures("  sharp, ms", [each.sharp for each in cold], 400)
    yield figures("  the neighbouring head, by its key, ms", [each.recognisable for each in beside], 50)
    yield figures("    sharp, ms", [each.sharp for each in beside], None)


# Moving

FRAMES = """() => {
    const frames = [];
    let moved = 0;
    addEventListener("pointermove", () => moved++, { capture: true });
    addEventListener("wheel", () => moved++, { capture: true });
    let last = performance.now();
    const step = now => {
        if (moved) frames.push(now - last);
        moved = 0;
        last = now;
        if (!globalThis.stopped) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
    globalThis.frames = frames;
}"""
HOVER = """selector => {
    const element = document.querySelector(selector);
    const before = element.textContent;
    globalThis.told = new Promise(resolve => {
        let start = 0;
        addEventListener("pointermove", event => { start = event.timeStamp; }, { capture: true, once: true });
        const watch = new MutationObserver(() => {
            const text = element.textContent;
            if (!start || text === before || !/: [\\d.]\\S*$/.test(text)) return;
            watch.disconnect();
            resolve([performance.now() - start, text]);
        });
        watch.observe(element, { childList: true, characterData: true, subtree: true });
        setTimeout(resolve, 3000, [3000, ""]);
    });
}"""


def measure_moving(runs: Path, browser: "Browser", quick: bool) -> Iterator[Row]:
    """Frames in which the pointer or the wheel was moved; and exact values, each of another row."""
    steps = 20 if quick else 120
    with serving(runs) as server:
        page = new_page(browser)
        page.goto(server.at(run="long", screen="head", ex=0, layer=0, head=0))
        page.wait_for_selector(CANVAS)
        settle(page, 2)
        page.evaluate("scrollTo(0, 0)")
        box = page.locator(".heatmap .field").bounding_box()
        assert box is not None
        tall = min(box["height"], 880 - box["y"])  # what is seen of it
        across, down = box["x"] + tall / 2, box["y"] + tall / 2  # on the diagonal, where there is something to see
        page.mouse.move(across, down)
        page.evaluate(FRAMES)
        for _ in range(steps):
            page.mouse.wheel(0, -15)
        page.wait_for_timeout(200)
        zooming = page.evaluate("frames.splice(0)")
        before = page.evaluate(f"bench.look({CANVAS!r}).hash")
        page.mouse.down()
        for step in range(2 * steps):
            page.mouse.move(across + 80 * np.sin(step / 9), down + 60 * np.cos(step / 7))
        if page.evaluate(f"bench.look({CANVAS!r}).hash") == before:
            raise SystemExit("the picture was not moved")
        page.mouse.up()
        panning = page.evaluate("frames.splice(0)")
        page.evaluate("globalThis.stopped = true")
        page.keyboard.press("f")
        page.locator(".heatmap .field").press("f")
        settle(page, 1)
        random = np.random.default_rng(0)
        told: list[tuple[float, str]] = []
        for across, down in random.random((steps, 2)):
            page.evaluate(HOVER, ".heatmap .told")
            page.mouse.move(box["x"] + 1 + across * (box["width"] - 2), box["y"] + 1 + down * (tall - 2))
            told.append(page.evaluate("told"))
            page.wait_for_timeout(50)
        check_values(Run(runs / "long"), [text for _, text in told if text])
        page.context.close()
    panning, zooming = np.round(panning, 1), np.round(zooming, 1)  # as finely as a browser tells the time
    yield figures("T = 4096: frames while dragging, ms", panning, 16.7)
    yield figures("  frames while the wheel turns, ms", zooming, 16.7)
    what = "  exact value below the pointer, 95th percentile, ms"
    yield figures(what, [time for time, _ in told], 60, percentile=95, note="compared with what is stored")


def check_values(run: Run, told: Sequence[str]) -> None:
    """Compares `token 5 → token 3: 0.0123` with what is stored."""
    weights = run.attn(0, 0, 0)
    for text in told:
        cell, value = text.rsplit(": ", 1)
        query, key = (int(end.rsplit(" ", 1)[1]) for end in cell.split(" → "))
        if not np.isclose(float(value.replace("−", "-")), weights[query, key], rtol=2e-3, atol=1e-6):
            raise SystemExit(f"{text} is shown where {weights[query, key]} is stored")


# Paths

REDRAWN = """async ([hash, selector]) => {
    const start = performance.now();
    location.hash = hash;
    return bench.settles(selector, 600, 20000, start);
}"""
SEARCHED = """async query => {
    const start = performance.now();
    const answer = await fetch(`api/paths?${new URLSearchParams(query)}`);
    const { pending } = await answer.json();
    return pending ? null : performance.now() - start;
}"""
FIGURE = ".paths .chart .picture"
MANY = 31  # beams, of a link for each layer


def measure_paths(runs: Path, browser: "Browser", turns: int) -> Iterator[Row]:
    """Paths through all layers of the deep run: answers of the server, and drawings of answers that the page has."""
    shape = LIKE["deep"]
    n = shape.lengths[0]
    view = {"run": "deep", "screen": "paths", "ex": 0, "q": n - 1}
    forget(runs, "deep")
    with serving(runs) as server:
        page = new_page(browser)
        page.goto(server.at(**view, **{"paths.top_beam": 10}), wait_until="commit")
        first = came_up(page, "document.querySelector('.beam > [data-link]') !== null", 120)
        settle(page)
        query = {"run": "deep", "ex": 0, "attn": "dec.self", "layer": "all", "top_beam": 10}
        searched = [page.evaluate(SEARCHED, {**query, "q": n - 2 - turn}) for turn in range(5 * turns)]
        fragments = {beams: urlencode({**view, "paths.top_beam": beams}) for beams in (MANY, MANY - 1)}
        for fragment in fragments.values():
            page.evaluate(REDRAWN, [fragment, FIGURE])
            settle(page)
        many = fragments[MANY]
        redrawn: list[float] = []
        filtered: list[float] = []
        shown = ""
        for _ in range(turns):
            redrawn.append(page.evaluate(REDRAWN, [many, FIGURE]))
            settle(page, 0.3)
            counts = [page.locator(selector).count() for selector in (".node", ".beam:not(.off) > [data-link]")]
            shown = f"{counts[0]} nodes, {counts[1]} links"
            filtered.append(page.evaluate(REDRAWN, [f"{many}&paths.beams=A", FIGURE]))
            page.evaluate(REDRAWN, [fragments[MANY - 1], FIGURE])
            settle(page, 0.3)
        page.context.close()
    what = f"{shape.layers} layers, T = {n}"
    yield figures(
        f"{what}: paths from their address, ms", [first], None, note=f"reads {shape.layers * shape.heads} heads"
    )
    yield figures("  searched again, 10 beams, ms", [each for each in searched if each is not None], 150)
    yield figures(f"  {shown} drawn, ms", redrawn, 150)
    yield figures("  one path of them alone, ms", filtered, 50)


# One file


def measure_export(folder: Path, runs: Path, browser: "Browser", turns: int) -> Iterator[Row]:
    """Files as they are exported, opened from disk; every address that is asked for is counted."""
    from traceformer.questions.paths import paths
    from traceformer.viewer.export import export_html
    from traceformer.viewer.pages import paths_html

    run, example = Run(runs / "small"), LIKE["small"].lengths.index(256)
    trace, heads = folder / "trace.html", folder / "heads.html"
    trace.write_text(paths_html(paths(run, example)), encoding="utf-8")
    export_html(run, heads, examples=[example], screens=["overview", "head"])
    has = "document.querySelector({!r}) !== null".format
    for what, file, fragment, test, size, limit in (
        ("one trace as a file", trace, "", has(".beam > [data-link]"), 0.25, 500),
        ("12 x 12 heads at T = 256 as a file", heads, "#screen=head", HEAD, 10, None),
    ):
        drawn: list[float] = []
        asked: list[str] = []
        for _ in range(turns):
            page = new_page(browser)
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(file.as_uri() + fragment, wait_until="commit")
            drawn.append(came_up(page, test))
            settle(page, 0.5)
            page.context.close()
        outside = [url for url in asked if not url.startswith((file.as_uri(), "data:", "blob:"))]
        yield figures(f"{what}, MB", [file.stat().st_size / 1e6], size)
        yield figures("  requests to anywhere", [len(outside)], 0)
        yield figures("  drawn, ms", drawn, limit)


# Beside other viewers


def measure_beside(
    folder: Path, runs: Path, browser: "Browser", libraries: Path | None, turns: int, quick: bool
) -> Iterator[Row]:
    """The first picture of the same texts, from the address of a server that nobody asked before."""
    theirs: dict[str, float] = {}
    for each in measure_peers(folder, browser, libraries, quick):
        theirs[each.what] = each.value
        yield each
    run = Run(runs / "small")
    tests = {"overview": f"{TEXT} && {ATLAS}", "head": HEAD}
    for example, n in enumerate(LIKE["small"].lengths):
        for screen, test in tests.items():
            times: list[float] = []
            moved = 0.0
            for _ in range(turns):
                forget(runs, "small")
                with serving(runs) as server:
                    page = new_page(browser)
                    page.goto(server.at(run="small", screen=screen, ex=example), wait_until="commit")
                    times.append(came_up(page, test.format(tokens=run.length(example))))
                    moved = page.evaluate(MOVED) / 1e6
                    page.context.close()
            yield figures(f"ours, T = {n}: first picture of the {screen}, ms", times, None, note=f"{moved:.2f} MB")
            their = theirs.get(f"bertviz, T = {n}: first picture, ms")
            if their:
                ratios = [their / time for time in times]
                yield row("  times sooner than BertViz", ratios, 20 if n == 256 else None, at_least=True)


def measure(
    folder: Path, runs: Path | None, libraries: Path | None, turns: int, quick: bool, only: str | None
) -> Iterator[Row]:
    where, turns = runs_in((runs or folder / "runs").resolve(), quick), 2 if quick else turns
    with chromium() as browser:
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "start": lambda: measure_start(where, turns),
            "overview": lambda: measure_overview(where, browser, turns),
            "head": lambda: measure_head(where, browser, turns),
            "moving": lambda: measure_moving(where, browser, quick),
            "paths": lambda: measure_paths(where, browser, turns),
            "export": lambda: measure_export(folder, where, browser, turns),
            "beside": lambda: measure_beside(folder, where, browser, libraries, turns, quick),
        }
        for name in [only] if only else parts:
            yield from parts[name]()


if __name__ == "__main__":
    main(__doc__, measure)
