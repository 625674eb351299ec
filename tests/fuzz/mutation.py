"""Damage with structure: a valid file becomes one that is wrong in one or a few places.

1. What a file is, is seen from its bytes: JSON, a sealed record of a run, safetensors, .npy, a zip archive, text.
2. JSON is damaged as a tree (types swapped, keys lost, branches moved, absurd numbers), safetensors and .npy in their
   headers, an archive in one of its members, text in its lines and cells; and all of them, now and then, as bytes.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from traceformer.store.files import is_sealed, seal

__all__ = ["damaged", "damaged_word"]

_DEEP = "a very deep list"
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 99_999, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1e308, -1e-320, float("inf"), float("-inf"), float("nan")),
    *("", " ", "\u200b", "\ud800", "\x00", "é", "０", "²", "1", "-1", "nan", "layer", "a" * 300, "../up", "/etc", "."),
    *([], {}, [[]], [None], [0], [-1], ["a"], [True, 1], {"a": 1}, {"": {}}, [1e400], [[1], [2, 3]], _DEEP),
    *("dec", "enc", "float16", "bfloat16", "dec.self.q", "dec.self.attn_pattern", "enc.hidden", "torch.float16"),
)
_WORDS = (
    *("0", "-1", "1.5", "1e400", "nan", "inf", "-", "--", "", " ", ",", "0-", "5-3", "0,,1", "L5H3", "l0h0", "L-1H2"),
    *(
        "latest",
        "..",
        "/",
        ".",
        "a" * 300,
        "\u200b",
        "\udc80",
        "é",
        "０",
        "²",
        "L０H²",
        "99999999999999999999",
        "0-99999",
    ),
    *("dec.self.q", "attn_pattern", "hidden", "all", "None", "True", "[0]", "0x10", "1_000", "+1", "~", "*", "'", '"'),
)


def damaged(data: bytes, random: Random) -> bytes:
    """Returns the bytes of a valid file with something wrong in them."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice((_by_kind(data), _by_kind(data), _bytes))(data, random)
    return data


def damaged_word(word: str, random: Random) -> str:
    """Returns an argument of a command with something wrong in it."""
    characters = [*word]
    match random.randrange(5):
        case 0:
            return random.choice(_WORDS)
        case 1:
            return word + random.choice(_WORDS)
        case 2 if characters:
            characters[random.randrange(len(characters))] = random.choice("0123456789LHl-,. é²０\u200b=:/%{}[]'\"\\")
        case 3 if characters:
            del characters[random.randrange(len(characters))]
        case _:
            characters.insert(random.randrange(len(characters) + 1), random.choice("0-,.:LH é²"))
    return "".join(characters)


def _by_kind(data: bytes) -> Callable[[bytes, Random], bytes]:
    if data[:4] == b"PK\x03\x04":
        return _archive
    if data[:6] == b"\x93NUMPY":
        return _npy
    if len(data) > 8 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return _safetensors
    if data[:4] == b"PAR1" or b"\x00" in data[:512]:
        return _bytes
    return _json if data.lstrip()[:1] in (b"{", b"[") and b"\n{" not in data else _lines


def _bytes(data: bytes, random: Random) -> bytes:
    if not data:
        return random.randbytes(random.randrange(40))
    at, length = random.randrange(len(data)), random.choice((1, 1, 2, 4, 8, 40))
    match random.randrange(8):
        case 0 | 1:
            changed = bytearray(data)
            changed[at] ^= 1 << random.randrange(8)
            return bytes(changed)
        case 2:
            return data[:at]
        case 3:
            return data[:at] + data[at + length :]
        case 4:
            return data[:at] + random.randbytes(length) + data[at + length :]
        case 5:
            return data[:at] + random.choice((b"\xff" * length, b"\x00" * length)) + data[at + length :]
        case 6:
            source = random.randrange(len(data))
            return data[:at] + data[source : source + length] + data[at:]
        case _:
            return random.choice((b"", b"\x00", b"{}", b"[]", b"null", b"\xef\xbb\xbf", data + data, data[::-1]))


def _json(data: bytes, random: Random) -> bytes:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, random)
    sealed = is_sealed(data)
    if sealed:
        del tree["sha256"]
    tree = _changed(tree, random)
    if sealed and isinstance(tree, dict) and random.random() < 0.7:
        try:
            return seal(tree)  # what stands behind a seal that fits
        except (ValueError, RecursionError):
            pass  # what JSON cannot hold was never sealed
    return _text_of(tree, random)


def _text_of(tree: Any, random: Random) -> bytes:
    text = json.dumps(tree)
    depth = random.choice((90, 900, 100_000))
    return text.replace(json.dumps(_DEEP), "[" * depth + "]" * depth).encode()


def _changed(tree: Any, random: Random) -> Any:
    """Returns the tree with one place in it changed."""
    places = [((), tree), *_places(tree, ())]
    path, own = random.choice(places)
    if not path:
        path, own = random.choice(places)
    match random.randrange(6):
        case 0 if isinstance(own, dict) and own:
            new: Any = {**own, random.choice([*own]): random.choice(_ODD)}
        case 1 if isinstance(own, list):
            new = random.choice(([*own, random.choice(_ODD)], own[:-1], own + own, own[::-1]))
        case 2:
            new = random.choice(places)[1]
        case 3 if isinstance(own, int | float) and not isinstance(own, bool):
            new = random.choice((own + 1, own - 1, -own, float(own) if abs(own) < 2**60 else 0.5, str(own), own * 2))
        case 4 if path:
            return _without(tree, path)
        case _:
            new = random.choice(_ODD)
    return _with(tree, path, new)


def _places(tree: Any, path: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], Any]]:
    # Of a list that is deep already, the outer ones are enough.
    inside = len(path) < 60
    items = (
        tree.items() if isinstance(tree, dict) else enumerate(tree[:40]) if isinstance(tree, list) and inside else ()
    )
    return [place for key, own in items for place in (((*path, key), own), *_places(own, (*path, key)))]


def _with(tree: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    key, *rest = path
    inner = _with(tree[key], tuple(rest), new)
    return {**tree, key: inner} if isinstance(tree, dict) else [*tree[:key], inner, *tree[key + 1 :]]


def _without(tree: Any, path: tuple[Any, ...]) -> Any:
    key, *rest = path
    if rest:
        return _with(tree, (key,), _without(tree[key], tuple(rest)))
    return {k: v for k, v in tree.items() if k != key} if isinstance(tree, dict) else [*tree[:key], *tree[key + 1 :]]


def _safetensors(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = _json(data[8 : 8 + length], random)
    return random.choice((len(header), len(header), length)).to_bytes(8, "little") + header + data[8 + length :]


def _npy(data: bytes, random: Random) -> bytes:
    """A header that states another type, order or shape; its length is kept in step."""
    length = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + length].decode("latin-1")
    old, new = random.choice(
        (
            (
                "'<f4'",
                random.choice(("'<f8'", "'<f2'", "'O'", "'V9'", "'<U5'", "'<c8'", "'<M8[s]'", "'q'", "[('a','<f4')]")),
            ),
            ("False", random.choice(("True", "None", "1", "[]"))),
            ("(", random.choice(("(2, ", "(-1, ", "(99999999999, ", "('a', ", "[", "((), ", "(1e9, ", "(True, "))),
            ("'shape'", random.choice(("'sharp'", "b'shape'", "1"))),
            ("{", random.choice(("{{", "{1: ", "[" * 200, "{'a': 1, ", "__import__('os'), {"))),
            ("}", random.choice(("", "}}", ", 'x': " + "-" * 3000 + "1}", "\x00}"))),
        )
    )
    changed = header.replace(old, new, 1).encode("latin-1")
    return data[:8] + len(changed).to_bytes(2, "little") + changed + data[10 + length :]


def _archive(data: bytes, random: Random) -> bytes:
    """A zip archive with one member damaged, lost, or called something else; its checksums are kept in step."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, NotImplementedError, EOFError, RuntimeError):
        return _bytes(data, random)
    if not members:
        return _bytes(data, random)
    # The pickle says what the others are.
    pickles = [index for index, (name, _) in enumerate(members) if name.endswith(".pkl")]
    chosen = random.choice(pickles) if pickles and random.random() < 0.7 else random.randrange(len(members))
    name, content = members[chosen]
    match random.randrange(8):
        case 0:
            del members[chosen]
        case 1:
            members[chosen] = (random.choice((f"{name}x", f"../{name}", "archive/data.pkl", "")) or "x", content)
        case _:
            members[chosen] = (name, _bytes(content, random))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in dict(members).items():
            archive.writestr(name, content)
    return packed.getvalue()


def _lines(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return _bytes(data, random)
    at = random.randrange(len(lines))
    line = lines[at]
    if line.lstrip()[:1] == b"{" and random.random() < 0.7:
        lines[at] = _json(line, random) + b"\n"
        return b"".join(lines)
    match random.randrange(7):
        case 0:
            del lines[at]
        case 1:
            lines.insert(random.randrange(len(lines) + 1), line)
        case 2:
            lines[at] = line.rstrip(b"\n")
        case 3:
            lines[at] = random.choice(
                (b"\n", b"\x00\n", b"\xe2\x80\x8b\n", b'"\n', b"\r", b",\n", b"\t\n", b"# x = 1\n")
            )
        case _:
            separator = random.choice((b",", b"\t", b" "))
            cells = line.rstrip(b"\n").split(separator)
            word = random.choice(_WORDS).encode("utf-8", "surrogatepass")
            cells[random.randrange(len(cells))] = random.choice((word, b'"' + word, word * 3, b"1" * 5000))
            lines[at] = separator.join(cells) + b"\n"
    return b"".join(lines)
