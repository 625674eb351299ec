"""What the site has beside the pages of docs/, and what of them it shows otherwise than a repository browser.

1. CHANGELOG.md and CONTRIBUTING.md are pages, and the examples lie beside them.
2. A link that leads from a page to one of these (`../CONTRIBUTING.md`) leads there on the site, too.
3. In the reference each error that a function raises leads to the page of errors, whichever of them its module knows.

mkdocs calls these functions by their names while it builds (`hooks` in mkdocs.yml).
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""A file of this repository -> the page that it is on the site."""
ERRORS = set(re.findall(r"^class (\w+)", (ROOT / "traceformer/errors.py").read_text(encoding="utf-8"), re.MULTILINE))


def on_files(files: Files, *, config: Any) -> Files:
    """Returns the files of docs/, and with them those that lie elsewhere."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    for example in sorted((ROOT / "examples").iterdir()):
        if example.is_file():
            files.append(File.generated(config, f"examples/{example.name}", abs_src_path=str(example)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Returns the page's text, in which links between files of this repository are links between files of the site."""
    place = page.file.src_uri
    path = next((path for path, its in PAGES.items() if its == place), f"docs/{place}")

    def on_site(link: re.Match[str]) -> str:
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), link["target"]))
        its = PAGES.get(there, there.removeprefix("docs/"))
        return f"]({posixpath.relpath(its, posixpath.dirname(place) or '.')}{link['anchor'] or ''})"

    return re.sub(r"\]\((?P<target>[\w./-]+\.\w+)(?P<anchor>#[^)\s]*)?\)", on_site, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Returns the page, in which a cell of nothing but errors has each of them on a line, as a reference."""

    def cell(found: re.Match[str]) -> str:
        names = re.findall(r"\w+", re.sub("<[^>]*>", "", found["code"]))
        if not names or not ERRORS.issuperset(names):
            return found[0]
        lines = (f'<autoref identifier="traceformer.errors.{name}"><code>{name}</code></autoref>' for name in names)
        return f"<td>{'<br>'.join(lines)}</td>"

    return re.sub(r"<td>\s*<code>(?P<code>.*?)</code>\s*</td>", cell, html, flags=re.DOTALL)
