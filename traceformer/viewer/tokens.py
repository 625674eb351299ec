"""Tokens as pages show them: what cannot be seen made visible, parts of characters named."""

from collections.abc import Sequence
from typing import Any

from traceformer.questions.vocabulary import shown_tokens
from traceformer.sites import Stack
from traceformer.store.run import Run
from traceformer.texts.shown import part_notes, visible

__all__ = ["token_labels", "tokens_of"]


def token_labels(texts: Sequence[str], hexes: Sequence[str | None] | None) -> list[dict[str, Any]]:
    """Returns each token's text with every character visible, and a note on what it is a part of, or none."""
    notes = part_notes(hexes or [None] * len(texts))
    return [{"text": visible(text), "note": note} for text, note in zip(texts, notes, strict=True)]


def tokens_of(run: Run, example: int | str, stack: Stack) -> list[dict[str, Any]]:
    """Returns an example's tokens in a stack."""
    pieces = shown_tokens(run, example, stack)
    return token_labels([piece.text for piece in pieces], [piece.hex for piece in pieces])
