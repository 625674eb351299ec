"""Small runs with known numbers: a decoder's, a generation, an encoder-decoder's that is not finished; a terminal."""

from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from tests.formats.foreign import HEADS, LAYERS, PROMPT, RESPONSE, T, truth
from traceformer.cli import main
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.writer import RunWriter

META = {
    "model": "tiny",
    "dataset": "demo",
    "split": "validation",
    "dtype": "float16",
    "time": "2026-01-02 03:04:05",
}
DIMS = {
    "n_layers": 8,
    "n_heads": 4,
    "n_kv_heads": 4,
    "d_model": 8,
    "d_head": 2,
    "d_mlp": 32,
    "d_vocab": 99,
    "n_ctx": 64,
}
_WIDTH = 256  # of the built-in model
SENTENCES = (["The", "Ġcat", "Ġsat"], ["Hello", ",", "Ġ\nworld", "!"], ["one"])


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def causal_pattern(example: int, layer: int, head: int, length: int) -> np.ndarray:
    """Returns a pattern that differs between heads; every row sums to one."""
    scores = np.random.default_rng((example, layer, head)).normal(size=(length, length))
    weights = np.tril(np.exp(scores))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture
def decoder_run(tmp_path: Path) -> Path:
    """`traces/dec`: three examples, patterns of layers 2 and 5, heads 0, 1 and 3, and resid_post of layer 5."""
    pattern = ArraySpec(ArrayKey("dec", "self", "attn_pattern"), (2, 5), (0, 1, 3))
    resid = ArraySpec(ArrayKey("dec", None, "resid_post"), (5,), width=8)
    lengths = [len(tokens) for tokens in SENTENCES]
    layout = RunLayout.plan(arch="dec", arrays=[pattern, resid], n_examples=3, longest={"dec": max(lengths)})
    meta = {**META, "arch": "dec", "dims": {"dec": DIMS}}
    with RunWriter.create(tmp_path / "traces/dec", layout, meta, digest={}) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": lengths})
        for example, length in enumerate(lengths):
            squares = [
                [causal_pattern(example, layer, head, length) for head in pattern.heads] for layer in pattern.layers
            ]
            buffer.put(pattern, example, np.array(squares))
            buffer.rows(resid.key, example)[...] = np.arange(length)[:, None] * np.array([3, -4] + [0] * 6)
        writer.commit(0, buffer, token_table(SENTENCES))
        return writer.finish()


@pytest.fixture
def generated_run(tmp_path: Path) -> Path:
    """`traces/gen`: two responses with the patterns of foreign.py."""
    spec = ArraySpec(ArrayKey("dec", "self", "attn_pattern"), tuple(range(LAYERS)), tuple(range(HEADS)))
    layout = RunLayout.plan(arch="dec", arrays=[spec], n_examples=2, longest={"dec": T}, dtype="float32")
    meta = {**META, "arch": "dec", "dims": {"dec": DIMS}}
    with RunWriter.create(tmp_path / "traces/gen", layout, meta, digest={}) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": [T, T]})
        for example in range(2):
            buffer.put(spec, example, truth(example).attention)
        columns = {
            "example_id": ["trace_a", "trace_b"],
            "text": ["ab", "cd"],
            "input_ids": [PROMPT + RESPONSE] * 2,
            "tokens": [[str(i) for i in PROMPT + RESPONSE]] * 2,
            "n_prompt": [len(PROMPT)] * 2,
            "prompt": ["a", "c"],
            "response": ["b", "d"],
        }
        writer.commit(0, buffer, pa.table(columns))
        return writer.finish()


@pytest.fixture
def unfinished_run(tmp_path: Path) -> Path:
    """`traces/_tmp_encdec`: one of two shards; encoder, decoder and cross-attention patterns of one layer and head."""
    keys = [ArrayKey("enc", "self", "attn_pattern"), ArrayKey("dec", "self", "attn_pattern")]
    keys.append(ArrayKey("dec", "cross", "attn_pattern"))
    layout = RunLayout.plan(
        arch="encdec",
        arrays=[ArraySpec(key, (0,), (0,)) for key in keys],
        n_examples=2,
        longest={"enc": 3, "dec": 2},
        shard_examples=1,
    )
    meta = {**META, "arch": "encdec", "dims": {"enc": DIMS, "dec": DIMS}}
    with RunWriter.create(tmp_path / "traces/encdec", layout, meta, digest={}) as writer:
        buffer = writer.buffer()
        buffer.begin({"enc": [3], "dec": [2]})
        for spec in layout.arrays:
            buffer.put(spec, 0, np.array(0.5))
        writer.commit(0, buffer, token_table([["le", "chat", "dort"]], dec_tokens=[["<s>", "the"]]))
        return writer.finish()


def token_table(sentences: Sequence[Sequence[str]], **columns: Sequence[Sequence[str]]) -> pa.Table:
    return pa.table(
        {
            "example_id": [f"ex{number}" for number in range(len(sentences))],
            "text": [" ".join(tokens) for tokens in sentences],
            "tokens": [list(tokens) for tokens in sentences],
            **{"input_ids": [list(range(len(tokens))) for tokens in sentences], **as_lists(columns)},
        }
    )


def as_lists(columns: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, list[list[str]]]:
    return {name: [list(tokens) for tokens in column] for name, column in columns.items()}


# What is asked of every verb alike: one recorded run, and one line for each verb that works on it

COMMANDS = {
    "check": "check gpt2 --device cpu",
    "extract": "extract --model byte --dataset texts.txt --capture attn --device cpu --out_dir made --overwrite",
    "generate": "generate --model byte --prompt The --max-tokens 3 --device cpu --out_dir said --overwrite",
    "list": "list .",
    "inspect": "inspect run",
    "analyze": "analyze run",
    "heads": "heads run --output heads.csv",
    "circuits": "circuits byte",
    "cluster": "cluster heads.csv --k 2 --output clusters.csv",
    "compare": "compare run run",
    "paths": "paths run",
    "project": "project run --vector trait.npy --layer 1",
    "vectors": "vectors fit --positive several.txt --negative others.txt --model byte --device cpu --layer 1"
    " --method mean_diff --output found",
    "lens": "lens run --example 0",
    "fit-lens": "fit-lens --model byte --dataset many.txt --kind ridge --device cpu"
    " --output lens.safetensors --overwrite",
    "patch": "patch byte --clean abcab --corrupt abcxy --answer c --wrong d --device cpu",
    "ablate": "ablate byte texts.txt --layers 1 --device cpu",
    "edges": "edges byte --clean abcab --corrupt abcxy --answer c --wrong d --device cpu",
    "attribute": "attribute run --position argument",
    "probe": "probe run --label input_ids --layers 1 --output probes.safetensors --overwrite",
    "dose": "dose byte dynamic --direction trait.npy --layer 1 --scales 0 5 --max-tokens 2 --device cpu",
    "export": "export run --format safetensors --output files --overwrite",
    "import": "import files --out_dir back --overwrite",
    "verify": "verify run",
    "finish": "finish run",
    "upgrade": "upgrade run",
    "sync": "sync run copied",
    "train": "train --preset tiny --num_epochs 0.1 --batch-size 4 --evaluations 1 --device cpu --data words.txt"
    " --out_dir trained --overwrite",
}
"""A line for every verb that reports, each of which succeeds in the folder of `Terminal`, in this order or alone."""


class Typed(NamedTuple):
    code: int
    out: str
    err: str


class Terminal:
    """A folder with texts, a direction and a run of the built-in model; no line is run twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._typed: dict[str, Typed] = {}
        (folder / "texts.txt").write_text("The function returns.\nA name is an error.\n")
        (folder / "words.txt").write_text("a few short words again\n" * 300)
        (folder / "many.txt").write_text("".join(f"Line {i} of the text is about {i * i}.\n" for i in range(16)))
        np.save(folder / "trait.npy", np.random.default_rng(0).normal(size=_WIDTH).astype(np.float32))
        np.save(folder / "short.npy", np.ones(3, np.float32))
        for name, text in (("several", "The name of argument {} is a list."), ("others", "Error {} was not raised.")):
            (folder / f"{name}.txt").write_text("".join(text.format(i) + "\n" for i in range(6)))
        sites = "attn resid_post embed z mlp_out"
        record = f"extract --model byte --dataset several.txt --capture {sites} --device cpu --out_dir run"
        assert self.type(record).code == 0
        for verb in ("heads", "export"):  # what cluster and import read
            assert self.type(COMMANDS[verb]).code == 0

    def type(self, line: str) -> Typed:
        if line not in self._typed:
            with chdir(self.folder), redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
                code = main(line.split())
            self._typed[line] = Typed(code, out.getvalue(), err.getvalue())
        return self._typed[line]


@pytest.fixture(scope="session")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    return Terminal(tmp_path_factory.mktemp("terminal"))
