"""What `traceformer generate` hands on, what it says while it works, and what it leaves."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from traceformer import TraceStore
from traceformer.capture.generation import generate as generation
from traceformer.capture.generation.sampling import Sampling
from traceformer.cli import main
from traceformer.cli.choices import Loading
from traceformer.cli.generate import PromptChoice, SamplingChoice
from traceformer.progress import OnProgress, Progress
from traceformer.sites import Selection
from traceformer.store.place import Place, Storage

Capture = pytest.CaptureFixture[str]
NOTHING_CHOSEN = {"enc": None, "dec": None}


@dataclass(frozen=True)
class Asked:
    """What a command line means: the values that reach the generation."""

    model: tuple[str, Loading]
    prompts: PromptChoice
    selection: Selection
    place: Place
    sampling: Sampling
    batch_size: int
    replay: bool
    capture_steps: bool


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """All that reaches the generation, which then pretends to have recorded two responses."""
    seen: list[Asked] = []

    def pretend(
        model: Any, prompts: Any, selection: Selection, place: Place, *, progress: OnProgress, **how: Any
    ) -> Any:
        del how["on_text"], how["on_response"]
        seen.append(Asked(model, prompts, selection, place, **how))
        progress(Progress(2, 2, 30, 4000, 1.5, "finishing"))
        return SimpleNamespace(folder=place.folder or Path("traces/made"))

    # No model is loaded and no prompt read: the flags themselves stand for them.
    monkeypatch.setattr(Loading, "load", lambda self, name, with_head: (name, self))
    monkeypatch.setattr(PromptChoice, "read", lambda self: self)
    sampling = SamplingChoice.sampling
    monkeypatch.setattr(SamplingChoice, "sampling", lambda self, model=None: sampling(self))
    monkeypatch.setattr(generation, "answer", pretend)
    return seen


def test_the_defaults_are_the_nanochat_engines(asked: list[Asked]) -> None:
    assert main(["generate", "--model", "gpt2", "--prompt", "-x"]) == 0
    [own] = asked
    sites = ("attn", "token_embed", "norms", "attn_out", "mlp_out", "logits")
    assert own == Asked(
        model=("gpt2", Loading()),
        prompts=PromptChoice(prompt="-x"),
        selection=Selection(sites, NOTHING_CHOSEN, NOTHING_CHOSEN),
        place=Place(parent=Path("traces"), command_line=own.place.command_line),
        sampling=Sampling(max_tokens=50, temperature=0.6, top_k=50, top_p=None, seed=42),
        batch_size=8,
        replay=False,
        capture_steps=False,
    )


@pytest.mark.parametrize("flags", ["--prompt-set dynamic", "--all-prompt-sets"])
def test_of_prompt_sets_what_the_gemma_capture_keeps_is_recorded(flags: str, asked: list[Asked]) -> None:
    assert main(["generate", "--model", "gpt2", *flags.split()]) == 0
    assert set(asked[0].selection.sites) >= {"resid_pre", "resid_mid", "resid_post", "attn_pattern"}
    assert not {"logits", "attn_norm"} & set(asked[0].selection.sites)
    assert main(["generate", "--model", "gpt2", *flags.split(), "--sites", "logits"]) == 0
    assert asked[1].selection.sites == ("logits",)


@pytest.mark.parametrize(
    ("numbers", "layers"), [("16", (16,)), ("0 2", (0, 2)), ("3 --layer-internals 5", (3, 5)), ("all", None)]
)
def test_layer_internals_are_the_group_of_these_layers(
    numbers: str, layers: tuple[int, ...] | None, asked: list[Asked]
) -> None:
    assert main(["generate", "--model", "gpt2", "--prompt", "x", "--layer-internals", *numbers.split()]) == 0
    assert asked[0].selection == Selection(("internals",), {"enc": layers, "dec": layers}, NOTHING_CHOSEN)


FLAGS = (
    "--model m --prompts p.txt --category c --chat --revision r --allow_pickle --max_tokens 7 --temperature 0 "
    "--top_k 3 --top_p 0.9 --seed 1 --stop a b --num_return_sequences 2 --num_beams 4 --sites attn logits "
    "--layers 0,2-3 --heads 1 --capture_steps --replay --experiment e --dtype float32 --resume --overwrite "
    "--batch_size 5 --device cpu --model_dtype bfloat16 --rows_codec q8"
)


@pytest.mark.parametrize(
    "flags",
    [FLAGS, FLAGS.replace("_", "-"), FLAGS.replace("--sites", "--capture")],
    ids=["underscores", "hyphens", "capture"],
)
def test_every_flag_has_its_meaning_in_every_spelling(flags: str, asked: list[Asked]) -> None:
    assert main(["generate", *flags.split()]) == 0
    [own] = asked
    layers, heads = {"enc": (0, 2, 3), "dec": (0, 2, 3)}, {"enc": (1,), "dec": (1,)}
    assert own == Asked(
        model=("m", Loading(revision="r", allow_pickle=True, device="cpu", model_dtype="bfloat16")),
        prompts=PromptChoice(prompts=Path("p.txt"), category="c", chat=True),
        selection=Selection(("attn", "logits"), layers, heads),
        place=Place(
            parent=Path("e"),
            resume=True,
            overwrite=True,
            storage=Storage("float32", rows_codec="q8"),
            command_line=own.place.command_line,
        ),
        sampling=Sampling(7, 0.0, 3, 0.9, 2, 4, ("a", "b"), seed=1),
        batch_size=5,
        replay=True,
        capture_steps=True,
    )


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ("--prompt x", 2, "no model"),
        ("--model m --source sft --prompt x", 2, "both --model and --source"),
        ("--model m --prompt x --experiment e --out-dir o", 2, "--out-dir e/o"),
        ("--model m --step 3 --prompt x", 2, "--model-tag and --step belong to --source"),
        ("--model m", 2, "no prompt"),
        ("--model m --prompt x --all-prompt-sets", 2, "prompts are named in several ways"),
        ("--model m --prompts none.txt", 3, "no prompts file none.txt"),
        ("--model m --prompt-set none", 3, "no prompt set 'none'"),
        ("--model m --prompt x --temperature -1", 2, "--temperature -1"),
        ("--model m --prompt x --sites atn", 2, "no site 'atn'"),
        ("--model m --prompt x --rows-codec q4", 2, "--rows-codec"),
        ("--model m --prompt x --max-tokens 0", 2, "--max-tokens cannot be '0'"),
    ],
)
def test_what_cannot_be_meant_is_said_before_a_model_is_loaded(
    flags: str, code: int, message: str, capsys: Capture
) -> None:
    assert main(["generate", *flags.split()]) == code
    assert message in capsys.readouterr().err
    assert not Path("traces").exists()


@pytest.mark.usefixtures("asked")
def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(*_: Any, **__: Any) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "answer", interrupted)
    assert main(["generate", "--model", "m", "--prompt", "x"]) == 130
    assert "what was finished is kept" in capsys.readouterr().err


def test_a_lone_prompt_streams_and_leaves_a_run_to_look_at(tiny_folder: Callable[..., Path], capsys: Capture) -> None:
    model = str(tiny_folder("gpt2"))
    capsys.readouterr()  # what transformers says when it saves a model
    flags = "--max-tokens 6 --device cpu --experiment exp --category demo"
    assert main(["generate", "--model", model, "--prompt", "Why not?", *flags.split()]) == 0
    told = capsys.readouterr()
    run = TraceStore(told.out.strip())
    row = run.tokens.iloc[0]
    assert (row.category, row.n_tokens - row.n_prompt) == ("demo", 6)
    _, streamed, last = told.err.strip().split("\n")
    assert streamed.strip() == row.response.strip()
    assert last.startswith("1 response, 6 tokens, ")
    assert last.endswith(f"; next: traceformer analyze {run.folder}")

    assert main(["inspect", "exp", "--example", "0"]) == 0
    shown = capsys.readouterr().out.split("\n")
    assert [line.split()[0] for line in shown if "the response begins" in line] == [str(row.n_prompt)]
    assert main(["inspect", "exp", "--example", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_prompt"] == row.n_prompt
    assert main(["verify", "exp"]) == 0


def test_several_prompts_are_answered_line_by_line_and_json_is_nothing_else(
    tiny_folder: Callable[..., Path], capsys: Capture
) -> None:
    Path("p.txt").write_text("Yes\nWhy not?\n", encoding="utf-8")
    flags = "--prompts p.txt --max-tokens 4 --temperature 0 --sites resid --device cpu --json --experiment exp"
    for size, seeds in (("1", [42, 43]), ("2", [42, 42])):
        words = ["--model", str(tiny_folder("llama")), "--batch-size", size, *flags.split()]
        assert main(["generate", *words]) == 0
        told = capsys.readouterr()
        outcome = json.loads(told.out)
        assert [response["example_id"] for response in outcome["responses"]] == ["p-1", "p-2"]
        assert [response["seed"] for response in outcome["responses"]] == seeds
        assert outcome["tokens"] == sum(response["tokens"] for response in outcome["responses"])
        assert all(f"{each['example_id']}: " in told.err for each in outcome["responses"])
    assert main(["inspect", "exp"]) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[0].split() == ["run", "model", "of", "examples", "on", "disk"]
    assert len(lines) == 3
    assert main(["inspect", "exp", "--json"]) == 0
    assert [run["n_examples"] for run in json.loads(capsys.readouterr().out)["runs"]] == [2, 2]
    assert main(["verify", "exp"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"exp/{line.split()[0]}" for line in lines[1:]
    ]
