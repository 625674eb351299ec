"""What the library says of parameters, as the command line says it."""

import ast
import re
from keyword import iskeyword
from pathlib import Path

import pytest

import traceformer
from traceformer.cli import main
from traceformer.cli.failures import FLAGS, Failure, explain, in_flags
from traceformer.errors import RunExists

GOLDENS = Path(__file__).parent / "goldens"
PACKAGE = Path(traceformer.__file__).parent
LIBRARY = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "cli"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("`overwrite=True` replaces it", "--overwrite replaces it"),
        ("`chat=False`", "--no-chat"),
        ("give `limit=5`, or more text", "give --limit 5, or more text"),
        ("`top_k=-1`", "--top-k -1"),
        ("`temperature=nan`", "--temperature nan"),
        ("a smaller `max_seq_len`", "a smaller --max_seq_len"),
        ("choose another `out`", "choose another --out_dir"),
        ("it runs only with `targets`", "it runs only with --targets_file"),
        ('record it with `capture="attn resid"`', "record it with --capture attn resid"),
        ("`stop=''` would stop", "--stop '' would stop"),
        ("`layers=[0, 3]`, which it has", "--layers 0,3, which it has"),
        ('`split="all", limit=5`', "--split all --limit 5"),
        ("`num_return_sequences=3` of `num_beams=2`", "--num-return-sequences 3 of --num-beams 2"),
    ],
)
def test_parameters_become_flags(said: str, shown: str) -> None:
    assert in_flags(said) == shown


@pytest.mark.parametrize(
    "text",
    [
        "leave the other `with` block first",
        "run `traceformer check` on the model",
        "`vectors fit` writes it",
        "`use_cache=True` is of another library, and so is `limit=5, use_cache=True`",
        "`limit) + (limit`",
        "`limit, limit`",
        "`limit",
        "a file `` without a name",
        "limit=5",
    ],
)
def test_what_names_no_parameter_of_a_command_is_left_as_it_is(text: str) -> None:
    assert in_flags(text) == text


def test_all_three_lines_of_a_failure_are_in_flags() -> None:
    error = RunExists("`out`", why="`resume=True`", hint="`overwrite=True`")
    assert explain(error) == Failure(3, "--out_dir", "--resume", "--overwrite")


@pytest.mark.filterwarnings("default:texts are cut")
def test_a_warning_is_in_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("one line that is long\n", encoding="utf-8")
    line = f"extract --model byte --dataset {texts} --max_seq_len 4 --out_dir {tmp_path / 'run'} --capture resid_post"
    assert main(line.split()) == 0
    assert "warning: texts are cut to 4 tokens (--max_seq_len auto takes more): 1 of 1\n" in capsys.readouterr().err


@pytest.mark.parametrize("flag", FLAGS.values())
def test_some_command_has_the_flag(flag: str) -> None:
    shown = " ".join(path.read_text(encoding="utf-8") for path in sorted(GOLDENS.glob("help-*.txt")))
    assert flag.replace("_", "-") in re.findall(r"--[a-z-]+", shown)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_parameter_in_a_message_has_its_flag(path: Path) -> None:
    assert named_in_messages(path.read_text(encoding="utf-8")) <= FLAGS.keys()


def test_a_parameter_without_a_flag_is_found() -> None:
    source = 'def f():\n    """Uses `a`."""\n    raise ValueError(f"`limit={n}`: give `b`, or `c=5`, and leave `with`")'
    assert named_in_messages(source) - FLAGS.keys() == {"b", "c"}


def named_in_messages(source: str) -> set[str]:
    """Returns the parameters that the strings of a module name in backquotes, those of docstrings left out."""
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings]
    names = {name for text in strings if isinstance(text, str) for name in re.findall(r"(?<!`)`(\w+)[=`]", text)}
    return {name for name in names if not iskeyword(name)}
