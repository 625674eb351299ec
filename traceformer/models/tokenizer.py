"""A model's own tokenizer, as its folder has it, or that it has none: then only token ids can be read."""

import re
from pathlib import Path
from typing import Any

from traceformer.errors import Unreadable
from traceformer.models.loaded import with_padding

__all__ = ["load_tokenizer", "tokenizer_lies_in", "vocabulary_in"]

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
        tokenizer: Any = AutoTokenizer.from_pretrained(name, **place)
    except Exception as error:  # a damaged one raises whatever its reader stumbles over, of tokenizers a bare Exception
        if not is_there:
            return None
        why = " ".join(str(error).split())
        raise Unreadable(
            f"the tokenizer in {name} cannot be read",
            why=f"{type(error).__name__}: {why}" if why else type(error).__name__,
            hint="its files as they were saved; or give the model another tokenizer",
        ) from error
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
    try:
        return Tokenizer.from_file(str(path)).get_vocab()
    except Exception as error:  # tokenizers raises no other
        why = " ".join(str(error).split())
        raise Unreadable(f"{path} is no tokenizer", why=why, hint="the file as it was saved, or none") from error
