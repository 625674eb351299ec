"""What an open paths page shows: its lanes and nodes, and what stands out; and what it logs and asks for."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from traceformer.analysis.paths.result import TraceResult

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

Show = Callable[..., "Page"]
Live = Callable[..., "Page"]
INSIDE = ("data:", "blob:")


def watch(page: "Page", logged: list[str], asked: list[str]) -> None:
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("data:", "blob:")) else asked.append(request.url)
    )


def lanes(page: "Page") -> list[dict[str, Any]]:
    """Returns every lane that is drawn: what it says of itself, and how high its outline is at each end."""
    return page.eval_on_selector_all(
        ".beam:not(.off) > [data-link]",
        """drawn => drawn.map(lane => {
            const numbers = lane.getAttribute("d").match(/-?[\\d.]+/g).map(Number);
            const half = numbers.length / 2;
            return {
                link: Number(lane.dataset.link),
                beam: Number(lane.dataset.beam),
                value: Number(lane.dataset.value),
                attention: Number(lane.dataset.attention),
                heights: [numbers[numbers.length - 1] - numbers[1], numbers[half + 1] - numbers[half - 1]],
            };
        })""",
    )


def lit(page: "Page") -> set[int]:
    """Returns the beams that stand out."""
    return set(page.eval_on_selector_all(".beam.lit > .lane", "lanes => lanes.map(lane => Number(lane.dataset.beam))"))


def drawn(page: "Page") -> set[int]:
    return {lane["beam"] for lane in lanes(page)}


def node(page: "Page", position: int) -> "Locator":
    return page.locator(f".node[aria-label*='position {position},']").first


def through(result: TraceResult, position: int) -> set[int]:
    return {index for index, beam in enumerate(result.beams) if position in beam.positions}


def hash_of(page: "Page") -> str:
    return page.evaluate("location.hash")


def focused(page: "Page") -> str:
    return page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.tagName")
