"""The commands on the pages of docs/: the command line understands each of them; those of compatibility.md run."""

import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from cyclopts import CycloptsError

import traceformer as tf
from tests.models.checkpoints import Writer
from traceformer.cli import application, main
from traceformer.compat import InterpretabilityEngine
from traceformer.texts.prompts import load_prompt_set

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SHELL_ENDS = {"|", ">", "&&"}


def blocks(text: str) -> Iterator[tuple[bool, str]]:
    """Yields the blocks of a page that a shell may read, and whether each line is a command, or those with `$`."""
    fenced = re.compile(r"^ *```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
    for block in fenced.finditer(text):
        if block["language"] in ("", "sh", "bash", "console"):
            yield block["language"] in ("sh", "bash"), block["code"]
    for block in re.findall(r"(?:^    .*\n)+", fenced.sub("", text), flags=re.MULTILINE):
        yield True, re.sub("^    ", "", block, flags=re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Returns the command lines in a page's blocks, and of compatibility.md those in its tables."""
    text = page.read_text(encoding="utf-8")
    found = []
    for whole, code in blocks(text):
        for line in code.replace("\\\n", " ").splitlines():
            typed = line if whole and not line.startswith("$ ") else line.removeprefix("$ ") if line[:2] == "$ " else ""
            if typed.startswith("traceformer ") and " ... " not in f"{typed} ":
                found.append(typed)
    if page.name == "compatibility.md":
        found += [span for span in re.findall(r"`(traceformer [^`]+)`", text) if len(span.split()) > 2]
    return found


def words(command: str) -> list[str]:
    """Returns what the shell hands to the program."""
    return [*takewhile(lambda word: word not in SHELL_ENDS, shlex.split(command, comments=True))][1:]


@cache
def fault(command: str) -> str | None:
    """Returns why the command line does not understand a command, or None where it does."""
    own = words(command)
    try:
        application(own).parse_args(own, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_the_command_line_understands_every_command_of_a_page(page: Path) -> None:
    assert {command: why for command in commands(page) if (why := fault(command))} == {}


def test_commands_are_found_wherever_they_stand() -> None:
    assert len([page for page in PAGES if commands(page)]) > 15
    assert len(commands(DOCS / "compatibility.md")) > 30


def test_a_command_that_is_none_is_found() -> None:
    assert fault("traceformer heads traces/demo --plots") is not None
    assert fault("traceformer extract --dtype float8 # a comment") is not None
    assert fault("traceformer heads traces/demo --plot > heads.txt") is None


NEEDS_MORE = re.compile("--preset|--data enwik8|--report-to|traceformer extract|google/gemma")
"""Trainings of hours, and what `tests/test_documented_commands.py` runs."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of a random model, whose clusters hardly differ
def test_the_commands_of_compatibility_run_as_they_stand(
    tmp_path: Path,
    write_checkpoint: Writer,
    skip_for: Callable[[str], None],
    tiny_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not (ROOT / "traceformer/viewer/static/trace.js").is_file():
        skip_for("pages")
    monkeypatch.chdir(tmp_path)
    links = {"Qwen/Qwen2-0.5B": ("qwen2", {}), "M": ("gpt2", {"n_positions": 1024, "n_layer": 4})}
    Path("Qwen").mkdir()
    for name, (family, changes) in links.items():
        Path(name).symlink_to(tiny_folder(family, **changes), target_is_directory=True)
    model = tf.load_model(str(tiny_folder("gemma2", num_hidden_layers=17, max_position_embeddings=512)), device="cpu")
    sites = "internals attn resid logits norms attn_out mlp_out"
    tf.generate(model, load_prompt_set("dynamic"), sites, max_tokens=2, out="RUN")
    Path("RUN_DIR").symlink_to("RUN", target_is_directory=True)
    torch.save(torch.ones(model.dims.stacks["dec"].d_model), "probe_layer16.pt")
    InterpretabilityEngine(model.model, model.tokenizer, "kept").generate_and_capture("A name", max_tokens=2)
    next(Path("kept").glob("*.json")).rename("trace.json")
    Path("enwik8").write_bytes((ROOT / "README.md").read_bytes() * 8)
    Path("head_metrics.csv").write_bytes((ROOT / "tests/data/thesis_head_metrics.csv").read_bytes())
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    write_checkpoint(sequence_len=128)
    codes = {}
    for command in dict.fromkeys(commands(DOCS / "compatibility.md")):
        if not NEEDS_MORE.search(command):
            codes[command] = main(words(command)), capsys.readouterr().err
    failed = [f"{command}\n{told}" for command, (code, told) in codes.items() if code]
    assert not failed, "\n".join(failed)
    assert len(codes) > 15
    assert tf.open_run("traces/water").tokens.category.tolist() == ["science"]
