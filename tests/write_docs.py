"""The parts of the documentation that are written from the code: `python -m tests.write_docs` rewrites them."""

from pathlib import Path

from traceformer.sites import GROUPS, SITES

__all__ = ["DOCS", "PAGES", "sites_page"]

DOCS = Path(__file__).parent.parent / "docs"


def sites_page() -> str:
    """Returns the page that lists every site and group, as Markdown."""
    sites = [f"| `{site.name}` | {', '.join(site.axes)} | {site.meaning} |" for site in SITES.values()]
    groups = [
        f"| `{name}` | {'every site that the model has' if name == 'all' else ' '.join(f'`{m}`' for m in members)} |"
        for name, members in GROUPS.items()
    ]
    return "\n".join(
        (
            "# Sites: everything that can be recorded",
            "",
            "Written from `traceformer/sites.py` by `python -m tests.write_docs`; edit the table there.",
            "",
            "A site is a kind of place in a transformer. The axes are those within one example; `layer` and `head` are",
            "the model's own numbers. In an encoder-decoder every site exists in both stacks, and the sites of",
            "attention twice in the decoder (self and cross): `enc.self.q`, `dec.cross.attn_pattern`, `dec.resid_mid`.",
            "",
            "| site | axes | meaning |",
            "|---|---|---|",
            *sites,
            "",
            "## Groups",
            "",
            "A group takes those of its sites that the model has; a site asked for by its own name must exist.",
            "",
            "| `--capture` | records |",
            "|---|---|",
            *groups,
            "",
        )
    )


PAGES = {"sites.md": sites_page}
"""Page of docs/ -> the function that writes it."""


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(f"wrote docs/{name}")
