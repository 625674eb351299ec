"""What is found out about a model whose family has no row: the row that it seems to have, and what is proved of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from traceformer.capture.proofs.check import CheckResult, Example
from traceformer.capture.proofs.fit import Fit, fit
from traceformer.errors import Unsupported
from traceformer.models.dims import ModelDims
from traceformer.models.family import Architecture
from traceformer.models.part import text_config, text_part
from traceformer.models.written import written_row

__all__ = ["Probe", "probe_model"]


@dataclass(frozen=True, slots=True, repr=False)
class Probe:
    """What was found out about a model without a row.

    Paths count from the base model.

    Attributes:
        model: What it is called.
        model_type: Its family.
        blocks: Lists of as many modules as there are layers.
        parts: The modules of one block, with their classes.
        found: The row that holds, None where there is none.
        obstacle: Why there is none.
        row: The row as it stands in Python.
    """

    model: str
    model_type: str
    blocks: tuple[str, ...]
    parts: Mapping[str, str]
    found: Fit | None
    obstacle: str
    row: str | None

    @property
    def ok(self) -> bool:
        """Whether a row was found; all its facts hold, since what does not is refused."""
        return self.found is not None

    @property
    def result(self) -> CheckResult | None:
        """What is proved of the row."""
        return None if self.found is None else self.found.result

    @property
    def advice(self) -> str:
        """How to add the family."""
        if self.found is None:
            return (
                f"write a row in traceformer/models/table under {self.model_type!r}, and run "
                f"`traceformer check {self.model_type}` until every proof passes"
            )
        families = self.found.families
        blocks = f"with the blocks of {families}" if families else "with the blocks that `--write-row` prints"
        return f"add {self.model_type!r} to FAMILIES in traceformer/models/table {blocks}"

    def __repr__(self) -> str:
        said = self.obstacle if self.result is None else f"found one, {len(self.result.proofs)} facts hold"
        return f"Probe({self.model}: no row for model type {self.model_type!r}; {said})"

    def to_json(self) -> dict[str, Any]:
        found = self.found
        return {
            "model": self.model,
            "model_type": self.model_type,
            "ok": self.ok,
            "blocks": list(self.blocks),
            "parts": dict(self.parts),
            "obstacle": self.obstacle,
            "families": None if found is None else found.families,
            "architecture": None if found is None else found.architecture.to_json(),
            "row": self.row,
            "result": None if found is None else found.result.to_json(),
            "advice": self.advice,
        }


def probe_model(
    model: PreTrainedModel, examples: Sequence[Example], *, name: str = "", like: Architecture | None = None
) -> Probe:
    """Returns what can be said of a model without a row, found by running it.

    Args:
        model: Any model.
        examples: Token ids; two or more of different lengths, so that there is padding.
        name: What to call the model.
        like: The row to prove, and no other.

    Raises:
        Unsupported: its config states no number of layers, heads or dimensions, so that no row could fit.
    """
    dims, base, name = ModelDims.of(model), text_part(model), name or type(model).__name__
    depths = {stack.n_layers for stack in dims.stacks.values()}
    blocks = tuple(
        path for path, module in base.named_modules() if isinstance(module, nn.ModuleList) and len(module) in depths
    )
    found, obstacle = None, ""
    try:
        found = fit(model, examples, like=like, name=name)
    except Unsupported as error:
        obstacle = error.why or error.message
    return Probe(
        name,
        text_config(model.config).model_type,
        blocks,
        {path: type(part).__name__ for list_ in blocks[:1] for path, part in _parts(base.get_submodule(list_))},
        found,
        obstacle,
        None if found is None else written_row(model, found.architecture),
    )


def _parts(blocks: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    last = list(blocks.children())[-1]  # the first block may differ, as ModernBERT's does
    return ((path, module) for path, module in last.named_modules() if path)
