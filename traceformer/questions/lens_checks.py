"""What has to hold before a lens is believed: translators are the model's own, and so is the readout.

1. Translators are for a model of this width, vocabulary and depth. A file of ours states the digest of the model's
   weights, and those of the run have to be the same. A published file states at most its name: a run of a model of
   another name is refused, and the result says how much is known.
2. The last layer's rows, read out, are the logits that the run holds, if it holds any, but for rounding.
"""

import os
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TypeAlias

import numpy as np

from traceformer.analysis.lens import KnownBy, Translated, apart_from
from traceformer.analysis.translators import Translators
from traceformer.errors import ConfigurationChanged, NotFound, SelectionError, check_is
from traceformer.models.readout import Readout
from traceformer.models.weights import find_model_folder
from traceformer.shapes import Float32
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.run import Run

__all__ = ["TranslatorsGiven", "check_logits", "translatable", "translators_of"]

TranslatorsGiven: TypeAlias = Translators | str | PathLike[str]

_LOGITS = ArrayKey("dec", None, "logits")
# How far logits may be apart where rows or logits were rounded to a dtype, as `apart_from` has it. Of tiny models of
# every kind of block none gave more than 2.5e-7, 4.7e-4 and 4.8e-3 of float32, float16 and bfloat16; those of another
# head are apart by about 1.4.
_ROUNDED: Mapping[str, float] = {"float32": 0.002, "float16": 0.02, "q8": 0.05, "bfloat16": 0.15}


def translators_of(run: Run, given: TranslatorsGiven, readout: Readout) -> tuple[Translators, Translated]:
    """Returns the translators that are meant, and what is known of them.

    Raises:
        NotFound, Unreadable: there is no such file, or it holds no translators.
        ConfigurationChanged: they are for another width, vocabulary or model.
    """
    from traceformer.formats.results.translators import open_lens

    if isinstance(given, str | PathLike):
        translators, source = open_lens(given), str(given)
    else:
        check_is(given, Translators, "what fit_lens gave, or the file of one")
        translators, source = given, None
    translators.check_model(readout.d_model, readout.d_vocab, run.about.model_weights)
    depth = run.about.dims_of("dec").n_layers
    if depth:
        _check_depth(translators, depth)
    return translators, Translated(translators.kind, source, translators.layers, _known_by(translators, run))


def _check_depth(translators: Translators, depth: int) -> None:
    """Makes sure that they lead to the last layer of a model of so many layers."""
    last = depth - 1
    n_layers, target = (translators.about.get(name) for name in ("n_layers", "target_layer"))
    if n_layers not in (None, depth):
        raise _another(translators, f"it has {n_layers} layers, this one {depth}")
    if target not in (None, last):
        raise _another(translators, f"they lead to layer {target}, and this one's last layer is {last}")
    if translators.layers[-1] > last:
        raise _another(translators, f"they are for layer {translators.layers[-1]}, and this one's last layer is {last}")
    if translators.layers[-1] == last and not _leaves(translators, last):
        raise _another(translators, f"they translate layer {last}, this one's last, which is read as it is")


def _leaves(translators: Translators, layer: int) -> bool:
    """Whether a layer's rows are left as they are."""
    at = translators.layers.index(layer)
    identity = np.eye(translators.d_model, dtype=np.float32)
    return np.array_equal(translators.weights[at], identity) and not translators.biases[at].any()


def _known_by(translators: Translators, run: Run) -> KnownBy:
    about, named = run.about, translators.model
    if None not in (translators.model_weights, about.model_weights):
        return "digest"
    if named is None or about.model is None:
        return "width"
    if _own_name(named) == _own_name(about.model):
        return "name"
    if _is_of_hub(about.model, about.revision) and not os.path.isdir(named):
        raise _another(translators, f"it is {named}, this one {about.model}")
    return "width"


def _own_name(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].lower()


def _is_of_hub(model: str, revision: str | None) -> bool:
    """Whether a name is that of a model, which nobody calls otherwise, and not that of somebody's folder."""
    if os.path.isdir(model):
        return False
    try:
        find_model_folder(model, revision)
    except NotFound:
        return False
    return True


def _another(translators: Translators, why: str) -> ConfigurationChanged:
    return ConfigurationChanged(
        f"these {translators.kind} translators are another model's", why=why, hint="those of the run's model"
    )


def translatable(
    translators: Translators, stored: Sequence[int], last: int, layers: Sequence[int] | None
) -> tuple[int, ...]:
    """Returns the layers to read out: those asked for, by default all stored ones that have a translator or need none.

    Raises:
        SelectionError: a layer has no translator.
    """
    has = [layer for layer in stored if layer in translators.layers or layer == last]
    missing = [layer for layer in layers or () if layer in stored and layer not in has]
    if missing or not has:
        there, own = (", ".join(map(str, numbers)) for numbers in (translators.layers, missing or stored))
        raise SelectionError(
            f"no translator for layer {own}", why=f"there are those of layers {there}", hint="`layers`, some of these"
        )
    return tuple(has if layers is None else layers)


def check_logits(
    run: Run,
    example: int | str,
    spec: ArraySpec,
    positions: Sequence[int],
    rows: Float32[np.ndarray, "row d_embed"],
    readout: Readout,
) -> None:
    """Makes sure that the last layer's rows at some positions say what the run's logits say, if it holds them.

    `rows` are of the array `spec`, normed.

    An edit of what is behind the last layer is no other head: such runs are not compared.

    Raises:
        ConfigurationChanged: they do not, by more than rounding explains.
    """
    held = run.layout.spec(_LOGITS)
    behind = ("final_norm", "logits")
    if held is None or any(str(edit.get("site")).rpartition(".")[2] in behind for edit in run.about.edits or ()):
        return
    if held.width != readout.d_vocab:
        raise _other_head(f"it has {readout.d_vocab} words, and the run's logits {held.width}")
    apart = apart_from(rows, readout, run.rows(example, held.key, positions))
    dtypes = (run.layout.stored(spec), run.layout.stored(held), run.about.model_dtype or "float32")
    allowed = max(_ROUNDED.get(dtype, _ROUNDED["bfloat16"]) for dtype in dtypes)
    if (apart > allowed).any():
        row = int(np.nanargmax(apart))
        raise _other_head(
            f"of the last layer at position {positions[row]} it gives logits that are apart from the run's by "
            f"{apart[row]:.3g} of how these spread, and rounding explains {allowed}"
        )


def _other_head(why: str) -> ConfigurationChanged:
    return ConfigurationChanged(
        "this final norm and unembedding are not those that made the run's logits",
        why=why,
        hint="`model=FOLDER`, with the model as it was; or record the run again",
    )
