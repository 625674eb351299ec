"""What tokens are called that a run names by id only."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from traceformer.errors import NotFound
from traceformer.models.tokenizer import vocabulary_in
from traceformer.models.weights import find_model_folder
from traceformer.store.run import Run
from traceformer.texts.shown import unnamed

if TYPE_CHECKING:
    from traceformer.models.loaded import LoadedModel

__all__ = ["token_names"]


def token_names(run: Run, model: "str | Path | LoadedModel | None" = None) -> Callable[[int], str]:
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
    return lambda token_id: names.get(token_id, unnamed(token_id))


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
