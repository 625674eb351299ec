"""What a byte-level model was measured on while it was trained: `training.json` beside its weights names it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from traceformer.errors import NotFound
from traceformer.plain_json import parse_json

if TYPE_CHECKING:
    from traceformer.bytelm.corpus import Corpus, Split

__all__ = ["TrainingTexts", "training_texts"]

_FILE = "training.json"


@dataclass(frozen=True, slots=True)
class TrainingTexts:
    """The validation text of a training's data, read in consecutive windows."""

    corpus: "Corpus"

    def __str__(self) -> str:
        return f"{self.corpus.name} validation"


def training_texts(folder: Path) -> TrainingTexts | None:
    """Returns what `traceformer train` measured the model in this folder on; None where no training.json names data.

    Raises:
        NotFound, Unreadable: the data that it names are not there any more, or cannot be read.
    """
    from traceformer.bytelm.corpus import SPLITS, open_corpus

    path = folder / _FILE
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))["settings"]
        data, split = str(settings["data"]), str(settings["split"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known: Split | None = next((name for name in SPLITS if name == split), None)
    if known is None:
        return None
    try:
        return TrainingTexts(open_corpus(data, split=known))
    except NotFound as error:
        raise NotFound(f"{path} names data that are not there: {data}", hint="name the texts to read") from error
