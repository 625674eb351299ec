"""What the tokens of a run are shown as, and those that it names by id only."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from traceformer.errors import NotFound
from traceformer.models.tokenizer import vocabulary_in
from traceformer.models.weights import find_model_folder
from traceformer.sites import Stack
from traceformer.store.run import Run
from traceformer.texts.shown import Piece, pieces_named, pieces_of_text, unnamed

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = ["shown_tokens", "token_texts"]


def shown_tokens(run: Run, example: int | str, stack: Stack) -> list[Piece]:
    """Returns an example's tokens in a stack as they are shown: their texts, or the bytes of a part of a character."""
    encodings = run.encodings(example)
    prefix = "dec_" if stack == "dec" and run.arch == "encdec" else ""
    tokens = [str(token) for token in encodings[f"{prefix}tokens"]]
    offsets = encodings.get(f"{prefix}offset_mapping")
    return pieces_of_text(tokens, offsets, "" if offsets is None else run.text(example), run.about.byte_level)


def token_texts(run: Run, model: "str | Path | LoadedModel | None" = None) -> Callable[[int], str]:
    """Returns what gives a token id its text.

    Tokens that occur in the run are known; others are looked up in the model's tokenizer.json, in its folder (or
    `model`, where it lies now, or the model itself) or the Hub's cache, if that agrees with the run; the rest are
    written #id.
    """
    names: dict[int, str] = {}
    table = run.tokens
    for ids, tokens in (("input_ids", "tokens"), ("dec_input_ids", "dec_tokens")):
        if ids in table and tokens in table:
            for own_ids, own_tokens in zip(table[ids], table[tokens], strict=True):
                names.update(zip(own_ids, own_tokens, strict=True))
    vocabulary = _vocabulary(model or str(run.about.model), run.about.revision)
    if all(vocabulary.get(token_id, token) == token for token_id, token in names.items()):
        names = vocabulary | names
    byte_level = run.about.byte_level
    if byte_level is None:
        byte_level = any("Ġ" in name for name in names.values())

    def text(token_id: int) -> str:
        return pieces_named([names[token_id]], byte_level)[0].text if token_id in names else unnamed(token_id)

    return text


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
