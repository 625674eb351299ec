"""NanoChat's tokenizer as a Hugging Face one: from its tokenizer.json, or from the pickle of its byte pairs.

A pickle is opened on request only, and then by an unpickler that knows one inert class and nothing else, so that it
cannot run code.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceformer.errors import NotFound, Unreadable, Unsupported
from traceformer.models.loaded import with_padding
from traceformer.models.tokenizer import reading_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = ["BOS", "END", "load_tokenizer"]

BOS = "<|bos|>"
"""Every document begins with it."""
END = "<|assistant_end|>"
"""Ends the assistant's turn."""

# A system message becomes the beginning of the first user message; what follows is the assistant's turn.
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% set system = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for message in messages if message['role'] != 'system' %}"
    "{% if message['role'] == 'user' %}<|user_start|>{{ system if loop.first else '' }}{{ message['content'] }}"
    "<|user_end|>{% else %}<|assistant_start|>{{ message['content'] }}<|assistant_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant_start|>{% endif %}"
)


def load_tokenizer(folder: Path, allow_pickle: bool) -> "PreTrainedTokenizerFast":
    """Returns the tokenizer in nanochat's `tokenizer` folder, with its chat template.

    A text begins with `<|bos|>`; `<|assistant_end|>` is its end token.

    Raises:
        NotFound: there is none.
        Unsupported: it is pickled, and may not be opened.
        Unreadable: it is damaged, asks for anything but tiktoken's class, or is not nanochat's.
    """
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file():
        with reading_tokenizer(f"{folder / 'tokenizer.json'} is no tokenizer"):
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif not (folder / "tokenizer.pkl").is_file():
        raise NotFound(f"no tokenizer in {folder}", hint="put nanochat's tokenizer.pkl or a tokenizer.json there")
    elif not allow_pickle:
        raise Unsupported(
            f"the tokenizer in {folder} is pickled",
            why="pickles are opened on request only",
            hint="`allow_pickle=True`, or put a tokenizer.json beside it",
        )
    else:
        pairs = _read_pickled_tokenizer(folder / "tokenizer.pkl")
        with reading_tokenizer(f"{folder / 'tokenizer.pkl'} is damaged"):
            tokenizer = _from_byte_pairs(*pairs)
    missing = [token for token in (BOS, END) if tokenizer.token_to_id(token) is None]
    if missing:
        raise Unreadable(f"the tokenizer in {folder} has no {' nor '.join(missing)}", why="nanochat's has")
    if tokenizer.post_processor is None:  # every document begins with <|bos|>
        bos = (BOS, tokenizer.token_to_id(BOS))
        tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    named = {"bos_token": BOS, "eos_token": END, "clean_up_tokenization_spaces": False}
    try:
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    except Exception as error:  # as above, of a tokenizer that parses and contradicts itself
        raise Unreadable(f"the tokenizer in {folder} cannot be used", why=str(error)) from error
    wrapped.chat_template = _CHAT_TEMPLATE
    return with_padding(wrapped)


class _PickledEncoding:
    """Stands for tiktoken's Encoding while a pickle is read: takes the object's state, does nothing with it."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) == ("tiktoken.core", "Encoding"):
            return _PickledEncoding
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def _read_pickled_tokenizer(path: Path) -> tuple[dict[bytes, int], str, dict[str, int]]:
    """Returns the byte pairs with their ranks, the splitting pattern and the special tokens of a pickled Encoding."""
    try:
        with path.open("rb") as file:
            encoding = _Unpickler(file).load()
    except pickle.UnpicklingError as error:
        raise Unreadable(
            f"{path} is no pickled tokenizer of tiktoken", why=f"{error}; nothing of it was run"
        ) from error
    except (EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError) as error:
        raise Unreadable(f"{path} is damaged", why=str(error)) from error
    state = encoding.state if isinstance(encoding, _PickledEncoding) else None
    if not isinstance(state, dict) or not {"pat_str", "mergeable_ranks", "special_tokens"} <= state.keys():
        raise Unreadable(f"{path} holds no byte pairs", why="only a tokenizer that nanochat trained has them")
    ranks, pattern, special = state["mergeable_ranks"], state["pat_str"], state["special_tokens"]
    if not (_numbers_by(bytes, ranks) and isinstance(pattern, str) and _numbers_by(str, special)):
        raise Unreadable(f"{path} is damaged", why="its byte pairs are no bytes with a rank each")
    return ranks, pattern, special


def _numbers_by(kind: type, value: Any) -> bool:
    """Whether it is a dictionary of whole numbers by keys of a kind."""
    return isinstance(value, dict) and all(type(key) is kind and type(of) is int for key, of in value.items())


def _from_byte_pairs(ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int]) -> "Tokenizer":
    """Returns the tokenizer that merges as tiktoken does.

    tiktoken merges the pair whose bytes together are the token of least rank, wherever that token can be cut in two;
    so every cut of a token into two tokens is a merge, in the order of the ranks.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = _letters_of_bytes()

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += [(text(a), text(b)) for a, b in sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))]
    vocabulary = {text(token): rank for token, rank in ranks.items()} | dict(special)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer


def _letters_of_bytes() -> list[str]:
    """GPT-2's alphabet: printable bytes of Latin-1 stand for themselves, the others for what follows U+0100."""
    printable = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]
