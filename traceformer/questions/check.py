"""Proofs on a model: does every site mean what it says?"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from traceformer.errors import NotFound, UsageError

if TYPE_CHECKING:
    from traceformer.capture.proofs.check import CheckResult, Example
    from traceformer.capture.proofs.probe import Probe
    from traceformer.models.loaded import LoadedModel

__all__ = ["check"]

# Different lengths, so that there is padding; the last one is longer than the others together.
_TEXTS = (
    "The cat sat on the mat.",
    "In 1969, two people walked on the Moon.",
    "She said that the book, which her brother had left on the kitchen table, was not his but one that a friend of "
    "theirs had lent them both in spring; neither of them had read it.",
)


def check(
    model: "str | Path | LoadedModel",
    texts: Sequence[str] | None = None,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    adapter: str | Path | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    like: str | None = None,
) -> "CheckResult | Probe":
    """Returns what is proved of a model: everything is recorded, and compared with what the model itself computes.

        tf.check("gpt2").ok

    Of a family without a row it returns a `Probe`: the row that was found, what is proved of it, and how to add it.

    Args:
        model: A loaded model, a folder, a Hub name, or the name of a family, for a tiny random model of it.
        texts: Texts of different lengths; three sentences for None, or random tokens where there is no tokenizer. Where
            they all lie on one side of a limit that the model's config names (a window, the length it was first trained
            on), some as long and longer are added.
        dtype: What a model that is loaded here computes in; float32 proves most.
        device: Where such a model runs.
        adapter: An adapter of PEFT for a model that is loaded here.
        revision: The commit, tag or branch of a model on the Hub.
        allow_pickle: Whether the weights of a model that is loaded here may be pickled.
        like: A family whose row is proved of a model that is loaded here, whatever its own.

    Raises:
        NotFound, Unreadable, Unsupported: as `load_model` raises them.
        UsageError: texts for a tiny random model, which has no tokenizer.
    """
    import torch

    from traceformer.capture.edits.session import unedited
    from traceformer.capture.proofs.check import check_model, random_examples
    from traceformer.capture.proofs.limits import straddling
    from traceformer.capture.proofs.probe import probe_model
    from traceformer.models.families import own_family
    from traceformer.models.load import load_model, pick_device
    from traceformer.models.loaded import LoadedModel
    from traceformer.models.tiny import tiny_model, tiny_names

    name = ""
    if not isinstance(model, LoadedModel) and str(model) in tiny_names():
        if texts:
            raise UsageError("`texts` needs a tokenizer", why=f"{model} is a tiny random model here, which has none")
        made: Any = tiny_model(str(model))
        name, kind = f"a tiny random {model}", getattr(torch, dtype)
        model = load_model(made.to(pick_device(device, kind), kind), like=like)
    elif not isinstance(model, LoadedModel):
        try:
            model = load_model(
                str(model),
                adapter=adapter,
                revision=revision,
                device=device,
                dtype=dtype,
                with_head=True,
                allow_pickle=allow_pickle,
                like=like,
            )
        except NotFound as error:
            near = difflib.get_close_matches(str(model), tiny_names(), n=1)
            raise NotFound(error.message, why=error.why, hint=near[0] if near else error.hint) from error
    is_mute = model.tokenizer is None and not texts
    examples = random_examples(model.config, arch=model.dims.arch) if is_mute else _encode(model, texts or _TEXTS)
    checked, name, chosen = model.model, name or model.name, model.architecture
    if chosen is not None or own_family(checked.config) is None:
        with unedited(checked):
            return probe_model(checked, examples, name=name, like=chosen)
    examples, untested = straddling(checked, examples)
    with unedited(checked):
        return check_model(checked, examples, untested=untested, name=name)


def _encode(model: "LoadedModel", texts: Sequence[str]) -> "list[Example]":
    """The texts' token ids; an encoder-decoder reads each and writes it down again."""
    from traceformer.capture.encoding import Encoder

    targets = texts if model.dims.arch == "encdec" else None
    return [dict(row.ids) for row in Encoder(model, "auto", 64).encode(texts, targets)]
