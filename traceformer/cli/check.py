"""`traceformer check`: what is proved of a model's sites, site by site."""

import difflib
import json as json_text
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from traceformer.cli.terminal import table
from traceformer.errors import NotFound, Unsupported, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from traceformer.capture.proofs.check import CheckResult, Example
    from traceformer.capture.proofs.probe import Probe

__all__ = ["check"]

# Different lengths, so that there is padding; the last one is longer than the others together.
_TEXTS = (
    "The cat sat on the mat.",
    "In 1969, two people walked on the Moon.",
    "She said that the book, which her brother had left on the kitchen table, was not his but one that a friend of "
    "theirs had lent them both in spring; neither of them had read it.",
)


def check(
    model: Annotated[str, Parameter(name="MODEL")],
    /,
    *,
    text: Annotated[tuple[str, ...], Parameter(consume_multiple=(1, None), metavar="TEXT...")] = (),
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    revision: str | None = None,
    json: bool = False,
) -> int:
    """Prove on a model that every site means what it says.

    Everything is recorded on a few texts and compared with what the model itself returns and with what its own modules
    make of the recorded values. One line per fact, with its largest error; the exit code is 1 if one fails. For a
    family that is not known yet: what can be proved all the same, and how to add it.

    Example: `traceformer check byte`

    Args:
        model: A folder, a Hub name, or the name of a family (gpt2, llama, bert, t5, ...) for a tiny random model of it.
        text: Texts to run, of different lengths; three sentences by default.
        dtype: What the model computes in; float32 proves most.
        device: cpu, cuda, cuda:1, mps; the fastest there is by default.
        revision: The commit, tag or branch of the model on the Hub.
        json: Print a JSON object.
    """
    import torch

    from traceformer.capture.proofs.check import check_model, random_examples
    from traceformer.models.families import ARCHITECTURES
    from traceformer.models.load import load_model, pick_device
    from traceformer.models.tiny import TINY, tiny_model

    if model in TINY:
        if text:
            raise UsageError("--text needs a tokenizer", why=f"{model} is a tiny random model here, which has none")
        tiny: Any = tiny_model(model)
        checked = tiny.to(device=pick_device(device), dtype=getattr(torch, dtype))
        name, examples = f"a tiny random {model}", random_examples(checked.config)
    else:
        try:
            loaded = load_model(model, revision=revision, device=device, dtype=dtype, with_head=True)
        except NotFound as error:
            near = difflib.get_close_matches(model, TINY, n=1)
            raise NotFound(error.message, why=error.why, hint=near[0] if near else error.hint) from error
        checked, name, examples = loaded.model, loaded.name, _encode(loaded, text or _TEXTS)
    if checked.config.model_type not in ARCHITECTURES:
        return _report_unknown(checked, examples, name, json)
    result = check_model(checked, examples, name=name)
    if json:
        print(json_text.dumps({"supported": True, **result.to_json()}, indent=2))
    else:
        print("\n".join(_lines(result)))
        if model not in TINY and result.ok:
            print(f"next: traceformer extract --model {model} --dataset demo", file=sys.stderr)
    return 0 if result.ok else 1


def _encode(loaded: Any, texts: Sequence[str]) -> "list[Example]":
    """The texts' token ids; an encoder-decoder reads each and writes it down again."""
    from traceformer.capture.tokenizing import Encoder

    targets = texts if loaded.dims.arch == "encdec" else None
    return [dict(row.ids) for row in Encoder(loaded, "auto", 64).encode(texts, targets)]


def _lines(result: "CheckResult") -> Iterator[str]:
    yield f"{result.model}: {result.dtype} on {result.device}, {result.attention} attention"
    yield ""
    yield _proofs(result)
    yield ""
    for site, why in result.refused.items():
        yield f"no {site}: {why}"
    for fact, why in result.untested.items():
        yield f"not proved, {fact}: {why}"
    if result.refused or result.untested:
        yield ""
    failed = [proof for proof in result.proofs if not proof.ok]
    sites = len({proof.key for proof in result.proofs})
    if failed:
        yield f"{len(failed)} of {len(result.proofs)} facts FAIL: {', '.join(dict.fromkeys(p.key for p in failed))}"
    else:
        worst = max((proof.error for proof in result.proofs), default=0.0)
        yield f"all {len(result.proofs)} facts about {sites} arrays hold; the largest error is {_number(worst)}"


def _proofs(result: "CheckResult") -> str:
    rows: list[tuple[str, ...]] = []
    shown = ""
    for proof in result.proofs:
        key = "" if proof.key == shown else proof.key
        shown = proof.key
        rows.append((key, proof.fact, _number(proof.error), _number(proof.tolerance), "ok" if proof.ok else "FAILS"))
    return table(("site", "what must hold", "error", "tolerance", ""), rows, numeric=(2, 3))


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}" if math.isfinite(value) else "no match"


def _report_unknown(model: "PreTrainedModel", examples: "Sequence[Example]", name: str, json: bool) -> int:
    from traceformer.capture.proofs.probe import probe_model

    probe = probe_model(model, examples, name=name)
    if json:
        print(json_text.dumps({"supported": False, **probe.to_json()}, indent=2))
    else:
        print("\n".join(_lines_of_unknown(probe)))
    return Unsupported.exit_code


def _lines_of_unknown(probe: "Probe") -> Iterator[str]:
    yield f"{probe.model}: no architecture row for model type {probe.model_type!r}"
    yield ""
    yield f"blocks          {', '.join(probe.blocks) or 'no list of as many modules as there are layers'}"
    unseen = "does not call the attention function, so q, k, v and patterns are out of sight"
    yield f"attention       {', '.join(probe.attention) or unseen}"
    if probe.obstacle:
        yield f"                {probe.obstacle}"
    parts = [f"{path} ({kind})" for path, kind in probe.parts.items()]
    yield f"in a block      {', '.join(parts)}"
    if probe.without_row is not None:
        yield ""
        yield "without a row:"
        yield _proofs(probe.without_row)
    if probe.nearest is not None:
        proofs = probe.nearest.result.proofs
        failed = [proof for proof in proofs if not proof.ok]
        yield ""
        yield f"with the row of {probe.nearest.families}: {len(proofs) - len(failed)} of {len(proofs)} facts hold"
        yield from (f"fails: {proof.key} {proof.fact} ({_number(proof.error)})" for proof in failed)
    yield ""
    yield f"to add it: {probe.advice}"
