"""What the tokens of a run are shown as, and those that it names by id only."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from traceformer.errors import NotFound, SelectionError, UsageError, check_whole
from traceformer.models.tokenizer import vocabulary_in
from traceformer.models.weights import find_model_folder
from traceformer.sites import Stack
from traceformer.store.run import Run
from traceformer.texts.shown import Piece, pieces_named, pieces_of_text, unnamed

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = ["position_of", "shown_tokens", "token_named", "token_texts"]

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def shown_tokens(run: Run, example: int | str, stack: Stack) -> list[Piece]:
    """Returns an example's tokens in a stack as they are shown: their texts, or the bytes of a part of a character.

    One that stands for a part of an image is `‹image›`, and likewise of a sound or a video.
    """
    encodings = run.encodings(example)
    prefix = "dec_" if stack == "dec" and run.arch == "encdec" else ""
    tokens = [str(token) for token in encodings[f"{prefix}tokens"]]
    offsets = encodings.get(f"{prefix}offset_mapping")
    pieces = pieces_of_text(tokens, offsets, "" if offsets is None else run.text(example), run.about.byte_level)
    kinds = encodings.get(f"{prefix}kind")
    if kinds is None:
        return pieces
    return [piece if kind == "text" else Piece(f"‹{kind}›") for piece, kind in zip(pieces, kinds, strict=True)]


def position_of(run: Run, example: int | str, stack: Stack, position: int | str) -> int:
    """Returns which position of an example is meant, counted from 0.

    Args:
        run: The run.
        example: One of its examples.
        stack: Whose tokens are counted.
        position: A number, negative from the end, or a word that the text has once, whose last token is meant.

    Raises:
        SelectionError: it is not in the example, or more than once.
    """
    length = run.length(example, stack)
    if not isinstance(position, str):
        check_whole("position", position)
        if not -length <= position < length:
            raise SelectionError(f"position {position} requested", why=f"this example has positions 0-{length - 1}")
        return position % length
    pieces = [piece.text for piece in shown_tokens(run, example, stack)]
    text = "".join(pieces)
    times = text.count(position) if position else 0
    if times != 1:
        why = f"the example has it {times} times" if times else "the example does not have it"
        raise SelectionError(f"`position={position!r}`", why=why, hint="a number, or more of the words around it")
    end = text.index(position) + len(position)
    return int(np.searchsorted(np.cumsum([len(piece) for piece in pieces]), end))


def token_texts(run: Run, model: "str | Path | LoadedModel | None" = None) -> Callable[[int], str]:
    """Returns what gives a token id its text.

    Tokens that occur in the run are known; others are looked up in the model's tokenizer.json, in its folder (or
    `model`, where it lies now, or the model itself) or the Hub's cache, if that agrees with the run; the rest are
    written #id.
    """
    names, byte_level = _names_of(run, model)

    def text(token_id: int) -> str:
        return pieces_named([names[token_id]], byte_level)[0].text if token_id in names else unnamed(token_id)

    return text


def token_named(run: Run, token: int | str, d_vocab: int, model: "str | Path | LoadedModel | None" = None) -> int:
    """Returns the id of the token that is meant: by its text, spaces included, or its name, or the id, also as `#475`.

    Raises:
        UsageError: there is none, or it takes several tokens; the hint names one that is alike.
    """
    names, byte_level = _names_of(run, model)
    texts = dict(zip(names, pieces_named(list(names.values()), byte_level), strict=True))
    if isinstance(token, str) and re.fullmatch(r"#\d+", token) and all(piece.text != token for piece in texts.values()):
        token = int(token[1:])
    if not isinstance(token, str):
        if not 0 <= token < d_vocab:
            raise UsageError(f"token {token}", why=f"the model has tokens 0-{d_vocab - 1}")
        return int(token)
    meant = [token_id for token_id, piece in texts.items() if piece.text == token and piece.hex is None]
    # A byte that is a character by itself may have a token of that name beside the one that stands for a byte.
    meant = [token_id for token_id in meant if not _BYTE.fullmatch(names[token_id])] or meant
    meant = meant or [token_id for token_id, name in names.items() if name == token]
    if len(meant) == 1 and meant[0] < d_vocab:
        return meant[0]
    if meant:
        written = ", ".join(map(unnamed, sorted(meant)))
        raise UsageError(f"{token!r} is not one token", why=f"{written} are written so", hint="one of these ids")
    known = {piece.text for piece in texts.values()}
    alike = [text for text in (f" {token}", token.strip(), token.lstrip()[:1]) if text in known]
    raise UsageError(
        f"{token!r} is not one token of the model",
        why="what takes several tokens has no logit of its own" if token else "it is empty",
        hint=f"a token with its spaces, such as {alike[0]!r}, or its id" if alike else "its id",
    )


def _names_of(run: Run, model: "str | Path | LoadedModel | None") -> tuple[dict[int, str], bool]:
    """The names of all tokens that are known, and whether each character of one is a byte."""
    names: dict[int, str] = {}
    table = run.table
    for ids, tokens in (("input_ids", "tokens"), ("dec_input_ids", "dec_tokens")):
        if {ids, tokens} <= {*table.column_names}:
            for own_ids, own_tokens in zip(
                table.column(ids).to_pylist(), table.column(tokens).to_pylist(), strict=True
            ):
                names.update(zip(own_ids, own_tokens, strict=True))
    vocabulary = _vocabulary(model or str(run.about.model), run.about.revision)
    if all(vocabulary.get(token_id, token) == token for token_id, token in names.items()):
        names = vocabulary | names
    byte_level = run.about.byte_level
    if byte_level is None:
        byte_level = any("Ġ" in name for name in names.values())
    return names, byte_level


def _vocabulary(model: "str | Path | LoadedModel", revision: str | None) -> dict[int, str]:
    if isinstance(model, str | Path):
        try:
            folder = find_model_folder(str(model), revision)
        except NotFound:
            return {}
        vocabulary = vocabulary_in(folder)
    else:
        vocabulary = {} if model.tokenizer is None else model.tokenizer.get_vocab()
    return {token_id: token for token, token_id in vocabulary.items()}
