"""Which texts a run reads: named data sets, Hugging Face data sets, files, folders, and the built-in demo.

`load_texts("demo", limit=8).examples[0].text`. Importing this loads neither datasets nor pyarrow.
"""

from traceformer.texts.examples import Example, TextSource
from traceformer.texts.load import load_targets, load_texts
from traceformer.texts.named import NAMED_SETS

__all__ = ["NAMED_SETS", "Example", "TextSource", "load_targets", "load_texts"]
