"""`traceformer heads`, of runs and of models while they run."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.plain_heads import causal, plain_metrics
from traceformer.analysis.conventions import CONVENTIONS
from traceformer.analysis.heads import METRICS
from traceformer.bytelm.tokenizer import ByteTokenizer
from traceformer.cli import main
from traceformer.models.tiny import tiny_model
from traceformer.store.run import TraceStore

EXACT = tuple(map(CONVENTIONS["exact"].column, METRICS))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same(one: Path, other: Path, tolerance: float = 1e-6) -> bool:
    """Whether two tables hold the same heads with the same numbers."""
    rows = list(zip(rows_of(one), rows_of(other), strict=True))
    assert rows
    for a, b in rows:
        assert a.keys() == b.keys()
        metrics = a.keys() & {*METRICS, *EXACT}
        assert len(metrics) == len(METRICS)
        for name in metrics:
            assert (a[name] == "") == (b[name] == "")
            if a[name]:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=tolerance, abs=tolerance), (a, b)
        assert [a[name] for name in ("layer", "head", "attention")] == [
            b[name] for name in ("layer", "head", "attention")
        ]
    return True


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", ""),
        ("gpt2", "--convention thesis --dtype float32"),
        ("mistral", "--window 3"),  # with a sliding window of 6 tokens
        ("bert", "--convention thesis"),
        ("t5", "--targets_file"),
    ],
)
def test_a_model_and_its_run_give_the_same_numbers(
    family: str,
    options: str,
    tiny_folder: Callable[..., Path],
    text_file: Path,
    target_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = f"--model {tiny_folder(family)} --dataset {text_file} --device cpu"
    targets = f"--targets_file {target_file}" if "--targets_file" in options else ""
    stored, _, rest = options.replace("--targets_file", "").partition("--dtype")
    dtype = f"--dtype{rest}" if rest else ""
    length = "" if family != "t5" else "--dec_max_len 1024"
    assert (
        main(f"extract {model} {targets} {dtype} {length} --max_seq_len auto --capture attn --out_dir run".split()) == 0
    )
    assert main(f"heads run {stored} --output stored.csv".split()) == 0
    assert main(f"heads {model} {targets} {dtype} {stored} --output live.csv".split()) == 0
    assert same(Path("stored.csv"), Path("live.csv"))
    shown = capsys.readouterr()
    assert "next: traceformer cluster live.csv --plot" in shown.err
    attention = {"gpt2": ["dec.self"], "mistral": ["dec.self"], "bert": ["enc.self"]}
    found = dict.fromkeys(row["attention"] for row in rows_of(Path("live.csv")))
    assert list(found) == attention.get(family, ["enc.self", "dec.self", "dec.cross"])


def test_the_table_begins_like_the_thesis_and_holds_every_head(
    decoder_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heads", "traces/dec", "--convention", "thesis"]) == 0
    lines = Path("head_metrics.csv").read_text().splitlines()
    assert lines[0].startswith("layer,head,entropy,sparsity,distance,")
    assert re.search(r",dec.self,thesis,8,traces/dec,tiny,3,8,(3 texts [0-9a-f]{12})?,0.0001$", lines[1])
    store = TraceStore(decoder_run)
    rows = rows_of(Path("head_metrics.csv"))
    assert [(row["layer"], row["head"]) for row in rows] == [(str(i), str(j)) for i in (2, 5) for j in (0, 1, 3)]
    for row in rows:
        each = [
            plain_metrics(store.attn(eid, int(row["layer"]), int(row["head"])), range(4), causal, "thesis")
            for eid in store.ids
        ]
        for name in ("entropy", "sparsity", "distance"):
            assert float(row[name]) == pytest.approx(np.mean([own[name] for own in each]), abs=1e-6)
        assert row["induction"] == row["duplicate_token"] == ""  # this run does not say its tokens' ids
    shown = capsys.readouterr().out
    assert shown.startswith("dec.self: 2 layers of 3 heads, 3 examples, 8 queries; thesis convention")
    assert "previous_token" in shown


def test_json_and_pictures_say_the_same(decoder_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "traces/dec", "--num_seqs", "2", "--json", "--plot", "--output", "out/metrics.csv"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["output"] == "out/metrics.csv"
    assert found["plot"] == ["out/metrics.png"]
    assert Path("out/metrics.png").read_bytes().startswith(b"\x89PNG")
    own = found["attention"]["dec.self"]
    assert (own["layers"], own["heads"], own["examples"]) == ([2, 5], [0, 1, 3], 2)
    assert tuple(own["metrics"]) == EXACT
    assert (found["source"], found["model"], found["convention"]) == ("traces/dec", "tiny", "exact")
    assert own["metrics"]["induction"] == [[None] * 3] * 2
    rows = rows_of(Path("out/metrics.csv"))
    assert [float(row["entropy"]) for row in rows] == [value for layer in own["metrics"]["entropy"] for value in layer]


def test_a_decoder_that_looks_ahead_is_measured_as_it_looks(
    unfinished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # All cells of that run are 0.5, above the diagonal too: each of the decoder's two tokens sees both.
    assert main(["heads", str(unfinished_run), "--json"]) == 0
    [[entropy]] = json.loads(capsys.readouterr().out)["attention"]["dec.self"]["metrics"]["entropy"]
    assert entropy == pytest.approx(np.log(2))


def test_windows_of_a_file_are_read_byte_by_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    model = tiny_model("llama", vocab_size=258)
    model.save_pretrained("byte-model")
    ByteTokenizer().save_pretrained("byte-model")
    data = np.random.default_rng(0).integers(0, 256, 2000).astype(np.uint8).tobytes()
    Path("data.bin").write_bytes(data)
    command = "heads --model_path byte-model --data_path data.bin --num_seqs 3 --dtype float32 --device cpu"
    assert main(f"{command} --convention thesis".split()) == 0
    rows = rows_of(Path("head_metrics.csv"))
    windows = [list(data[start : start + 64]) for start in (1800, 1864, 1928)]  # n_ctx is 64
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        patterns = model(torch.tensor(windows), output_attentions=True).attentions
    for row in rows[:2]:
        each = [
            plain_metrics(patterns[int(row["layer"])][i, int(row["head"])].numpy(), window, causal, "thesis")
            for i, window in enumerate(windows)
        ]
        for name in METRICS.keys() - {"effective_span"}:
            expected = np.nanmean([own[name] for own in each])
            assert float(row[name]) == pytest.approx(expected, rel=1e-4, abs=1e-5)  # float32 models differ by so much
    assert len(rows) == 3 * 4
    assert main(f"{command} --seq_length 65".split()) == 2
    assert main(f"{command} --split test".split()) == 2
    assert "reads 64 tokens" in capsys.readouterr().err


def test_a_model_alone_reads_what_it_was_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    model = "trained"
    tiny_model("llama", vocab_size=258).save_pretrained(model)
    ByteTokenizer().save_pretrained(model)
    Path("data.txt").write_text("".join(f"line {number} of the text\n" for number in range(400)))
    Path("trained/training.json").write_text(json.dumps({"settings": {"data": "data.txt", "split": "thesis"}}))
    assert main(f"heads --model_path {model} --output head_metrics.csv --device cpu".split()) == 0
    assert "reading data.txt validation: training.json names this data" in capsys.readouterr().err
    assert {row["source"] for row in rows_of(Path("head_metrics.csv"))} == {"data.txt validation"}
    assert main(f"heads --model_path {model} --data_path data.txt --output named.csv --device cpu".split()) == 0
    assert same(Path("head_metrics.csv"), Path("named.csv"))
    assert main(["cluster", "head_metrics.csv", "--k", "2"]) == 0


def test_a_model_alone_that_names_no_data_reads_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    model = "other"
    tiny_model("llama", vocab_size=258, max_position_embeddings=512).save_pretrained(model)
    ByteTokenizer().save_pretrained(model)
    command = f"heads --model_path {model} --num_seqs 2 --device cpu"
    assert main(command.split()) == 0
    assert "reading the demo: no training.json beside the model names its data" in capsys.readouterr().err
    Path("other/training.json").write_text('{"settings": {"data": "gone.txt", "split": "standard"}}')
    assert main(f"{command} --output again.csv".split()) == 0
    shown = capsys.readouterr().err
    assert "reading the demo: other/training.json names data that are not there: gone.txt" in shown
    assert same(Path("head_metrics.csv"), Path("again.csv"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("heads", 2, "neither a run nor a model"),
        ("heads --dataset demo", 2, "neither a run nor a model"),
        ("heads latest --model gpt2", 2, "a run and --model"),
        ("heads latest --dataset demo", 2, "a run and --dataset"),
        ("heads --model gpt2 --dataset demo --data_path x", 2, "either --dataset or --data_path"),
        ("heads nowhere", 3, "no run 'nowhere'"),
        ("heads --model ./nowhere --dataset demo", 3, "no model folder"),
        ("heads --model_path dense.pt --data_path dense.pt", 3, "dense.pt is a file"),
        ("heads latest --convention paper", 2, "one of exact, thesis, nanochat"),
        ("heads latest --convention valid", 2, "one of exact, thesis, nanochat"),
        ("heads latest --window -1", 2, "whole number from 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dense.pt").write_bytes(b"PK")  # what the byte-transformer thesis's training saves: weights without a config
    assert main(arguments.split()) == code
    assert message in capsys.readouterr().err
    assert not Path("head_metrics.csv").exists()


def test_the_blank_cells_of_cross_attention_are_those_without_a_meaning(
    tiny_folder: Callable[..., Path], text_file: Path, target_file: Path
) -> None:
    model = tiny_folder("t5", num_layers=1)
    command = f"heads --model {model} --dataset {text_file} --targets_file {target_file} --plot --device cpu"
    assert main(command.split()) == 0
    for row in rows_of(Path("head_metrics.csv")):
        filled = {name for name in EXACT if row[name]}
        across = {"entropy", "sparsity_0.0001", "max_weight", "first_token"}
        assert filled == (across if row["attention"] == "dec.cross" else set(EXACT))
    names = sorted(path.name for path in Path().glob("*.png"))
    assert names == [f"head_metrics-{attention}.png" for attention in ("dec.cross", "dec.self", "enc.self")]


def test_a_gpu_gives_what_the_processor_gives(
    tiny_folder: Callable[..., Path], text_file: Path, skip_for: Callable[[str], None]
) -> None:
    import torch

    if not torch.cuda.is_available():
        skip_for("cuda")
    command = f"heads --model {tiny_folder('gpt2')} --dataset {text_file} --dtype float32"
    for device in ("cuda", "cpu"):
        assert main(f"{command} --device {device} --output {device}.csv".split()) == 0
    assert same(Path("cuda.csv"), Path("cpu.csv"), tolerance=1e-3)  # kernels of a GPU round differently


def test_a_card_says_what_is_missing_in_flags(capsys: pytest.CaptureFixture[str]) -> None:
    command = "extract --model byte --dataset demo --limit 1 --capture attn --layers 0 --out_dir run"
    assert main(command.split()) == 0
    assert main(["heads", "run", "--roles"]) == 0
    assert "massive: the run holds no resid_post: record it with --capture attn resid_post\n" in capsys.readouterr().err
