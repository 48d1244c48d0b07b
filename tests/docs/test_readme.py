"""The README says what the code does: its tables are the code's, its commands parse, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from reference import README, SECTIONS, markdown, section

from llmosd.application.cli import exit_code, parser
from llmosd.errors import ConfigError, InvalidRequest, LlmosError, Unavailable

TEXT = README.read_text()


@pytest.mark.parametrize("name", SECTIONS)
def test_a_reference_table_is_what_the_code_says(name: str) -> None:
    """`python tests/docs/reference.py` brings it up to date."""
    assert section(TEXT, name)[2] == markdown(SECTIONS[name]())


def test_exit_codes_are_as_documented() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", section(TEXT, "exit codes")[2], re.MULTILINE))
    assert set(rows) == {"0", "1", "2", "3", "130"}
    assert [exit_code(error("")) for error in (LlmosError, InvalidRequest, ConfigError, Unavailable)] == [1, 2, 2, 3]


COMMANDS = [line for line in TEXT.splitlines() if line.startswith("llmosd ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_an_example_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    assert callable(parser(words[0]).parse_args(words).handler)


def test_there_are_examples() -> None:
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXT))
def test_a_link_leads_to_a_file(target: str) -> None:
    assert (Path(README).parent / target).exists()
