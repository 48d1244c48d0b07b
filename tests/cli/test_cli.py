"""Commands as a whole where no daemon is needed; tests/e2e has the rest."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmosd import config
from llmosd.application import instance
from llmosd.application.cli import GROUPS, exit_code, main, output, parser
from llmosd.application.cli.answer import Speed, stream_answer
from llmosd.application.cli.daemon import _as_environment
from llmosd.application.cli.run import _piped
from llmosd.application.client import Piece, Usage
from llmosd.application.instance import Record
from llmosd.errors import ConfigError, InvalidRequest, LlmosError, ModelError, NotFound, QueueFull, Unavailable

COMMANDS = [name for names in GROUPS.values() for name in names]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_found_alone_and_among_all(command: str) -> None:
    """Only the group that is asked for is imported, so the table of groups must be right."""
    for wanted in (command, None):
        with pytest.raises(SystemExit) as ended:
            parser(wanted).parse_args([command, "--help"])
        assert ended.value.code == 0


@pytest.mark.parametrize("args", [[], ["nope"], ["ps", "--nope"], ["nice", "x", "y"], ["models"]])
def test_bad_usage_is_one_line_and_exit_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--help" in said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LlmosError("x"), 1),
        (ModelError("x"), 1),
        (QueueFull("x", retry_after_s=1), 1),
        (InvalidRequest("x"), 2),
        (NotFound("x"), 2),
        (ConfigError("x"), 2),
        (Unavailable("x"), 3),
    ],
)
def test_exit_codes(error: LlmosError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize("args", [["ps"], ["mem"], ["kill", "x"], ["nice", "1", "x"], ["stop"]])
def test_without_a_daemon_it_says_so_and_exits_3(
    args: list[str], tmp_path: Path, unused_tcp_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--home", str(tmp_path)] + (["--port", str(unused_tcp_port)] if args != ["stop"] else [])
    assert main([*args, *where]) == 3
    said = capsys.readouterr().err
    assert said.startswith("llmosd: no daemon") and said.count("\n") == 1


def test_an_unknown_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "nope", "--home", str(tmp_path)]) == 2
    assert main(["models", "rm", "nope", "--home", str(tmp_path)]) == 1
    assert main(["start", "--home", str(tmp_path), "--port", "0"]) == 1
    assert "models pull" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / instance.PID_FILE).mkdir()
    assert main(["start", "--home", str(tmp_path), "--port", "0"]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "doctor" in said and said.count("\n") == 1


def test_a_model_in_use_is_not_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with instance.claim(tmp_path):
        instance.write(tmp_path, Record("serving", os.getpid(), model="tiny"))
        assert main(["models", "rm", "tiny", "--home", str(tmp_path)]) == 2
    assert "llmosd stop" in capsys.readouterr().err


def test_another_process_gets_the_same_configuration_and_its_arguments_no_password(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("slots = 2\n")
    flags = {"home": str(tmp_path), "mqtt": "mqtt://me:secret@host", "strict": "true", "spin": "false"}
    told = config.load(flags, {"LLMOS_PORT": "5"})
    assert config.load({}, _as_environment(told)) == told


def test_nothing_to_ask_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    with pytest.raises(InvalidRequest, match="nothing to ask"):
        _piped()


def test_query_needs_a_name_or_sql(tmp_path: Path) -> None:
    for args in ([], ["--sql", ""], ["events", "--sql", "SELECT 1"], ["--sql", "SELECT 1", "--since", "1h"]):
        assert main(["query", *args, "--home", str(tmp_path)]) == 2
    with pytest.raises(SystemExit) as ended:
        main(["query", "events", "--csv", "--json"])
    assert ended.value.code == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


HOSTILE = "a\x1b[2Jb\x07c\x9bd\u202ee\tf\ng\N{ZERO WIDTH JOINER}🙂"


def test_a_models_text_cannot_drive_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert output.printable(HOSTILE) == "a[2Jbcde\tf\ng\N{ZERO WIDTH JOINER}🙂"
    assert output.for_stdout(HOSTILE) == HOSTILE, "exact in a pipe"
    monkeypatch.setattr("sys.stdout", Terminal())
    assert output.for_stdout(HOSTILE) == output.printable(HOSTILE)


def test_an_interrupt_ends_the_answer_and_closes_its_stream(capsys: pytest.CaptureFixture[str]) -> None:
    closed = []

    def pieces() -> Iterator[Piece]:
        try:
            yield Piece("Hel", usage=Usage(3, 1, 4))
            yield Piece("lo", usage=Usage(3, 2, 5))
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    assert stream_answer(pieces()) == "Hello"
    said = capsys.readouterr()
    assert said.out == "Hello\n" and closed == [True]
    assert "2 tokens" in said.err and "stopped" in said.err


def test_speed_without_a_token_claims_nothing() -> None:
    assert str(Speed()) == "no token yet"
