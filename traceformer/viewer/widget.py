"""The viewer as a notebook's widget: Python answers its page, is told what is selected, and can select."""

import re
from collections.abc import Mapping
from typing import Any

import anywidget
import traitlets

from traceformer.errors import TraceformerError
from traceformer.store.run import Run
from traceformer.viewer.library import Library
from traceformer.viewer.pages import bundled, widget_page
from traceformer.viewer.query import Query
from traceformer.viewer.resources import answer

__all__ = ["RunWidget"]

_FIELDS = {"example": "ex", "attention": "attn", "layer": "layer", "head": "head", "query": "q", "key": "k"}
"""What a selection says -> the field of the page's address."""


class RunWidget(anywidget.AnyWidget):
    """A run to look into. `selection` is what was clicked, and what is set to it is shown.

        widget = run.widget(0)
        widget.selection = {"example": 1, "attention": "dec.self", "layer": 2, "head": 7}

    Attributes:
        selection: What is shown: `example`, `attention`, `layer`, `head`, `query` and `key`, as far as they are chosen.
        height: How high the page is, as CSS has it.
    """

    page = traitlets.Unicode().tag(sync=True)
    height = traitlets.Unicode("720px").tag(sync=True)
    view = traitlets.Dict(value_trait=traitlets.Unicode(), key_trait=traitlets.Unicode()).tag(sync=True)
    selection = traitlets.Dict()

    def __init__(self, run: Run, example: int | str = 0, *, height: str = "720px") -> None:
        self._esm = bundled("widget.js")
        self._library = Library.of(run)
        start = {"screen": "overview", "run": run.name, "ex": str(run.row(example))}
        super().__init__(page=widget_page(), height=height, view=start, selection={"example": run.row(example)})
        self.on_msg(self._answer)

    @traitlets.observe("view")
    def _select(self, change: Mapping[str, Any]) -> None:
        view: Mapping[str, str] = change["new"]
        found = {name: view[field] for name, field in _FIELDS.items() if field in view}
        self.selection = {
            name: int(text) if re.fullmatch("-?[0-9]{1,9}", text) else text for name, text in found.items()
        }

    @traitlets.observe("selection")
    def _show(self, change: Mapping[str, Any]) -> None:
        selected = {field: str(change["new"][name]) for name, field in _FIELDS.items() if name in change["new"]}
        others = {field: text for field, text in self.view.items() if field not in _FIELDS.values()}
        self.view = {**others, **selected}

    @traitlets.validate("selection")
    def _check(self, proposal: Mapping[str, Any]) -> dict[str, Any]:
        unknown = [name for name in proposal["value"] if name not in _FIELDS]
        if unknown:
            raise traitlets.TraitError(f"no {unknown[0]!r} in a selection; it has {', '.join(_FIELDS)}")
        return proposal["value"]

    def _answer(self, _: Any, message: Mapping[str, Any], __: Any) -> None:
        number = message["ask"]
        try:
            found = answer(self._library, message["resource"], Query(message["query"]))
        except TraceformerError as error:
            self.send({"answered": number, "told": {"message": error.message, "why": error.why, "hint": error.hint}})
            return
        self.send({"answered": number}, [found.body])
