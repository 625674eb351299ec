"""`traceformer check`: what is proved of a model's sites, site by site."""

import json as json_text
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from traceformer.cli.terminal import table
from traceformer.errors import Unsupported, UsageError

if TYPE_CHECKING:
    from traceformer.capture.proofs.check import CheckResult
    from traceformer.capture.proofs.probe import Probe

__all__ = ["check"]


def check(
    model: Annotated[str, Parameter(name="MODEL")],
    /,
    *,
    text: Annotated[tuple[str, ...], Parameter(consume_multiple=(1, None), metavar="TEXT...")] = (),
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    adapter: Annotated[str | None, Parameter(metavar="FOLDER|NAME")] = None,
    revision: str | None = None,
    like: Annotated[str | None, Parameter(metavar="FAMILY")] = None,
    allow_pickle: bool = False,
    write_row: bool = False,
    json: bool = False,
) -> int:
    """Prove on a model that every site means what it says.

    Everything is recorded on a few texts and compared with what the model itself returns and with what its own modules
    make of the recorded values. One line per fact, with its largest error; the exit code is 1 if one fails. Of a family
    that has no row one is found by watching a pass, and proved: what does not hold is refused by name.

    Example: `traceformer check byte`

    Args:
        model: A folder, a Hub name, or the name of a family (gpt2, llama, bert, t5, ...) for a tiny random model of it.
        text: Texts to run, of different lengths; three sentences by default.
        dtype: What the model computes in; float32 proves most.
        device: cpu, cuda, cuda:1, mps; the fastest there is by default.
        adapter: An adapter of PEFT for the model, in a folder or on the Hub.
        revision: The commit, tag or branch of the model on the Hub.
        like: Prove the row of this family, such as llama, whatever the model's own.
        allow_pickle: Load weights from pickle files, which can run code of whoever made them.
        write_row: Print the row of a family that has none as it goes into the package, and nothing else.
        json: Print a JSON object.
    """
    from traceformer.capture.proofs.check import CheckResult
    from traceformer.models.tiny import tiny_names
    from traceformer.questions.check import check as prove

    result = prove(
        model,
        text or None,
        dtype=dtype,
        device=device,
        adapter=adapter,
        revision=revision,
        allow_pickle=allow_pickle,
        like=like,
    )
    if write_row:
        return _write_row(result)
    supported = isinstance(result, CheckResult)
    if json:
        print(json_text.dumps({"supported": supported, **result.to_json()}, indent=2))
    else:
        print("\n".join(_lines(result) if isinstance(result, CheckResult) else _lines_of_unknown(result)))
        if result.ok and model not in tiny_names():
            chosen = "" if like is None else f" --like {like}"
            print(f"next: traceformer extract --model {model}{chosen} --dataset demo", file=sys.stderr)
    if not supported and not result.ok:
        return Unsupported.exit_code
    return 0 if result.ok else 1


def _write_row(result: "CheckResult | Probe") -> int:
    from traceformer.capture.proofs.probe import Probe

    if not isinstance(result, Probe):
        raise UsageError(f"the row of {result.model}", why="its family has one", hint="leave --write-row out")
    if result.row is None:
        raise Unsupported(f"no row was found for {result.model}", why=result.obstacle)
    print(result.row, end="")
    return 0


def _lines(result: "CheckResult") -> Iterator[str]:
    yield f"{result.model}: {result.dtype} on {result.device}, {result.attention} attention"
    yield ""
    yield _proofs(result)
    yield ""
    for site, why in result.refused.items():
        yield f"no {site}: {why}"
    for fact, why in result.untested.items():
        yield f"not proved, {fact}: {why}"
    if result.no_recipe:
        yield f"no {result.no_recipe}"
    if result.refused or result.untested or result.no_recipe:
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


def _lines_of_unknown(probe: "Probe") -> Iterator[str]:
    yield f"{probe.model}: no row for model type {probe.model_type!r}"
    yield ""
    result = probe.result
    if result is None:
        yield f"blocks          {', '.join(probe.blocks) or 'no list of as many modules as there are layers'}"
        yield f"in a block      {', '.join(f'{path} ({kind})' for path, kind in probe.parts.items())}"
        yield ""
        yield f"none was found that holds: {probe.obstacle}"
    else:
        assert probe.found is not None
        yield from _lines(result)
        yield ""
        of = probe.found.families
        yield f"found: {f'the row of {of}' if of else 'a row of its own'}"
    yield f"to add it: {probe.advice}"
