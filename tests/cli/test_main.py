"""The command line as a user meets it: help, errors, exit codes."""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from traceformer import cli
from traceformer.cli import VERBS, application, main
from traceformer.core.library import described
from traceformer.errors import NotFound, NumericError, OutOfSpace, TraceformerError, Unsupported, UsageError

GOLDENS = Path(__file__).parent / "goldens"


def assert_golden(name: str, text: str) -> None:
    """Fails if the text differs from the golden file; WRITE_GOLDENS=1 rewrites the file instead."""
    path = GOLDENS / name
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if os.environ.get("WRITE_GOLDENS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "if this is meant: WRITE_GOLDENS=1 make test"


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A verb of the tests' own, `act`, that does what its module's `run` does."""
    module = ModuleType("traceformer.cli.act")

    def act() -> int | None:
        return module.run()

    module.act = act  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "traceformer.cli.act", module)
    monkeypatch.setitem(VERBS, "act", "Do what the test says.")
    return module


@pytest.mark.parametrize("arguments", [[], *([name] for name in VERBS)], ids=lambda arguments: " ".join(arguments))
def test_help_is_as_agreed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert_golden(f"help{'-'.join(['', *arguments])}.txt", shown.out)


ERRORS = {
    "unknown-verb": "inspekt latest",
    "unknown-verb-without-a-neighbour": "frobnicate",
    "unknown-option-of-all": "--frobnicate",
    "unknown-option": "extract --modle gpt2",
    "unknown-option-without-a-neighbour": "verify x --frobnicate",
    "missing-run": "inspect",
    "missing-value": "extract --model",
    "missing-sites": "extract --capture",
    "left-over": "verify one two",
    "not-a-choice": "extract --dtype float8",
    "not-a-number": "extract --limit many",
    "fraction": "extract --batch_size 1.5",
    "zero": "extract --batch-size 0",
    "unknown-site": "extract --capture attn resid_middle",
    "backwards-range": "extract --layers 5-3",
    "not-an-index": "extract --heads-enc one",
    "shard-out-of-range": "extract --num-shards 2 --shard-index 2",
    "no-run": "inspect nowhere",
    "no-runs": "verify latest",
    "not-a-head": "inspect nowhere --head five",
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_three_lines_and_an_exit_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(ERRORS[name].split())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert_golden(f"error-{name}.txt", f"$ traceformer {ERRORS[name]}\n{shown.err}exit {code}")


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (UsageError("no", why="so", hint="yes"), 2, ["error: no", "why:   so", "try:   yes"]),
        (NotFound("not there"), 3, ["error: not there"]),
        (Unsupported("no place", hint="gpt2"), 4, ["error: no place", "try:   gpt2"]),
        (NumericError("inf"), 4, ["error: inf"]),
        (OutOfSpace("full"), 5, ["error: full"]),
        (TraceformerError("other"), 1, ["error: other"]),
        (KeyboardInterrupt(), 130, ["error: interrupted"]),
        (MemoryError(), 5, ["error: out of memory", "try:   a smaller --batch_size, or fewer --layers"]),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            5,
            [
                "error: out of memory",
                "why:   DefaultCPUAllocator: can't allocate memory",
                "try:   a smaller --batch_size, or fewer --layers",
            ],
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "traces/x"),
            5,
            ["error: traces/x: the disk is full", "try:   free some space, then the same command again"],
        ),
        (
            OSError(errno.ENOMEM, "Cannot allocate memory"),
            5,
            [
                "error: out of memory",
                f"why:   [Errno {errno.ENOMEM}] Cannot allocate memory",
                "try:   a smaller --batch_size, or fewer --layers",
            ],
        ),
        (PermissionError(errno.EACCES, "Permission denied", "traces"), 3, ["error: traces: Permission denied"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_failure_has_its_code_and_lines(
    error: BaseException, code: int, lines: list[str], verb: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    verb.run = fail
    assert main(["act"]) == code
    shown = capsys.readouterr()
    assert shown.err.splitlines() == lines
    assert shown.out == ""


def test_debug_shows_the_traceback_before_the_lines(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise NotFound("not there")

    verb.run = fail
    assert main(["act", "--debug"]) == 3
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("error: not there\n")


def test_a_fault_of_the_program_is_not_dressed_up(verb: ModuleType) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    verb.run = fail
    with pytest.raises(RuntimeError, match="a bug"):
        main(["act"])


def test_the_exit_code_is_what_the_verb_returns(verb: ModuleType) -> None:
    verb.run = lambda: 1
    assert main(["act"]) == 1
    verb.run = lambda: None
    assert main(["act"]) == 0


def test_warnings_are_one_line_on_stderr(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.run = lambda: warnings.warn("dropping heads 99", stacklevel=2)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["act"]) == 0
    assert capsys.readouterr().err == "warning: dropping heads 99\n"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"traceformer {cli.__version__} ({described()})\n"


def run_main(code: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )  # pyright: ignore[reportCallIssue, reportArgumentType]


# A shell's background jobs ignore the keyboard's signal, and what they start inherits that.
ACT = """
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)
from traceformer import cli
module = types.ModuleType("traceformer.cli.act")
def act():
    {body}
module.act = act
sys.modules["traceformer.cli.act"] = module
cli.VERBS["act"] = ""
sys.exit(cli.main(["act"]))
"""


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    process = start(ACT.format(body="print('line\\n' * 1_000_000)"))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=20) == 141
    process.stderr.close()


@pytest.mark.parametrize("command", ["", *VERBS])
def test_help_loads_nothing_slow(command: str) -> None:
    slow = {"torch", "transformers", "datasets", "numpy", "pandas", "pyarrow", "tensorstore", "zarr"}
    slow |= {"jaxtyping", "matplotlib", "sklearn", "scipy"}
    if not command:
        slow.add("rich.markdown")
    process = start(
        f"import sys; from traceformer.cli import main; main([*{command.split()}, '--help']);"
        f" print({slow} & set(sys.modules), file=sys.stderr)"
    )
    assert process.communicate()[1] == "set()\n"


LONGEST_GROUP = 12
HELPS = [*VERBS, "vectors fit", "vectors show"]


def help_on_wide_lines(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    from traceformer.cli.vectors import vectors

    monkeypatch.setenv("COLUMNS", "300")
    # A verb of several commands outlives a call, and with it the console that it made, as wide as the first call found.
    monkeypatch.setattr(vectors, "_fallback_console", None)
    assert main([*command.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", HELPS)
def test_help_has_an_example_that_can_be_typed(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = help_on_wide_lines(command, monkeypatch, capsys).splitlines()
    (example,) = (line.removeprefix("Example: ").strip() for line in lines if line.startswith("Example: "))
    assert example.startswith(f"traceformer {command}")
    words = shlex.split(example)[1:]
    function, *_ = application(words).parse_args(words)  # raises where a word has no place
    assert function.__module__.startswith("traceformer.cli.")


@pytest.mark.parametrize("command", HELPS)
def test_a_long_help_comes_in_groups(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_on_wide_lines(command, monkeypatch, capsys)
    options = re.findall(r"^│ (?:\*  |   )?--", text, re.MULTILINE)
    assert options or command in ("vectors",)
    assert len(options) <= LONGEST_GROUP or text.count("╭─") > 2


def test_a_signal_from_the_keyboard_exits_130() -> None:
    process = start(ACT.format(body="print('ready', flush=True); time.sleep(30)"))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "error: interrupted\n")
    assert process.returncode == 130


def test_characters_that_the_terminal_cannot_show_are_escaped() -> None:
    process = start(ACT.format(body="print(chr(0x732B))"), PYTHONIOENCODING="ascii")
    assert process.communicate(timeout=20) == ("\\u732b\n", "")


def test_goldens_are_all_in_use() -> None:
    names = {f"error-{name}.txt" for name in ERRORS} | {"help.txt"} | {f"help-{name}.txt" for name in VERBS}
    assert {path.name for path in GOLDENS.iterdir()} == names
