"""One family tried as a user would: loaded from a folder, checked, recorded, made to generate.

1. A tiny random model of it is made and saved with a tokenizer. It runs on a text by itself, or it cannot be built.
2. The folder is loaded; every fact about it is checked.
3. Four texts of different lengths are recorded in one padded batch. All that the model itself returns, of each text
   alone, must be what was recorded.
4. It answers a prompt: its tokens and logits must be those of the model's own `generate`, and its logits those of one
   plain pass, unless the model itself has others in the two.

What is refused ends a step, and is kept with its reason.
"""

import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.sweep.outcomes import Outcome, Result
from tests.sweep.own_outputs import OwnOutputs, answer_of, calls_attention_function, loaded_plainly, own_outputs
from tests.tiny_folders import write_tiny_model
from traceformer.capture.extract import record
from traceformer.capture.generation.generate import generate
from traceformer.capture.proofs.probe import Probe
from traceformer.errors import TraceformerError, Unsupported
from traceformer.models.families import FAMILIES
from traceformer.models.load import load_model
from traceformer.models.loaded import LoadedModel
from traceformer.models.part import text_config
from traceformer.models.shrunk import text_types
from traceformer.questions.check import check
from traceformer.sites import ArrayKey, expand_sites
from traceformer.store.run import Run

__all__ = ["try_family"]

TEXTS = (
    "The river froze over during the night.",
    "Yes",
    "Seven ships left the harbour at dawn, and five came back.",
    "Paris and Rome are cities.",
)
TARGETS = ("It froze.", "No, not at all", "Ships", "Rome")
CAPTURE = ("attn", "qkv", "hidden", "resid", "mlp", "logits")
NEW_TOKENS = 5
TOLERANCE = 1e-4  # of sums in another order, through layers whose weights are ten times as spread as at initialisation


@dataclass
class _Trial:
    """What is known of a family so far."""

    family: str
    plain: Any = None
    eager: Any = None
    stage: str = "build"
    passes_function: bool = False
    row: str = ""
    facts: int = 0
    failed: list[str] = field(default_factory=list[str])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    recorded: list[str] = field(default_factory=list[str])
    errors: dict[str, float] = field(default_factory=dict[str, float])
    generated: bool | None = None

    def enter(self, stage: str) -> None:
        self.stage = stage
        print(f"stage: {stage}", flush=True)  # what is left of it if the process ends

    def off(self, site: str, recorded: np.ndarray, own: np.ndarray) -> None:
        """Keeps how far a recorded array is from the model's own, the largest of its site."""
        error = np.inf
        if recorded.shape == own.shape:
            error = float(np.abs(recorded - own).max(initial=0.0) / max(1.0, np.abs(own).max(initial=0.0)))
        self.errors[site] = max(error if error == error else np.inf, self.errors.get(site, 0.0))

    def result(self, outcome: Outcome, why: str = "") -> Result:
        return Result(
            family=self.family,
            made_by=text_types().get(self.family, ""),
            outcome=outcome,
            why=" ".join(why.split())[:400],
            row=self.row if self.recorded else "",
            facts=self.facts,
            failed=tuple(self.failed),
            recorded=tuple(self.recorded),
            refused=self.refused,
            errors={site: float(f"{error:.1e}") for site, error in self.errors.items()},
            generated=self.generated,
        )


def try_family(family: str, folder: Path, *, briefly: bool = False) -> Result:
    """Returns what became of a family; its model is written into a folder that is empty or not there.

    Briefly tried it is recorded, stream and patterns of two texts, and neither checked nor made to generate.
    """
    trial, began = _Trial(family), time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = (_recorded if briefly else _tried)(trial, folder)
        except (MemoryError, Exception) as error:
            said = f"{type(error).__name__}: {error}"
            if trial.stage == "build":
                result = trial.result("CANNOT BUILD", said)
            elif isinstance(error, TraceformerError) and not trial.recorded:
                result = trial.result("REFUSED", str(error))
            else:
                traceback.print_exc()
                result = trial.result("TRACEBACK", f"{trial.stage}: {said} at {_place(error)}")
    return replace(result, seconds=round(time.monotonic() - began, 1))


def _recorded(trial: _Trial, folder: Path) -> Result:
    _record(trial, _load(trial, folder), ("attn", "resid"), texts=2)
    return _judged(trial)


def _load(trial: _Trial, folder: Path) -> LoadedModel:
    trial.enter("build")
    trial.plain, trial.eager = loaded_plainly(write_tiny_model(folder, trial.family), folder)
    _run_plainly(trial.plain)
    trial.enter("load")
    loaded = load_model(str(folder), with_head=True, device="cpu")
    trial.row = "own" if text_config(loaded.config).model_type in FAMILIES else "found"
    return loaded


def _record(trial: _Trial, loaded: LoadedModel, capture: Sequence[str], *, texts: int) -> None:
    trial.enter("record")
    targets = list(TARGETS[:texts]) if loaded.dims.arch == "encdec" else None
    run = record(loaded, list(TEXTS[:texts]), capture, targets=targets, dtype="float32", batch_size=texts)
    trial.recorded = list(dict.fromkeys(str(spec.key) for spec in run.layout.arrays))
    for example in range(run.n):
        _compare(trial, run, example)


def _tried(trial: _Trial, folder: Path) -> Result:
    loaded = _load(trial, folder)
    trial.enter("check")
    checked = check(loaded, TEXTS)
    proved = checked.result if isinstance(checked, Probe) else checked
    if isinstance(checked, Probe) and checked.found is not None and checked.found.families:
        trial.row = f"like {checked.found.families.partition(',')[0]}"
    known = {proof.key.rpartition(".")[2] for proof in proved.proofs} if proved is not None else set[str]()
    if proved is not None:
        trial.facts = sum(proof.ok for proof in proved.proofs)
        trial.failed = [f"{proof.key} {proof.fact} ({proof.error:.0e})" for proof in proved.proofs if not proof.ok]
        trial.refused |= proved.refused
    capture = [site for site in expand_sites(CAPTURE) if site in known] or ["resid"]  # where nothing is, it says why
    _record(trial, loaded, capture, texts=len(TEXTS))
    trial.enter("generate")
    _generate(trial, loaded)
    return _judged(trial)


def _judged(trial: _Trial) -> Result:
    wrong = {site: error for site, error in trial.errors.items() if error > TOLERANCE}
    if wrong:
        return trial.result("WRONG NUMBERS", ", ".join(f"{site} by {error:.1e}" for site, error in wrong.items()))
    sites = {name.rpartition(".")[2] for name in trial.recorded}
    missing = [site for site in ("resid_pre", "resid_post") if site not in sites]
    if trial.passes_function and "attn_pattern" not in sites:
        missing.append("attn_pattern")
    if missing:
        return trial.result("PARTLY", f"without {' '.join(missing)}")
    if trial.failed:
        return trial.result("PARTLY", f"{len(trial.failed)} of {trial.facts + len(trial.failed)} facts fail")
    return trial.result("PROVED")


def _run_plainly(model: Any) -> None:
    """Makes sure that a model runs on tokens alone, and gives numbers."""
    ids = torch.arange(5, 14)[None]
    given = {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        made = [each for each in model(input_ids=ids, **given).values() if isinstance(each, torch.Tensor)]
    if not all(bool(torch.isfinite(each).all()) for each in made):
        raise ValueError("its outputs are not finite")


def _ids(run: Run, example: int) -> dict[str, list[int]]:
    row: Mapping[str, Any] = run.tokens.iloc[example].to_dict()
    names = {"enc": "input_ids", "dec": "dec_input_ids"} if run.arch == "encdec" else {run.arch: "input_ids"}
    return {stack: [int(token) for token in row[name]] for stack, name in names.items()}


def _compare(trial: _Trial, run: Run, example: int) -> None:
    """Compares what a run holds of an example with what the model itself returns of it alone."""
    ids = _ids(run, example)
    own = own_outputs(trial.plain, trial.eager, ids)
    if example == 0:
        trial.passes_function = calls_attention_function(trial.plain, ids)
    for spec in run.layout.arrays:
        for layer in spec.layers or (None,):
            expected = _expected(own, spec.key, layer, spec.layers)
            if expected is not None:
                trial.off(str(spec.key), run.get(example, spec.key, layer), expected)


def _expected(own: OwnOutputs, key: ArrayKey, layer: int | None, layers: Sequence[int]) -> np.ndarray | None:
    """What the model returns that a recorded array must equal; None where it returns no such thing."""
    hidden = own.hidden.get(key.stack, ())
    if key.site == "logits":
        return own.logits
    if key.site == "embed":
        return hidden[0] if hidden else None
    if key.site == "attn_pattern":
        patterns = own.patterns[f"{key.stack}.{key.attention}"]
        assert layer is not None
        if len(patterns) == len(layers):  # of layers that have attention
            return patterns[layers.index(layer)]
        return patterns[layer] if layer < len(patterns) else None
    if key.site not in ("hidden", "resid_pre", "resid_post"):
        return None
    assert layer is not None
    entry = layer + (key.site == "resid_post")
    if key.site == "resid_post" and entry == len(hidden) - 1:  # the last entry stands behind the final norm
        return None
    return hidden[entry] if entry < len(hidden) else None


def _generate(trial: _Trial, loaded: LoadedModel) -> None:
    """Has it answer a prompt, and compares tokens and logits with the model's own."""
    try:
        run = generate(loaded, TEXTS[0], "resid_post logits", max_tokens=NEW_TOKENS, temperature=0, dtype="float32")
    except Unsupported as error:
        trial.refused["generate"] = str(error)
        return
    trial.generated = True
    ids = _ids(run, 0)
    stack = [*ids][-1]
    prompt = ids["enc"] if len(ids) == 2 else ids["dec"][: int(run.tokens.iloc[0]["n_prompt"])]
    answer = ids["dec"][1:] if len(ids) == 2 else ids["dec"][len(prompt) :]
    expected, steps = answer_of(trial.plain, prompt, NEW_TOKENS)
    trial.errors["generated tokens"] = 0.0 if expected[: len(answer)] == answer else np.inf
    own = own_outputs(trial.plain, trial.eager, ids)
    for spec in run.layout.arrays:
        if spec.key.stack == stack and spec.key.site == "logits" and own.logits is not None:
            recorded, first = run.get(0, spec.key), len(ids[stack]) - len(answer) - 1
            chosen_by = slice(first, first + len(answer))
            trial.off("generated logits", recorded[chosen_by], steps[: len(answer)])
            if np.abs(own.logits[chosen_by] - steps[: len(answer)]).max() <= TOLERANCE:  # some compute otherwise there
                trial.off("generated logits", recorded, own.logits)


def _place(error: BaseException) -> str:
    """The last line of the package that an error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/traceformer/" in frame.filename and "site-packages" not in frame.filename]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno} in {last.name}"
