"""Copies of the named data sets as they lie on the Hub: same folders, same configuration in README, same columns."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

EMOTIONS = [
    "admiration",
    "amusement",
    "anger",
    "annoyance",
    "approval",
    "caring",
    "confusion",
    "curiosity",
    "desire",
    "disappointment",
    "disapproval",
    "disgust",
    "embarrassment",
    "excitement",
    "fear",
    "gratitude",
    "grief",
    "joy",
    "love",
    "nervousness",
    "optimism",
    "pride",
    "realization",
    "relief",
    "remorse",
    "sadness",
    "surprise",
    "neutral",
]

UD_TOKEN = pa.list_(pa.struct([(name, pa.string()) for name in ("id", "form", "feats", "misc")]))
UD_EMPTY_NODE = pa.list_(
    pa.struct(
        [(name, pa.string()) for name in ("id", "form", "lemma", "upos", "xpos", "feats")]
        + [("head", pa.uint16())]
        + [(name, pa.string()) for name in ("deprel", "deps", "misc")]
    )
)
UD_SCHEMA = pa.schema(
    [("sent_id", pa.string()), ("text", pa.string())]
    + [(name, pa.list_(pa.string())) for name in ("comments", "tokens", "lemmas", "upos", "xpos", "feats")]
    + [("head", pa.list_(pa.uint16()))]
    + [(name, pa.list_(pa.string())) for name in ("deprel", "deps", "misc")]
    + [("mwt", UD_TOKEN), ("empty_nodes", UD_EMPTY_NODE)]
)

UD_ROWS: list[dict[str, Any]] = [
    {
        "sent_id": "weblog-1",
        "text": "I don't know.",
        "comments": ["newdoc id = weblog", "__SENT_ID__", "__TEXT__"],
        "tokens": ["I", "do", "n't", "know", "."],
        "lemmas": ["I", "do", "not", "know", "."],
        "upos": ["PRON", "AUX", "PART", "VERB", "PUNCT"],
        "xpos": ["PRP", "VBP", "RB", "VB", "."],
        "feats": ["Case=Nom|Number=Sing", "Mood=Ind", None, "VerbForm=Inf", None],
        "head": [4, 4, 4, 0, 4],
        "deprel": ["nsubj", "aux", "advmod", "root", "punct"],
        "deps": ["4:nsubj", "4:aux", "4:advmod", "0:root", "4:punct"],
        "misc": [None, None, None, "SpaceAfter=No", None],
        "mwt": [{"id": "2-3", "form": "don't", "feats": None, "misc": None}],
        "empty_nodes": [],
    },
    {
        "sent_id": "weblog-2",
        "text": "(Yes!)",
        "comments": ["__SENT_ID__", "__TEXT__"],
        "tokens": ["(", "Yes", "!", ")"],
        "lemmas": ["(", "yes", "!", ")"],
        "upos": ["PUNCT", "INTJ", "PUNCT", "PUNCT"],
        "xpos": ["-LRB-", "UH", ".", "-RRB-"],
        "feats": [None, None, None, None],
        "head": [2, 0, 2, 2],
        "deprel": ["punct", "root", "punct", "punct"],
        "deps": [None, None, None, None],
        "misc": ["SpaceAfter=No", "Gloss==x|SpaceAfter=No", "SpaceAfter=No", "SpaceAfter=No"],
        "mwt": [],
        "empty_nodes": [
            {"id": "2.1", "form": "agree", "lemma": "agree", "upos": "VERB", "xpos": "VB", "feats": None, "head": None}
            | {"deprel": "_", "deps": "0:root", "misc": "CopyOf=2"}
        ],
    },
]

CSQA_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "question", "question_concept")]
    + [("choices", pa.struct([("label", pa.list_(pa.string())), ("text", pa.list_(pa.string()))]))]
    + [("answerKey", pa.string())]
)
CSQA_ROW = {
    "id": "1afa02df02c908a558b4036e80242fac",
    "question": "Where would you put a revolving door that also keeps thieves out?",
    "question_concept": "revolving door",
    "choices": {"label": list("ABCDE"), "text": ["bank", "library", "department store", "mall", "new york"]},
    "answerKey": "A",
}


def write_repository(folder: Path, readme: str, files: dict[str, tuple[list[dict[str, Any]], pa.Schema]]) -> None:
    """Writes a data set's repository: the front matter of its README, and its Parquet files."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{readme}\n---\n# Data set card\n", encoding="utf-8")
    for name, (rows, schema) in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives `datasets` a cache of its own, and no progress bars."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: None) -> Path:
    """A folder that stands in for the Hub, with all four named sets in it."""
    hub = tmp_path / "hub"
    monkeypatch.setenv("TRACEFORMER_DATASETS", str(hub))
    write_repository(
        hub / "universal-dependencies/universal_dependencies",
        "configs:\n"
        "- config_name: en_ewt\n  data_files:\n"
        "  - split: train\n    path: parquet/en_ewt/train.parquet\n"
        "  - split: dev\n    path: parquet/en_ewt/dev.parquet\n"
        "- config_name: fr_gsd\n  data_files:\n"
        "  - split: train\n    path: parquet/fr_gsd/train.parquet",
        {
            "parquet/en_ewt/train.parquet": (UD_ROWS[1:], UD_SCHEMA),
            "parquet/en_ewt/dev.parquet": (UD_ROWS, UD_SCHEMA),
            "parquet/fr_gsd/train.parquet": (UD_ROWS, UD_SCHEMA),
        },
    )
    classes = "\n".join(f"            '{number}': {name}" for number, name in enumerate(EMOTIONS))
    emotion_schema = pa.schema([("text", pa.string()), ("labels", pa.list_(pa.int64())), ("id", pa.string())])
    emotion_rows = [
        {"text": "My favourite food is anything I didn't have to cook myself.", "labels": [27], "id": "eebbqej"},
        {"text": "Thank you, I love it!", "labels": [15, 18], "id": "ed00q6i"},
    ]
    write_repository(
        hub / "google-research-datasets/go_emotions",
        "dataset_info:\n- config_name: simplified\n  features:\n"
        "  - name: text\n    dtype: string\n"
        "  - name: labels\n    sequence:\n      class_label:\n          names:\n" + classes + "\n"
        "  - name: id\n    dtype: string\n"
        "configs:\n- config_name: simplified\n  data_files:\n"
        "  - split: validation\n    path: simplified/validation-*\n  default: true",
        {"simplified/validation-00000-of-00001.parquet": (emotion_rows, emotion_schema)},
    )
    write_repository(
        hub / "tau/commonsense_qa",
        "dataset_info:\n  features:\n"
        "  - name: id\n    dtype: string\n  - name: question\n    dtype: string\n"
        "  - name: question_concept\n    dtype: string\n"
        "  - name: choices\n    sequence:\n    - name: label\n      dtype: string\n"
        "    - name: text\n      dtype: string\n"
        "  - name: answerKey\n    dtype: string\n"
        "configs:\n- config_name: default\n  data_files:\n"
        "  - split: validation\n    path: data/validation-*\n  - split: test\n    path: data/test-*",
        {
            "data/validation-00000-of-00001.parquet": ([CSQA_ROW], CSQA_SCHEMA),
            "data/test-00000-of-00001.parquet": ([CSQA_ROW | {"answerKey": ""}], CSQA_SCHEMA),
        },
    )
    lines = ["", " = Robert Boulter = \n", "", " Robert Boulter is an English film actor . \n"]
    write_repository(
        hub / "Salesforce/wikitext",
        "configs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n"
        "  - split: validation\n    path: wikitext-2-raw-v1/validation-*",
        {
            "wikitext-2-raw-v1/validation-00000-of-00001.parquet": (
                [{"text": line} for line in lines],
                pa.schema([("text", pa.string())]),
            )
        },
    )
    return hub
