"""What is next: the last line on stderr names a command, and that can be typed."""

import shlex

import pytest

from tests.cli.conftest import COMMANDS, Terminal
from traceformer.cli import application

SAYS_NOTHING_MORE = {
    "check": "of a tiny model, which is nothing to record",
    "inspect": "it is where one looks",
    "verify": "its exit code is the answer",
    "export": "the files are for other programs; it says how they come back",
    "paths": "its next is an option more, then a page in the browser",
}


@pytest.mark.parametrize("verb", [verb for verb in COMMANDS if verb not in SAYS_NOTHING_MORE])
def test_the_last_line_names_a_command_that_can_be_typed(verb: str, terminal: Terminal) -> None:
    typed = terminal.type(COMMANDS[verb])
    assert typed.code == 0, typed.err
    _, found, command = typed.err.splitlines()[-1].rpartition("next: traceformer ")
    assert found, typed.err
    words = shlex.split(command)
    application(words).parse_args(words, print_error=False, exit_on_error=False)


@pytest.mark.parametrize("verb", SAYS_NOTHING_MORE)
def test_a_verb_that_names_no_command_is_done(verb: str, terminal: Terminal) -> None:
    typed = terminal.type(COMMANDS[verb])
    assert typed.code == 0, typed.err
    assert "next: traceformer" not in typed.err


@pytest.mark.parametrize("verb", ["patch", "ablate", "edges"])
def test_what_is_next_is_not_what_was_typed(verb: str, terminal: Terminal) -> None:
    line = COMMANDS[verb]
    for _ in range(2):
        typed = terminal.type(line)
        assert typed.code == 0, typed.err
        following = typed.err.splitlines()[-1].rpartition("next: traceformer ")[2]
        assert following != line
        line = following


def test_what_is_next_reads_the_same_texts_the_same_way(terminal: Terminal) -> None:
    line = "patch byte --clean abcab --corrupt abcaxy --align end --metric kl --device cpu"
    for _ in range(3):
        typed = terminal.type(line)
        assert typed.code == 0, typed.err
        line = typed.err.splitlines()[-1].rpartition("next: traceformer ")[2]
        assert "--align end --metric kl" in line
