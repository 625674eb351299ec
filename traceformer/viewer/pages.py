"""The page: its style and its script inside, and, where no server answers it, everything that it shows.

The content security policy names the script and the style by their hashes and allows nothing else, so text from
a model could not run even if it became markup. It never does: data is compressed and in base64, which has no `<`,
and the page writes it with `textContent` only.
"""

import base64
import gzip
import hashlib
import json
import tempfile
import webbrowser
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traceformer.analysis.paths.result import Paths
from traceformer.errors import NotFound
from traceformer.presentation import framed, plain
from traceformer.viewer.packets import Packet
from traceformer.viewer.path_payloads import paths_payload

__all__ = ["LivePage", "bundled", "live_page", "open_paths", "page_of", "paths_frame", "paths_html", "widget_page"]

_PAGE = """\
<!doctype html>
<html lang="en"{host}>
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main id="app"><noscript>This page draws itself with JavaScript.</noscript></main>
{data}<script>{script}</script>
</body>
</html>
"""
_DATA = '<script type="application/gzip" id="data">{data}</script>\n'


class LivePage(NamedTuple):
    """A page for a server: its policy is in it, and belongs into the answer's head as well."""

    html: str
    policy: str


def live_page() -> LivePage:
    """Returns the page that asks its server for what it shows.

    Raises:
        NotFound: the viewer's bundle was not built when the package was installed.
    """
    own = "'self'"
    policy = f"{_policy('viewer', own)}; frame-ancestors 'none'"
    return LivePage(_page("viewer", "Traceformer", connect=own), policy)


def widget_page() -> str:
    """Returns the page that asks the notebook's widget around it.

    Raises:
        NotFound: the viewer's bundle was not built when the package was installed.
    """
    return _page("viewer", "Traceformer", host=' data-host="widget"')


def page_of(answers: Mapping[str, bytes], start: Mapping[str, str], *, title: str, bundle: str = "viewer") -> str:
    """Returns the page that carries what it shows: one HTML file that works anywhere, without a network.

    Args:
        answers: What the page may ask for, by `Query.key`, each as `resources.answer` gives it.
        start: What the page shows first: the fields of its address.
        title: The title of the window.
        bundle: `viewer`, or `trace` for a page of one trace alone.

    Raises:
        NotFound: the viewer's bundle was not built when the package was installed.
    """
    bodies = {key: np.frombuffer(body, np.uint8) for key, body in answers.items()}
    data = gzip.compress(Packet(bodies, {"start": dict(start)}).to_bytes(), mtime=0)
    return _page(bundle, title, data=_DATA.format(data=base64.b64encode(data).decode()))


def paths_html(result: Paths) -> str:
    """Returns the page of a trace.

    Raises:
        NotFound: the viewer's bundle was not built when the package was installed.
    """
    payload: Mapping[str, Any] = paths_payload(result.to_json())
    body = json.dumps(plain(payload), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return page_of({"paths": body}, {}, title=payload["title"], bundle="trace")


def paths_frame(result: Paths) -> str:
    """Returns the page of a trace as a notebook shows it.

    Raises:
        NotFound: the viewer's bundle was not built when the package was installed.
    """
    return framed(paths_html(result))


def open_paths(result: Paths) -> None:
    """Opens the page of a trace in a browser, from a file among the system's temporary ones."""
    page = Path(tempfile.mkdtemp(prefix="traceformer-paths-")) / "paths.html"
    page.write_text(paths_html(result), encoding="utf-8", newline="\n")
    webbrowser.open(page.as_uri())


def bundled(name: str) -> str:
    """Returns a file of the viewer's bundle.

    Raises:
        NotFound: it was not built when the package was installed.
    """
    file = files("traceformer.viewer") / "static" / name
    if not file.is_file():
        raise NotFound(
            "the viewer's pages are not installed",
            why="npm could not be reached when the package was",
            hint="in a checkout run make web; else install it again: pip install --force-reinstall --no-deps .",
        )
    return file.read_text(encoding="utf-8")


def _page(bundle: str, title: str, *, data: str = "", connect: str = "'none'", host: str = "") -> str:
    return _PAGE.format(
        host=host,
        policy=_policy(bundle, connect),
        title=escape(title),
        style=bundled(f"{bundle}.css"),
        data=data,
        script=bundled(f"{bundle}.js"),
    )


def _policy(bundle: str, connect: str) -> str:
    sources = {
        "default-src": "'none'",
        "script-src": _hash(bundled(f"{bundle}.js")),
        "style-src": _hash(bundled(f"{bundle}.css")),
        "img-src": "data: blob:",
        "connect-src": connect,
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {allowed}" for name, allowed in sources.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
