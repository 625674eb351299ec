"""With `--json`, one JSON object is all that is printed on stdout: by every verb that reports."""

import json
from typing import NoReturn

import pytest

from tests.cli.conftest import COMMANDS, Terminal
from traceformer.cli import VERBS

REPORTS_NOTHING = {
    "demo",  # it is extract and inspect, to be looked at
    "view",  # it goes on until it is interrupted: tests/viewer has it
}


def test_every_verb_that_reports_is_asked() -> None:
    assert COMMANDS.keys() == VERBS.keys() - REPORTS_NOTHING


@pytest.mark.parametrize("verb", COMMANDS)
def test_json_is_all_that_is_printed(verb: str, terminal: Terminal) -> None:
    typed = terminal.type(f"{COMMANDS[verb]} --json")
    assert typed.code == 0, typed.err

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    told = json.loads(typed.out, parse_constant=refuse)
    assert isinstance(told, dict)
    assert told
