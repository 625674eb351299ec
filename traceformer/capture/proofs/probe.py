"""What can be found out about a model whose family has no architecture row, and which row would fit it.

1. One forward pass tells which modules call transformers' attention function, and the module tree where the blocks are.
2. With nothing but these, the residual stream between blocks and what passes through attention can be proved.
3. Every row there is gets tried: the one that names only modules of this model and passes the most proofs is the
   nearest. If it passes all of them, the family needs nothing but its name beside that row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from traceformer.capture.attention import AttentionCall, Listening, observed_name
from traceformer.capture.proofs.check import (
    CheckResult,
    Example,
    batch_of,
    check_model,
    implementation_of,
    using_attention,
)
from traceformer.errors import Unsupported
from traceformer.models.dims import ModelDims
from traceformer.models.families import FAMILIES
from traceformer.models.family import Architecture, AttentionRow, StackRow, Tap, builds
from traceformer.sites import Selection

__all__ = ["Nearest", "Probe", "probe_model"]


@dataclass(frozen=True, slots=True)
class Nearest:
    """An existing row that could be tried on the model: the families that have it, and what it proves."""

    families: str
    result: CheckResult


@dataclass(frozen=True, slots=True, repr=False)
class Probe:
    """What was found out about a model without a row.

    Paths count from the base model; a layer's number in them is `*`. `attention` are the modules that call the
    attention function, `obstacle` says why such a call could not be understood, `parts` are the modules of one block
    with their classes, `without_row` what could be proved of the sites that need no row.
    """

    model: str
    model_type: str
    blocks: tuple[str, ...]
    attention: tuple[str, ...]
    obstacle: str
    parts: Mapping[str, str]
    without_row: CheckResult | None
    nearest: Nearest | None

    @property
    def ok(self) -> bool:
        """False: without a row nothing vouches for the sites."""
        return False

    @property
    def advice(self) -> str:
        """How to add the family."""
        if self.nearest is not None and self.nearest.result.ok:
            return (
                f"the blocks of {self.nearest.families} pass every proof: add {self.model_type!r} to FAMILIES in "
                f"traceformer/models/table with these blocks"
            )
        start = f"begin with the row of {self.nearest.families}" if self.nearest is not None else "write a row"
        return (
            f"{start} in traceformer/models/table under {self.model_type!r}, and run "
            f"`traceformer check {self.model_type}` until every proof passes"
        )

    def __repr__(self) -> str:
        return f"Probe({self.model}: no row for model type {self.model_type!r}; {self.advice})"

    def to_json(self) -> dict[str, Any]:
        nearest = self.nearest and {"families": self.nearest.families, "result": self.nearest.result.to_json()}
        without_row = self.without_row and self.without_row.to_json()
        return {**asdict(self), "without_row": without_row, "nearest": nearest, "advice": self.advice}


def probe_model(model: PreTrainedModel, examples: Sequence[Example], *, name: str = "") -> Probe:
    """Returns what can be said of a model without a row, found by running it.

    Raises:
        Unsupported: its config states no number of layers, heads or dimensions, so that no row could fit.
    """
    dims = ModelDims.from_config(model.config)
    depths = {stack.n_layers for stack in dims.stacks.values()}
    base: nn.Module = model.base_model
    blocks = tuple(
        path for path, module in base.named_modules() if isinstance(module, nn.ModuleList) and len(module) in depths
    )
    callers, obstacle = _callers(model, examples)
    attention = tuple(dict.fromkeys(_without_layer(path, blocks) for path in callers))
    return Probe(
        name or type(model).__name__,
        model.config.model_type,
        blocks,
        attention,
        obstacle,
        {path: type(part).__name__ for list_ in blocks[:1] for path, part in _parts(base.get_submodule(list_))},
        _prove_without_row(model, dims, blocks, attention, examples),
        max(_nearest(model, dims, examples), key=_rank, default=None),
    )


def _parts(blocks: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    last = list(blocks.children())[-1]  # the first block may differ, as ModernBERT's does
    return ((path, module) for path, module in last.named_modules() if path)


# What needs no row: the blocks' own inputs and outputs, and what passes through the attention function.
_BETWEEN_BLOCKS = ("token_embed", "embed", "resid_pre", "resid_post", "hidden")
_IN_ATTENTION = ("q", "k", "v", "attn_scores", "attn_pattern", "z")


def _prove_without_row(
    model: PreTrainedModel,
    dims: ModelDims,
    blocks: Sequence[str],
    attention: Sequence[str],
    examples: Sequence[Example],
) -> CheckResult | None:
    """The proofs of a makeshift row; None where it is not plain what the blocks are."""
    if len(blocks) != 1 or len(dims.stacks) != 1 or len(attention) > 1:
        return None
    [(stack, sizes)] = dims.stacks.items()
    embedding = model.get_input_embeddings()
    paths = [path for path, module in model.base_model.named_modules() if module is embedding]
    module = attention[0].removeprefix(f"{blocks[0]}.*.") if attention else ""
    anywhere = Tap("")  # named by a row only; none of these sites is selected
    row = StackRow(blocks[0], paths[0], AttentionRow(module, anywhere, anywhere, anywhere, "", anywhere), {})
    selection = Selection(
        _BETWEEN_BLOCKS + (_IN_ATTENTION if attention else ()),
        hidden_layers=tuple(range(sizes.n_layers)),  # the last entry is after a norm that only a row knows
    )
    try:
        return check_model(model, examples, architecture=Architecture({stack: row}), selection=selection)
    except _MISFITS:
        return None


class _Caller:
    """A listener that notes that its module called the attention function."""

    def __init__(self, path: str, called: list[str]) -> None:
        self._path = path
        self._called = called

    def before(self, call: AttentionCall) -> None:
        self._called.append(self._path)

    def after(self, output: Tensor) -> None:
        pass


def _callers(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[list[str], str]:
    called: list[str] = []
    listeners = {module: _Caller(path, called) for path, module in model.base_model.named_modules()}
    inputs, _ = batch_of(model, examples)
    try:
        with (
            torch.inference_mode(),
            using_attention(model, observed_name(implementation_of(model))),
            Listening(dict(listeners)),
        ):
            model(**inputs)
    except Unsupported as error:
        return called, str(error)
    return called, ""


def _without_layer(path: str, blocks: Sequence[str]) -> str:
    for prefix in blocks:
        if path.startswith(f"{prefix}."):
            _, _, rest = path.removeprefix(f"{prefix}.").partition(".")
            return f"{prefix}.*.{rest}"
    return path


def _rows() -> Iterator[tuple[str, Architecture]]:
    """Yields every row there is, once, with the families that have it; those chosen by a flag as `family (flag)`."""
    families: dict[str, Architecture] = {}
    for family, row in sorted(FAMILIES.items()):
        for flags, each in builds(row.blocks):
            families[f"{family} ({flags})" if flags else family] = each
    names: dict[int, list[str]] = {}
    for name, row in families.items():
        names.setdefault(id(row), []).append(name)
    for several in sorted(names.values(), key=len, reverse=True):  # of rows that fit alike the commonest is the first
        yield ", ".join(several), families[several[0]]


# A row of another family names modules that are not there, or that take or give something else.
_MISFITS = (Unsupported, LookupError, AttributeError, TypeError, RuntimeError)


def _nearest(model: PreTrainedModel, dims: ModelDims, examples: Sequence[Example]) -> Iterator[Nearest]:
    for families, row in _rows():
        if list(row.stacks) != list(dims.stacks):
            continue
        try:
            yield Nearest(families, check_model(model, examples, architecture=row))
        except _MISFITS:
            continue


def _rank(nearest: Nearest) -> tuple[int, int]:
    proofs = nearest.result.proofs
    passed = sum(proof.ok for proof in proofs)
    return passed - len(proofs), passed
