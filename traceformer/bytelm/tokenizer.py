"""Bytes as tokens: ids 0-255 are the bytes themselves, then the end of a document, then padding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from traceformer.errors import UsageError
from traceformer.shapes import Integer, UInt8

__all__ = ["D_VOCAB", "END_OF_TEXT", "PAD", "ByteTokenizer", "decode_bytes", "encode_bytes"]

END_OF_TEXT = 256  # begins and ends a document
PAD = 257
D_VOCAB = 258
_SPECIALS = {END_OF_TEXT: "<|endoftext|>", PAD: "<|pad|>"}


def encode_bytes(data: bytes) -> UInt8[np.ndarray, " position"]:
    """Returns the ids of any bytes, valid UTF-8 or not: the bytes themselves, as a view without a copy."""
    return np.frombuffer(data, np.uint8)


def decode_bytes(ids: Sequence[int] | Integer[np.ndarray, " position"]) -> bytes:
    """Returns the bytes that ids stand for, exactly; special tokens stand for none.

    Raises:
        UsageError: an id is neither a byte nor a special token.
    """
    array = np.asarray(ids, np.int64)
    if array.size and not 0 <= array.min() <= array.max() < D_VOCAB:
        wrong = array.max() if array.min() >= 0 else array.min()
        raise UsageError(f"id {wrong} is no byte", why=f"bytes are 0-255, special tokens {END_OF_TEXT}-{D_VOCAB - 1}")
    return array[array < END_OF_TEXT].astype(np.uint8).tobytes()


class ByteTokenizer(PreTrainedTokenizerFast):
    """One token per byte of UTF-8; AutoTokenizer loads it from any folder that it was saved to.

    A token is shown as the printable character that GPT-2's alphabet gives its byte (a space is `Ġ`). Offsets are in
    characters: the bytes of one character share its place. Text that spells a special token is plain text.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("tokenizer_object", _byte_level())
        kwargs.setdefault("split_special_tokens", True)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        end = _SPECIALS[END_OF_TEXT]
        for name, token in {"bos_token": end, "eos_token": end, "pad_token": _SPECIALS[PAD]}.items():
            kwargs.setdefault(name, token)
        super().__init__(**kwargs)


def _byte_level() -> Tokenizer:
    """A byte-level BPE without a single merge, whose vocabulary is in the order of the bytes."""
    vocab = {character: byte for byte, character in enumerate(_alphabet())}
    vocab.update({token: index for index, token in _SPECIALS.items()})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _alphabet() -> list[str]:
    """The character for each byte: itself if it is printable Latin-1, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
