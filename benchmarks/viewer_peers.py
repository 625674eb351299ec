"""Pages that other packages make of the same attention, and how long they take to come up.

    pip install bertviz attnview
    npm install --prefix FOLDER requirejs@2.3.6 d3@5.7.0 jquery@2.1.0
    python benchmarks/viewer_peers.py --libraries FOLDER [--json FILE] [--folder FOLDER] [--quick]

Each page has all layers and heads that there are, and is opened from disk. BertViz's loads three libraries from the
network; here they lie on the disk, which is quicker. Making a page in Python is timed by itself, and not counted. A
page is up when the frame that has its elements was painted, as far as the page itself can tell.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from browser import chromium, new_page
from synthetic_runs import LIKE, write_run
from table import Row, in_process, main, row, seconds

from traceformer.store.run import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LIMIT = 180  # seconds that a page may take to come up
TURNS = 3
BERTVIZ_LOADS = {
    "https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js": "requirejs/require.js",
    "https://cdnjs.cloudflare.com/ajax/libs/d3/5.7.0/d3.min": "d3/dist/d3.min",
    "https://cdnjs.cloudflare.com/ajax/libs/jquery/2.0.0/jquery.min": "jquery/dist/jquery.min",
}


def bertviz_html(run: Run, example: int) -> str:
    """The head view of all layers, which begins with the first one's heads: a line per weight."""
    import torch
    from bertviz import head_view  # pyright: ignore[reportMissingImports]

    attention = tuple(torch.from_numpy(layer)[None] for layer in run.attn(example))
    return head_view(attention, run.tokens_of(example), html_action="return").data


def attnview_html(run: Run, example: int) -> str:
    """An atlas of all layers, which begins with one row of one head."""
    import attnview  # pyright: ignore[reportMissingImports]

    cache = {f"blocks.{number}.attn.hook_pattern": layer for number, layer in enumerate(run.attn(example))}
    return attnview.render_html(attnview.from_cache(cache, tokens=run.tokens_of(example)))


@dataclass(frozen=True, slots=True)
class Peer:
    """A package: what makes its page of an example, and which element is there once it shows something."""

    html: Callable[[Run, int], str]
    element: str
    loads: Mapping[str, str]


PEERS = {
    "bertviz": Peer(bertviz_html, "#attention line[stroke-opacity]", BERTVIZ_LOADS),
    "attnview": Peer(attnview_html, "#weights tr", {}),
}


def write_page(name: str, folder: Path, example: int, page: Path, libraries: Path | None) -> None:
    """Writes a package's page of an example, and prints the seconds that making it took."""
    run, made = Run(folder), ""

    def make() -> None:
        nonlocal made
        made = PEERS[name].html(run, example)

    took = seconds(make)
    for address, place in PEERS[name].loads.items():
        assert address in made, f"{name} loads something else than {address}"
        made = made.replace(address, (libraries / "node_modules" / place).resolve().as_uri() if libraries else "")
    page.write_text(made, encoding="utf-8")
    print(took)


def comes_up(browser: "Browser", page: Path, element: str) -> float | None:
    """Returns the milliseconds from the page's address to its picture; None if it does not come up."""
    from playwright.sync_api import Error

    tab = new_page(browser, LIMIT)
    try:
        tab.goto(page.as_uri(), wait_until="commit")
        return tab.evaluate(f"bench.until(() => document.querySelector({element!r}), {1000 * LIMIT})")
    except Error as error:  # the tab crashed, or had no answer for too long
        print(f"{page.name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    finally:
        tab.context.close()


def measure_peers(folder: Path, browser: "Browser", libraries: Path | None, quick: bool) -> Iterator[Row]:
    """Yields the rows of each package that there is, at every length."""
    shape = LIKE["small"]
    run = write_run(folder / "small", shape)
    for name, peer in PEERS.items():
        if not find_spec(name) or (peer.loads and not libraries):
            print(f"{name} is left out: see the top of benchmarks/viewer_peers.py", file=sys.stderr)
            continue
        for example, n in enumerate(shape.lengths[:2] if quick else shape.lengths):
            page = folder / f"{name}-{n}.html"
            arguments = f"{name!r}, Path({str(run)!r}), {example}, Path({str(page)!r})"
            where = f"Path({str(libraries.resolve())!r})" if libraries else "None"
            make = f"from pathlib import Path; import viewer_peers as v; v.write_page({arguments}, {where})"
            making = in_process(make)
            size = page.stat().st_size / 1e6
            times = [comes_up(browser, page, peer.element) for _ in range(TURNS if n < 256 else 1)]
            page.unlink()
            shown = [each for each in times if each is not None]
            missed = "" if shown else f"; NOT UP within {LIMIT} s"
            note = f"{size:.1f} MB, made in {making:.1f} s{missed}"
            yield row(f"{name}, T = {n}: first picture, ms", shown or [1e3 * LIMIT], None, note=note)


def measure(folder: Path, libraries: Path | None, quick: bool) -> Iterator[Row]:
    with chromium() as browser:
        yield from measure_peers(folder, browser, libraries, quick)


if __name__ == "__main__":
    main(__doc__, measure)
