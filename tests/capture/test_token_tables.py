"""The columns of a user's data set in the token table of a run."""

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.capture.asked import extracted
from tests.capture.test_extract import request
from traceformer import TraceStore, record
from traceformer.progress import Progress


def test_a_data_sets_columns_never_take_the_place_of_ours(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    columns = ("input_ids", "data_input_ids", "n_prompt", "dec_tokens", "slot", "tokens", "response")
    row = {"text": "The end.", "id": "x" * 300, **{name: f"own {name}" for name in columns}}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    folder = extracted(request(tiny_folder("gpt2"), tmp_path / "a.jsonl", tmp_path / "run"))
    run = TraceStore(folder)
    found = run.tokens.iloc[0]
    assert found.tokens.tolist() == ["the", "en", "d", "."]
    assert {name: value for name, value in found.items() if str(value).startswith("own ")} == {
        "data_data_input_ids": "own input_ids",
        "data_input_ids": "own data_input_ids",
        "data_n_prompt": "own n_prompt",
        "data_dec_tokens": "own dec_tokens",
        "data_slot": "own slot",
        "data_tokens": "own tokens",
        "response": "own response",
    }
    assert run.ids == ("x" * 300,)
    assert set(run.encodings(0)) == {"input_ids", "attention_mask", "offset_mapping", "tokens"}


def test_columns_of_nulls_survive_shards_of_other_types_and_a_resumed_run(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """`[null, null]` in one shard, names in the next, as in a treebank without features."""
    rows = [
        {"text": "one", "tags": [None, None], "more": {"a": None, "b": [None, None]}, "price": Decimal("1.25")},
        {"text": "two", "tags": None, "more": None, "price": None},
        {"text": "three", "tags": ["x"], "more": {"a": 1, "b": [None, "y"]}, "price": Decimal("12345678.10")},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    asked = request(tiny_folder("gpt2"), tmp_path / "a.parquet", tmp_path / "run", shard_examples=1)

    def stop(progress: Progress) -> None:
        if progress.examples_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extracted(asked, stop)
    tokens = pq.read_table(extracted(replace(asked, resume=True)) / "tokens.parquet")
    assert [{name: row[name] for name in rows[0]} for row in tokens.to_pylist()] == rows
    in_memory = record(str(tiny_folder("gpt2")), tmp_path / "a.parquet", "resid", shard_examples=1).tokens
    assert in_memory.price.tolist() == [row["price"] for row in rows]


def test_nanoseconds_are_kept(tmp_path: Path) -> None:
    times = pa.array([None, 1, 10**18], pa.timestamp("ns"))
    pq.write_table(pa.table({"text": ["one", "two", "three"], "time": times}), tmp_path / "a.parquet")
    found = record("byte", tmp_path / "a.parquet", "embed").tokens.time
    assert [pd.Timestamp(json.loads(time)).value for time in found if isinstance(time, str)] == [1, 10**18]
