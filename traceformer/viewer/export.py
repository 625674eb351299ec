"""Results as single files: a page with its data, its style and its script inside, that asks nothing of any network.

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
from typing import Any

from traceformer.analysis.paths.result import Paths
from traceformer.errors import NotFound
from traceformer.viewer.payloads import paths_payload

__all__ = ["export_paths_html", "open_paths", "paths_html"]

_PAGE = """\
<!doctype html>
<html lang="en">
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
<script type="application/gzip" id="payload">{payload}</script>
<script>{script}</script>
</body>
</html>
"""


def paths_html(result: Paths) -> str:
    """Returns the page of a trace: one HTML file that works anywhere, without a network.

    Raises:
        NotFound: the viewer's bundle was not built when the package was installed.
    """
    return export_paths_html(paths_payload(result.to_json()))


def open_paths(result: Paths) -> None:
    """Opens the page of a trace in a browser, from a file among the system's temporary ones."""
    page = Path(tempfile.mkdtemp(prefix="traceformer-paths-")) / "paths.html"
    page.write_text(paths_html(result), encoding="utf-8")
    webbrowser.open(page.as_uri())


def export_paths_html(payload: Mapping[str, Any]) -> str:
    """Returns the page of a payload from `paths_payload`."""
    script, style = _bundled("viewer.js"), _bundled("viewer.css")
    sources = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    data = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return _PAGE.format(
        policy="; ".join(f"{name} {allowed}" for name, allowed in sources.items()),
        title=escape(payload["title"]),
        style=style,
        payload=base64.b64encode(gzip.compress(data, mtime=0)).decode(),
        script=script,
    )


def _bundled(name: str) -> str:
    file = files("traceformer.viewer") / "static" / name
    if not file.is_file():
        raise NotFound(
            "the viewer's pages are not installed",
            why="npm could not be reached when the package was",
            hint="in a checkout run make web; else install it again: pip install --force-reinstall --no-deps .",
        )
    return file.read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
