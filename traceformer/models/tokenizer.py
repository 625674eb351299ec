"""A model's own tokenizer, as its folder has it, or that it has none: then only token ids can be read."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from traceformer.errors import Unreadable
from traceformer.models.loaded import with_padding

__all__ = ["load_tokenizer", "reading_tokenizer", "tokenizer_lies_in", "vocabulary_in"]

# Whatever holds a vocabulary; settings alone are none.
_VOCABULARY = re.compile(r"(tokenizer|vocab|merges|spiece|sentencepiece|tekken)\b.*|.*\.(model|spm|tiktoken|bpe)")


def tokenizer_lies_in(folder: Path) -> bool:
    """Whether a folder holds the vocabulary of a tokenizer."""
    return any(_VOCABULARY.fullmatch(path.name) for path in folder.iterdir())


def load_tokenizer(name: str, folder: Path, **place: Any) -> Any:
    """Returns a model's own tokenizer, set up for padding; None if it has none.

    Args:
        name: The model's, or its folder.
        folder: Where its files lie.
        place: What else `from_pretrained` is told.

    Raises:
        Unreadable: there is one, but it is damaged.
        Unsupported: it has neither a padding nor an end token.
    """
    from transformers import AutoTokenizer

    is_there = tokenizer_lies_in(folder)
    try:
        with reading_tokenizer(
            f"the tokenizer in {name} cannot be read",
            "its files as they were saved; or give the model another tokenizer",
        ):
            tokenizer: Any = AutoTokenizer.from_pretrained(name, **place)
    except Unreadable:
        if not is_there:
            return None
        raise
    # Without files many classes make one that knows no word, and reads every text as nothing. Some need none: bytes.
    if not is_there and type(tokenizer).vocab_files_names:
        return None
    return with_padding(tokenizer)


def vocabulary_in(folder: Path) -> dict[str, int]:
    """Returns the token ids in a folder's tokenizer.json, by token; none if there is no such file.

    Raises:
        Unreadable: it is no tokenizer.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    with reading_tokenizer(f"{path} is no tokenizer", "the file as it was saved, or none"):
        return Tokenizer.from_file(str(path)).get_vocab()


@contextmanager
def reading_tokenizer(message: str, hint: str = "") -> Generator[None]:
    """Says of any error inside that a tokenizer is damaged.

    One that is raises whatever its reader stumbles over: of tokenizers a bare Exception or, where its own arithmetic
    does (seen with 0.23.3), pyo3's PanicException, which is none.

    Args:
        message: What cannot be read.
        hint: What would be.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        name, why = type(error).__name__, " ".join(str(error).split())
        raise Unreadable(message, why=f"{name}: {why}" if why else name, hint=hint) from error
