"""`traceformer analyze` as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.cli.conftest import DIMS, META, SENTENCES, causal_pattern, token_table
from traceformer.cli import main
from traceformer.sites import ArrayKey, ArraySpec
from traceformer.store.layout import RunLayout
from traceformer.store.writer import RunWriter

Capture = pytest.CaptureFixture[str]
IDS = ([0, 1, 2], [3, 4, 5, 6], [7])
D_VOCAB = 9


def run(capsys: Capture, arguments: str) -> str:
    """Returns what a command that must succeed prints on stdout."""
    code = main(arguments.split())
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def logits(example: int) -> np.ndarray:
    return np.random.default_rng(example).normal(size=(len(IDS[example]), D_VOCAB)).astype(np.float32)


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum(axis=-1, keepdims=True)


@pytest.fixture
def logits_run(tmp_path: Path) -> Path:
    """`traces/lm`: three examples' logits over a vocabulary of nine."""
    spec = ArraySpec(ArrayKey("dec", None, "logits"), width=D_VOCAB)
    layout = RunLayout.plan(arch="dec", arrays=[spec], n_examples=3, longest={"dec": 4}, dtype="float32")
    meta = {**META, "arch": "dec", "dims": {"dec": DIMS}}
    with RunWriter.create(tmp_path / "traces/lm", layout, meta, digest={}) as writer:
        buffer = writer.buffer()
        buffer.begin({"dec": [len(ids) for ids in IDS]})
        for example in range(3):
            buffer.rows(spec.key, example)[...] = logits(example)
        writer.commit(
            0,
            buffer,
            token_table(SENTENCES).drop_columns("input_ids").append_column("input_ids", pa.array(map(list, IDS))),
        )
        return writer.finish()


def test_a_table_has_a_line_per_layer_or_per_head(capsys: Capture, decoder_run: Path) -> None:
    told = run(capsys, "analyze latest").splitlines()
    assert told[0] == "traces/dec: 3 examples, 8 dec tokens; exact convention, entropy in nats"
    assert told[2].startswith("dec.self.attn_pattern  8 queries; means over 3 heads")
    assert [line.split()[0] for line in told[3:6]] == ["layer", "L2", "L5"]
    assert told[8].split()[:2] == ["dec.resid_post", "L5"]
    heads = run(capsys, "analyze latest --layer 5").splitlines()
    assert [line.split()[0] for line in heads[3:7]] == ["head", "L5H0", "L5H1", "L5H3"]
    # An example's first query looks at itself alone, so the largest weight of every head is 1.
    assert [line.split()[2] for line in heads[4:7]] == ["1", "1", "1"]


def test_json_has_the_numbers_of_every_head(capsys: Capture, decoder_run: Path) -> None:
    told = json.loads(run(capsys, "analyze dec --json --convention nanochat"))
    [patterns] = told["attention"]
    assert (told["convention"], told["examples"], patterns["heads"]) == ("nanochat", 3, [0, 1, 3])
    rows = [
        row.astype(np.float64)
        for example, tokens in enumerate(SENTENCES)
        for row in causal_pattern(example, 2, 3, len(tokens))
    ]
    entropy = np.mean([-(row * np.log(row + 1e-8)).sum() for row in rows])
    assert patterns["layers"][0]["layer"] == 2
    assert patterns["layers"][0]["entropy"][2] == pytest.approx(entropy, rel=1e-5)
    [residual] = told["activations"]
    values = np.concatenate([np.outer(np.arange(len(tokens)), [3, -4, *[0] * 6]) for tokens in SENTENCES])
    assert residual["layers"][0]["std"] == pytest.approx(values.std(ddof=1))
    assert residual["layers"][0]["sparsity_1e-06"] == np.mean(values == 0)
    sparsity = np.mean(np.concatenate([(row < 0.01).ravel() for row in rows]))
    assert patterns["layers"][0]["sparsity_0.01"][2] == pytest.approx(sparsity)


def test_an_example_shows_what_was_expected_at_each_position(capsys: Capture, logits_run: Path) -> None:
    lines = run(capsys, "analyze lm --example 1 --top 2").splitlines()
    header = lines.index("dec.logits  example ex1") + 1
    assert lines[header].split() == ["position", "token", "entropy", "came", "probability", "rank", "most", "likely"]
    p = softmax(logits(1))
    names = dict(enumerate(("The", "·cat", "·sat", "Hello", ",", "Ġ↵world", "!", "one", "#8")))
    first = lines[header + 1].split()
    best = np.argsort(-p[0])
    assert first[:2] == ["0", "Hello"]
    assert first[3] == names[4]
    assert float(first[4]) == pytest.approx(p[0, 4], rel=5e-3)
    assert first[5] == str(1 + int((p[0] > p[0, 4]).sum()))
    assert first[6:10:2] == [names[int(best[0])], names[int(best[1])]]
    told = json.loads(run(capsys, "analyze lm --example 1 --top 2 --json"))
    [positions] = told["positions"]
    assert positions["tokens"] == list(SENTENCES[1])
    assert positions["targets"] == [4, 5, 6, None]
    assert positions["target_rank"][-1] is positions["target_probability"][-1] is None


def test_parquet_has_a_row_per_head_per_layer_and_per_position(
    capsys: Capture, decoder_run: Path, logits_run: Path
) -> None:
    run(capsys, "analyze dec --parquet tables/dec.parquet")
    rows = pq.read_table("tables/dec.parquet").to_pandas()
    heads = rows[rows.array == "dec.self.attn_pattern"]
    assert list(zip(heads.layer, heads["head"], strict=True)) == [(la, h) for la in (2, 5) for h in (0, 1, 3)]
    assert (heads["count"] == 8).all()
    run(capsys, "analyze lm --parquet lm.parquet")
    rows = pq.read_table("lm.parquet").to_pandas()
    positions = rows[rows.position.notna()]
    assert len(positions) == 8
    own = positions[positions.example_id == "ex0"]
    expected = [softmax(logits(0))[0, 1], softmax(logits(0))[1, 2]]
    assert own.target_probability.tolist()[:2] == pytest.approx(expected)
    assert own.target_id.tolist()[:2] == [1, 2]
    assert [len(each) for each in positions.top_ids] == [5] * 8
    assert not list(Path().glob("**/*.part"))


def test_a_picture_shows_the_entropy_of_every_head(capsys: Capture, decoder_run: Path) -> None:
    assert main(["analyze", "dec", "--png", "maps/entropy.png"]) == 0
    shown = capsys.readouterr().err
    assert shown.startswith("wrote maps/entropy.png; next: traceformer inspect traces/dec --site dec.self.attn_pattern")
    with Image.open("maps/entropy.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10


def test_an_unfinished_run_is_analyzed_as_far_as_it_goes(capsys: Capture, unfinished_run: Path) -> None:
    told = run(capsys, f"analyze {unfinished_run}")
    assert told.startswith(f"{unfinished_run}, unfinished: example ex0, 2 dec tokens")
    assert "dec.cross.attn_pattern  2 queries" in told


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--example ex9", 3, "error: no example 'ex9'"),
        ("--layer 3", 2, "why:   this run holds layers 2, 5"),
        ("--convention valid", 2, "exact, thesis, nanochat"),
        ("--png x.txt", 2, "no picture format 'txt'"),
        ("--top 0", 2, "a whole number from 1"),
    ],
)
def test_what_cannot_be_analyzed_is_refused(
    capsys: Capture, decoder_run: Path, arguments: str, code: int, message: str
) -> None:
    assert main(["analyze", "dec", *arguments.split()]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err


@pytest.mark.filterwarnings("always:the thesis convention says nothing")
def test_the_thesis_says_nothing_about_activations_and_logits(
    capsys: Capture, decoder_run: Path, logits_run: Path
) -> None:
    assert main(["analyze", "dec", "--convention", "thesis", "--json"]) == 0
    shown = capsys.readouterr()
    assert "says nothing about activations and logits: dec.resid_post left out" in shown.err
    told = json.loads(shown.out)
    assert (told["activations"], told["left_out"]) == ([], ["dec.resid_post"])
    each = [causal_pattern(example, 2, 3, len(tokens)).astype(np.float64) for example, tokens in enumerate(SENTENCES)]
    rows = [own / (own.sum(axis=1, keepdims=True) + 1e-9) for own in each]
    layer = told["attention"][0]["layers"][0]
    entropy = np.mean([-(own * np.log(own + 1e-9)).sum(axis=1).mean() for own in rows])
    assert layer["entropy"][2] == pytest.approx(entropy, rel=1e-5)
    assert layer["sparsity"][2] == pytest.approx(np.mean([(own < 1e-4).mean() for own in rows]))
    assert main(["analyze", "lm", "--convention", "thesis"]) == 4
    assert "this run holds no attention patterns" in capsys.readouterr().err


def test_a_picture_needs_patterns(capsys: Capture, logits_run: Path) -> None:
    assert main(["analyze", "lm", "--png", "x.png"]) == 3
    assert "no attention patterns" in capsys.readouterr().err
