"""Chromium without a screen and without a GPU, as the browser tests have it, and what is measured inside of a page.

A picture is there when its pixels are: in each frame the middle of the canvas is read back, and counts once it has
several colours. That happens after the page has drawn and before the frame is shown; it costs a millisecond or two of
the page's own thread, which the page is not given back. What is no canvas is there when the frame that has its elements
was painted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["chromium", "new_page"]

ARGUMENTS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
PROBE = """
globalThis.bench = (() => {
  const side = 256;
  const context = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
  const frame = () => new Promise(requestAnimationFrame);
  const painted = () => new Promise(resolve => requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel();  // its messages come when the frame is done
    port1.onmessage = resolve;
    port2.postMessage(null);
  }));
  /** What a square of a canvas shows: its middle, or what is as far from left and top as said, from 0 to 1. */
  function look(selector, across = 0.5, down = 0.5) {
    const canvas = document.querySelector(selector);
    if (!canvas?.width || !canvas.height) return { hash: 0, colours: 0 };
    const [width, height] = [Math.min(side, canvas.width), Math.min(side, canvas.height)];
    context.clearRect(0, 0, side, side);
    const corner = [(canvas.width - width) * across, (canvas.height - height) * down];
    context.drawImage(canvas, ...corner, width, height, 0, 0, width, height);
    const pixels = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
    const colours = new Set();
    let hash = 0;
    for (const pixel of pixels) {
      hash = (Math.imul(hash, 31) + pixel) | 0;
      if (colours.size < 64) colours.add(pixel);
    }
    return { hash, colours: colours.size };
  }
  /** Every change of a canvas from now on, with its time since `start`, until there was none for `quiet` ms. */
  async function follow(selector, quiet, limit, start = performance.now()) {
    const changes = [];
    let last = look(selector);
    for (let time = start; ; ) {
      await frame();
      const now = performance.now();
      const seen = look(selector);
      if (seen.hash !== last.hash) {
        changes.push({ at: now - start, colours: seen.colours });
        time = now;
      }
      last = seen;
      if (now - start > limit || (changes.some(({ colours }) => colours > 2) && now - time > quiet)) return changes;
    }
  }
  /** The time when the frame in which a test first held was painted; null if it did not hold in time. */
  async function until(test, limit, start = 0) {
    while (!test()) {
      if (performance.now() - start > limit) return null;
      await frame();
    }
    await painted();
    return performance.now() - start;
  }
  /** The time when the last change of an element was painted, once there was none for `quiet` ms. */
  async function settles(selector, quiet, limit, start) {
    let [changed, shown] = [0, 0];
    const watch = new MutationObserver(() => {
      changed = performance.now();
      painted().then(() => { shown = performance.now(); });
    });
    watch.observe(document.querySelector(selector), { subtree: true, childList: true, attributes: true });
    while (performance.now() - start < limit && !(shown && performance.now() - changed > quiet)) await frame();
    watch.disconnect();
    return shown ? shown - start : null;
  }
  return { look, follow, until, settles };
})();
"""


@contextmanager
def chromium() -> "Iterator[Browser]":
    """Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=which("chromium") or which("chromium-browser"), args=ARGUMENTS
        )
        yield browser
        browser.close()


def new_page(browser: "Browser", limit: float = 120) -> "Page":
    """Returns a page that is measured from its first line on, of the size of a laptop's window."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(1000 * limit)
    page = context.new_page()
    page.add_init_script(PROBE)
    return page
