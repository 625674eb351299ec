"""A wrong type is refused in words, in every parameter of every verb that says what it takes."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import traceformer as tf
from traceformer.arguments import checked, kinds_of
from traceformer.errors import UsageError

VERBS = [name for name in tf.__all__ if inspect.isfunction(getattr(tf, name))]
Layers = int | Iterable[int] | str | None


class Something:
    """What is of no kind that a verb takes."""


def asked(
    texts: str | Path | Sequence[Any],
    *,
    limit: int | None = None,
    scale: float = 1.0,
    how: Literal["mean", "zero"] = "mean",
    length: int | Literal["auto"] = "auto",
    layers: Layers = None,
    loading: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    resume: bool = False,
    run: "tf.Run | str | None" = None,
    file: "str | PathLike[str]" = "x",
    unknown: "NoSuchName | None" = None,  # pyright: ignore[reportUndefinedVariable]
) -> str:
    """Returns that it was called."""
    return "called"


CHECKED: Any = checked(asked)
FITTING: list[dict[str, Any]] = [
    {"texts": Path("x"), "limit": np.int64(3), "scale": 2, "layers": "0-3"},
    {"texts": np.array(["a"]), "scale": np.float32(0.5), "layers": range(3), "length": 7},
    {"texts": ("a",), "layers": np.array([1]), "loading": {}, "progress": print, "resume": 1},
    {
        "texts": iter("ab"),
        "how": "no such way",
        "run": 3,
        "resume": np.True_,
        "unknown": object(),
        "layers": None,
        "length": "auto",
    },
]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "text for a number": ({"limit": "x"}, "`limit='x'`; a whole number or None"),
    "a fraction": ({"limit": 1.5}, "`limit=1.5`; a whole number or None"),
    "a truth": ({"limit": True}, "`limit=True`; a whole number or None"),
    "no number": ({"scale": "2"}, "`scale='2'`; a number"),
    "no name": ({"how": 3}, "`how=3`; mean or zero"),
    "neither": ({"length": None}, "`length=None`; a whole number or auto"),
    "an object": ({"layers": Something()}, "`layers`: Something; a whole number or a list or text or None"),
    "no texts": ({"texts": Something()}, "`texts`: Something; text or a path or a list"),
    "no dict": ({"loading": ["device"]}, "`loading`: list; a dict or None"),
    "no file": ({"file": 3}, "`file=3`; text or a path"),
    "a word for a truth": ({"resume": "no"}, "`resume='no'`; True or False"),
    "a number for a truth": ({"resume": 2}, "`resume=2`; True or False"),
    "nothing for a truth": ({"resume": None}, "`resume=None`; True or False"),
    "no function": ({"progress": 3}, "`progress=3`; a function or None"),
}


@pytest.mark.parametrize("given", FITTING)
def test_what_an_annotation_takes_is_taken(given: dict[str, Any]) -> None:
    assert CHECKED(**given) == "called"


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_does_not_take_is_refused_in_words(what: str) -> None:
    given, said = REFUSED[what]
    with pytest.raises(UsageError) as refused:
        CHECKED(**{"texts": "x", **given})
    assert str(refused.value) == said


def test_a_call_that_lacks_an_argument_is_refused_by_python() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'texts'"):
        CHECKED()


def test_a_verb_shows_its_own_name_signature_and_docstring() -> None:
    from traceformer.capture.extract import record

    assert tf.record is tf.record
    assert inspect.signature(tf.record) == inspect.signature(record)
    assert (tf.record.__doc__, tf.record.__name__) == (record.__doc__, "record")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_an_object_in_the_place_of_a_number_a_name_or_a_path(verb: str) -> None:
    function: Any = getattr(tf, verb)
    kinds = kinds_of(inspect.unwrap(function))
    needed = {
        name: "x"
        for name, each in inspect.signature(function).parameters.items()
        if each.default is each.empty and each.kind is not each.VAR_POSITIONAL
    }
    of_text = {name for name, own in kinds.items() if any(kind.has("x") for kind in own)}
    for name in (name for name, own in kinds.items() if own):
        others = {other: value for other, value in needed.items() if other in of_text or not kinds[other]}
        if needed.keys() - others.keys() - {name}:
            continue  # one that takes no text would be refused before
        with pytest.raises(UsageError, match=f"`{name}`: Something; "):
            function(**{**others, name: Something()})
