"""The command lines that the docs promise, run as they stand there on tiny models and local copies of the data sets."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from traceformer import TraceStore
from traceformer.cli import main

Capture = pytest.CaptureFixture[str]
PAGE = (Path(__file__).parents[1] / "docs/compatibility.md").read_text(encoding="utf-8")
LINES = re.findall(r"\| `(traceformer extract [^`]+)` \|", PAGE)
CAPTURES = re.findall(r"\| `(traceformer generate --model google/gemma[^`]+)` \|", PAGE)

# Tiny models of the same shape (layers, heads) as the ones that the lines name.
SHAPES = {
    "roberta-base": ("roberta", {"num_hidden_layers": 12, "num_attention_heads": 8, "max_position_embeddings": 514}),
    "gpt2": ("gpt2", {"n_layer": 12, "n_head": 8, "n_positions": 512}),
    "t5-small": ("t5", {"num_layers": 6, "num_heads": 8}),
}


@pytest.fixture
def workplace(tmp_path: Path, hub: Path, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models, targets and data sets that the lines name."""
    place = tmp_path / "work"
    (place / "data").mkdir(parents=True)
    (place / "data/targets_dummy.txt").write_text("one target\nanother one\n", encoding="utf-8")
    for name, (family, changes) in SHAPES.items():
        (place / name).symlink_to(tiny_folder(family, **changes), target_is_directory=True)
    monkeypatch.chdir(place)
    return place


def test_the_padded_store_has_its_lines() -> None:
    assert len(LINES) == 6


@pytest.mark.filterwarnings("ignore:dropping layers 11")  # T5 small has six: the guide says they are dropped
@pytest.mark.parametrize("line", LINES)
def test_a_documented_extraction_works_as_it_stands(
    line: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)[1:]
    assert main(words) == 0
    run = TraceStore(capsys.readouterr().out.strip())
    assert run.finished
    example = run.tokens.example_id[0]
    side = "dec" if run.arch == "dec" else "enc"
    n = run.tokens.n_tokens[0]
    layers = {"--layers-enc": "enc", "--layers-dec": "dec"}
    for flag, stack in layers.items():
        if flag in words:
            asked = [int(each) for each in words[words.index(flag) + 1].split(",")]
            n_layers = run.meta["dims"][stack]["n_layers"]
            stored = run.meta["layers_stored"]
            assert (stored if isinstance(stored, list) else stored[stack]) == [
                each for each in asked if each < n_layers
            ]
    assert run.attn(example, layer=0, head=0, side=side).shape == (n, n)
    assert run.qkv(example, "q", layer=0, head=0, side=side).shape == (n, run.d_head)
    if "hidden" in words:
        assert run.hidden(example, side=side).shape == (run.L + 1, n, run.meta["dims"][side]["d_model"])
    if "resid" in words:
        assert run.resid(example, "post_attn", layer=0, side=side).shape == (n, run.meta["dims"][side]["d_model"])
    if "--targets_file" in words:
        targets = run.tokens.dec_n_tokens[0]
        assert run.attn(example, layer=3, head=6, side="dec", kind="cross").shape == (targets, n)
    if "csqa" in words:
        assert run.tokens.answerKey[0] == "A"
        assert run.text(example).endswith("E: new york\nAnswer:")


def test_the_gemma_capture_has_its_lines() -> None:
    assert len(CAPTURES) == 3


@pytest.mark.parametrize("line", CAPTURES)
def test_a_documented_capture_records_the_gemma_captures_files(
    line: str, tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("google").mkdir()
    n_layers = 17 if "--layer-internals 16" in line else 2
    model = tiny_folder("gemma2", num_hidden_layers=n_layers, max_position_embeddings=512)
    Path("google/gemma-2-2b-it").symlink_to(model, target_is_directory=True)
    assert main([*shlex.split(line)[1:], "--max-tokens", "3", "--device", "cpu"]) == 0
    run = TraceStore(capsys.readouterr().out.strip())
    assert run.folder.parent == Path("experiments/mine")
    layout = "internals" if "--layer-internals" in line else "residual"
    assert main(["export", str(run.folder), "--format", "pt", "--layout", layout, "--output", "raw"]) == 0
    files = sorted(str(path.relative_to("raw")) for path in Path("raw").rglob("*.pt"))
    sizes = {"adversarial": 8, "baseline": 5, "dynamic": 8, "multi_trait": 10, "real_world": 10, "single_trait": 10}
    if layout == "internals":
        assert files == ["adhoc/1_L16.pt"]
    else:
        names = sizes if "--all-prompt-sets" in line else ["single_trait"]
        assert files == sorted(f"{name}/{i + 1}.pt" for name in names for i in range(sizes[name]))
        data = torch.load("raw/single_trait/10.pt", weights_only=True)
        assert list(data["response"]["activations"]) == ["0", "1"]
        assert len(data["response"]["attention"]["layer_1"]) == len(data["response"]["tokens"]) > 0
