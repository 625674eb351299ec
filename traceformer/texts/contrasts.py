"""Pairs of a clean and a corrupt text: given one by one, in a file, or in a set that has a name.

A file holds an object per line, or whatever else `files` reads with named columns: `clean` and `corrupt`, texts or
lists of token ids; `answer` and `wrong`, what the clean text should be followed by and what it should not, texts or
token ids, where a metric needs them; and `id`, a name, where there is one.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.texts.cells import Ids
from traceformer.texts.files import open_files

__all__ = ["PAIR_SETS", "Contrast", "Contrasts", "load_contrasts", "read_contrast"]

_FOLDER = Path(__file__).with_name("pair_sets")
PAIR_SETS: Mapping[str, Path] = {
    name: _FOLDER / f"{name}.jsonl" for name in ("agreement", "indirect_object", "repeats")
}
"""The sets that come with the package, each of 50 pairs of equal length in most tokenizers' words.

`indirect_object`: who is given something, of two who were named (after Wang et al., "Interpretability in the Wild").
`agreement`: a verb's number, where a noun of the other number stands before it. `repeats`: letters at random that are
repeated, which the clean text's end continues and the corrupt one's does not; a token each for a byte-level model.
"""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A clean and a corrupt text, and what should and should not follow the clean one; None where nothing is said."""

    clean: str | Ids
    corrupt: str | Ids
    answer: str | int | None = None
    wrong: str | int | None = None
    name: str = ""


Contrasts: TypeAlias = str | Path | Sequence[Mapping[str, Any]]
"""A named set, a file, or a list of what the file's lines hold."""


def load_contrasts(pairs: Contrasts) -> list[Contrast]:
    """Returns the pairs of a named set, of a file, or of a list of objects.

        load_contrasts("indirect_object")[0].answer     # ' Anna'

    Raises:
        NotFound: no such set or file.
        Unreadable: a pair lacks one of its texts, or has something else in the place of it.
        UsageError: there are none, or this is no list of them.
    """
    if not isinstance(pairs, str | Path | Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"`pairs={pairs!r}`", hint=f"a list of objects, a file, or {', '.join(PAIR_SETS)}")
    if isinstance(pairs, str | Path):
        rows = open_files([_path_of(pairs)], str(pairs))
        found = [read_contrast(row, rows.where(number), str(number)) for number, row in enumerate(rows)]
    else:
        found = [read_contrast(row, f"pair {number}", str(number)) for number, row in enumerate(pairs)]
    if not found:
        raise UsageError("no pair of texts", hint="one at least")
    return found


def _path_of(pairs: str | Path) -> Path:
    if str(pairs) in PAIR_SETS:
        return PAIR_SETS[str(pairs)]
    path = Path(pairs).expanduser()
    if path.is_file():
        return path
    near = difflib.get_close_matches(str(pairs), PAIR_SETS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"a file, or {', '.join(PAIR_SETS)}"
    raise NotFound(f"no pairs {str(pairs)!r}", hint=hint)


def read_contrast(row: object, where: str, name: str) -> Contrast:
    """Returns the pair that an object with `clean`, `corrupt`, `answer`, `wrong`, `id` is; `name` where it has no id.

    Raises:
        Unreadable: a text is missing, or something else.
    """
    if not isinstance(row, Mapping):
        raise Unreadable(f"{where} is {type(row).__name__}", hint='an object such as {"clean": "..", "corrupt": ".."}')
    own = row.get("id")
    return Contrast(
        _text(row.get("clean"), f"{where}: clean"),
        _text(row.get("corrupt"), f"{where}: corrupt"),
        _token(row.get("answer"), f"{where}: answer"),
        _token(row.get("wrong"), f"{where}: wrong"),
        name if own is None else str(own),
    )


def _is_id(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _text(value: Any, what: str) -> str | Ids:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Ids):
        return value
    if not isinstance(value, str | bytes | Mapping) and hasattr(value, "__iter__"):
        ids = list(value)
        if ids and all(map(_is_id, ids)):
            return Ids(tuple(map(int, ids)))
    found = "nothing" if value is None or value == "" else f"{value!r}"
    raise Unreadable(f"{what} is {found}", hint="a text, or a list of token ids")


def _token(value: Any, what: str) -> str | int | None:
    if value is None or (isinstance(value, str) and value):
        return value
    if _is_id(value):
        return int(value)
    raise Unreadable(f"{what} is {value!r}", hint="a text of one token, or a token id")
