"""What pages show, taken apart: their Python, their commands, and what stands beside these as output.

A block of the language `console` is a session: lines that begin with `$ ` are typed, what follows is shown. A block of
the language `text` behind one of Python is what that prints. A line `...` stands for any number of lines.
"""

import re
from itertools import zip_longest
from typing import NamedTuple

__all__ = ["Step", "difference", "steps_of"]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_IN_A_TABLE = re.compile(r"^\| `(traceformer [^`]+)`", re.MULTILINE)
_PROGRESS = re.compile(r"(?:loading|[a-z ]+  \d[\d,]*/\d.*)$")
_MASKED = {
    "DATE": re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\d{8}-\d{6}"),
    "TIME": re.compile(r"(?:\d+ h )?(?:\d+ min )?\b\d+(?:\.\d)? (?:s|min)(?![\w/])"),
    "ADDRESS": re.compile(r"http://127\.0\.0\.1:\S+"),
}
"""What is another at each run."""
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_NOTHING = 1e-4  # two numbers below are both what rounding leaves of zero
_SHARE = 0.02  # by which other processors may differ, who add in another order


class Step(NamedTuple):
    """Something that a page tells to do: some Python, or a line of the shell; and what it shows of the outcome."""

    is_python: bool
    code: str
    shown: str | None


def steps_of(page: str) -> list[Step]:
    """Returns what a page tells to do, in its order; commands at the head of a table's row are among it."""
    found: list[tuple[int, Step]] = [(row.start(), Step(False, row[1], None)) for row in _IN_A_TABLE.finditer(page)]
    blocks = list(_FENCE.finditer(page))
    for block, after in zip_longest(blocks, blocks[1:]):
        if block[1] == "python":
            printed = after[2] if after is not None and after[1] == "text" else None
            found.append((block.start(), Step(True, block[2], printed)))
        elif block[1] == "console":
            found += [(block.start(), step) for step in _typed(block[2])]
    return [step for _, step in sorted(found, key=lambda each: each[0])]


def _typed(session: str) -> list[Step]:
    parts = re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]
    lines = [part.replace("\\\n", "").partition("\n") for part in parts]
    return [Step(False, line, shown if shown.strip() else None) for line, _, shown in lines]


def difference(shown: str, came: str) -> str:
    """Returns the first line that is shown and did not come where it should have, and what came; nothing if all did."""
    wanted, lines = _lines(shown), _lines(came)
    at, gap = 0, False
    for number, want in enumerate(wanted):
        if want == "...":
            gap = True
            continue
        places = range(at, len(lines)) if gap else range(at, min(at + 1, len(lines)))
        last = gap and number == len(wanted) - 1
        place = next((n for n in (reversed(places) if last else places) if _alike(want, lines[n])), None)
        if place is None:
            return f"shown: {want}\ncame:  {lines[at] if at < len(lines) else 'nothing more'}"
        at, gap = place + 1, False
    return "" if gap or at == len(lines) else f"shown: nothing more\ncame:  {lines[at]}"


def _lines(text: str) -> list[str]:
    lines = (" ".join(line.split()) if not _PROGRESS.match(line) else "" for line in text.splitlines())
    return [line for line in map(_masked, lines) if line]


def _masked(line: str) -> str:
    for name, varies in _MASKED.items():
        line = varies.sub(name, line)
    return line


def _alike(one: str, other: str) -> bool:
    """Whether two lines say the same, numbers that are no whole ones as far as processors agree on them."""
    first, second = _NUMBER.split(one), _NUMBER.split(other)
    return len(first) == len(second) and all(
        a == b if n % 2 == 0 else _near(a, b) for n, (a, b) in enumerate(zip(first, second, strict=True))
    )


def _near(one: str, other: str) -> bool:
    if one == other:
        return True
    if not re.search("[.e]", one + other):
        return False
    a, b = float(one), float(other)
    return max(a, b) < _NOTHING or abs(a - b) <= _SHARE * max(a, b) + 2 * min(_last_place(one), _last_place(other))


def _last_place(number: str) -> float:
    """Returns what the last digit of a number counts."""
    digits, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
