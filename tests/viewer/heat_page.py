"""What an open heat map shows, pixel by pixel, and what its colours stand for."""

import base64
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import numpy as np

if TYPE_CHECKING:
    from playwright.sync_api import Page

_READ = """canvas => {
  const { width, height } = canvas;
  const gl = canvas.getContext("webgl2");
  const data = new Uint8Array(4 * width * height);
  if (gl) gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  else data.set(canvas.getContext("2d").getImageData(0, 0, width, height).data);
  const text = Array.from(data, byte => String.fromCharCode(byte)).join("");
  return { kind: gl ? "webgl2" : "2d", width, height, data: btoa(text) };
}"""
_COLOURS = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 256, 1).data]"


def sharp(page: "Page") -> None:
    """Waits until nothing is left to be drawn."""
    page.locator(".heatmap[aria-busy=false]").first.wait_for()
    page.evaluate(
        """async () => {
          while (!performance.getEntriesByName("head-sharp").length) await new Promise(done => setTimeout(done, 20));
        }"""
    )


def pixels(page: "Page", nth: int = 0) -> tuple[str, np.ndarray]:
    """Returns what a heat map is drawn with, and its picture (y, x, rgba)."""
    found = page.locator(".heatmap .field canvas").nth(nth).evaluate(_READ)
    picture = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(found["height"], found["width"], 4)
    return found["kind"], picture[::-1] if found["kind"] == "webgl2" else picture


def palette(page: "Page", nth: int = 0) -> np.ndarray:
    """Returns the 256 colours of a colour bar (step, rgba)."""
    return np.array(page.locator(".colourbar canvas").nth(nth).evaluate(_COLOURS), np.uint8).reshape(256, 4)


def cells_under(pixels: int, first: float, count: float) -> np.ndarray:
    """Returns which cell lies under the middle of each pixel."""
    return np.floor(first + (np.arange(pixels) + 0.5) * count / pixels).astype(int)


def colours(shares: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Returns the colour of each share of the range; nothing where it is NaN."""
    steps = np.floor(np.nan_to_num(shares).clip(0, 1) * 255 + 0.5).astype(int)
    return np.where(np.isnan(shares)[..., None], 0, palette[steps])


def told(page: "Page", nth: int = 0) -> str:
    return page.locator(".heatmap .told").nth(nth).inner_text()


def address(page: "Page") -> dict[str, Any]:
    return dict(parse_qsl(page.url.partition("#")[2]))
