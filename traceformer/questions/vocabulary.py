"""What tokens are called that a run names by id only."""

from collections.abc import Callable

from traceformer.errors import NotFound
from traceformer.models.weights import find_model_folder
from traceformer.store.run import TraceStore
from traceformer.texts.shown import unnamed

__all__ = ["token_names"]


def token_names(store: TraceStore, model: str | None = None) -> Callable[[int], str]:
    """Returns what gives a token id its text.

    Tokens that occur in the run are known; others are looked up in the model's tokenizer.json, in its folder (or
    `model`, where it lies now) or the Hub's cache, if that agrees with the run; the rest are written #id.
    """
    names: dict[int, str] = {}
    table = store.tokens
    for ids, tokens in (("input_ids", "tokens"), ("dec_input_ids", "dec_tokens")):
        if ids in table and tokens in table:
            for own_ids, own_tokens in zip(table[ids], table[tokens], strict=True):
                names.update(zip(own_ids, own_tokens, strict=True))
    vocabulary = _vocabulary(model or str(store.meta.get("model")), store.meta.get("revision"))
    if all(vocabulary.get(token_id, token) == token for token_id, token in names.items()):
        names = vocabulary | names
    return lambda token_id: names.get(token_id, unnamed(token_id))


def _vocabulary(model: str, revision: str | None) -> dict[int, str]:
    from tokenizers import Tokenizer

    try:
        path = find_model_folder(model, revision) / "tokenizer.json"
    except NotFound:
        return {}
    vocabulary = Tokenizer.from_file(str(path)).get_vocab() if path.is_file() else {}
    return {token_id: token for token, token_id in vocabulary.items()}
