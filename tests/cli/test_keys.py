"""Keys on the command line and in their file: made once, kept as digests, taken up by a daemon that runs."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmosd.application import keys
from llmosd.application.access import Access, Caller
from llmosd.application.cli import main
from llmosd.application.keys import Key, Right
from llmosd.errors import ConfigError, Unauthorized
from llmosd.types import Quota, Quotas


def add(home: Path, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["keys", "add", *args, "--home", str(home)]) == 0
    return capsys.readouterr().out.strip()


def test_a_key_is_printed_once_and_its_digest_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    secrets = [add(home, capsys, "ann"), add(home, capsys, "bob", "--rights", "read", "--running", "2")]
    file = home / keys.FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not any(secret in file.read_text() for secret in secrets)
    assert [path.name for path in home.iterdir()] == [keys.FILE], "nothing is left beside it"
    access = Access(home)
    assert [access.caller(secret) for secret in secrets] == [Caller(Right.OWN, "ann"), Caller(Right.READ, "bob")]


def test_the_list_shows_everything_but_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = add(tmp_path, capsys, "ann", "--rights", "admin", "--share", "0.5")
    assert main(["keys", "list", "--json", "--home", str(tmp_path)]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["user"], row["rights"], row["share"], row["running"]) == ("ann", "admin", 0.5, None)
    assert keys.digest_of(secret).startswith(row["id"])
    assert main(["keys", "list", "--home", str(tmp_path)]) == 0
    assert "ann" in capsys.readouterr().out


def test_a_removed_key_is_worthless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = add(tmp_path, capsys, "ann"), add(tmp_path, capsys, "ann")
    access = Access(tmp_path)
    assert main(["keys", "remove", "ann", "--home", str(tmp_path)]) == 2, "two are meant"
    assert main(["keys", "remove", keys.digest_of(first)[:12], "--home", str(tmp_path)]) == 0
    with pytest.raises(Unauthorized, match="not known"):
        access.caller(first)
    assert access.caller(second).user == "ann"
    assert main(["keys", "remove", "ann", "--home", str(tmp_path)]) == 0
    with pytest.raises(Unauthorized, match="a key is needed"):
        access.caller("")  # an empty file lets nobody in


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["ann", "--rights", "root"], "rights must be one of read, own, admin"),
        ([""], "user must be"),
        (["a\nb"], "user must be"),
        (["ann", "--running", "-1"], "running"),
        (["ann", "--share", "2"], "share"),
        (["ann", "--running", "many"], "running"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    try:
        code = main(["keys", "add", *args, "--home", str(tmp_path)])
    except SystemExit as exc:
        code = int(str(exc.code))
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1
    assert not (tmp_path / keys.FILE).exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[key]", "cannot be read"),
        ("key = 3", r"\[\[key\]\]"),
        ("[[key]]\nuser = 'ann'", "sha256"),
        ("[[key]]\nsha256 = 'ABC'\nuser = 'ann'", "sha256"),
        (f"[[key]]\nsha256 = '{'a' * 64}'\nuser = 'ann'\nrigths = 'own'", "rigths"),
        (f"[[key]]\nsha256 = '{'a' * 64}'\nuser = 'ann'\nrights = 'root'", "rights"),
        (f"[[key]]\nsha256 = '{'a' * 64}'\nuser = 3", "user"),
        (f"[[key]]\nsha256 = '{'a' * 64}'\nuser = 'ann'\nrunning = -1", "running"),
        (f"[[key]]\nsha256 = '{'a' * 64}'\nuser = 'ann'\n" * 2, "twice"),
    ],
)
def test_a_broken_file_is_named_and_the_last_good_keys_stay(tmp_path: Path, text: str, said: str) -> None:
    keys.write(tmp_path, [Key(keys.digest_of("secret"), "ann", Right.OWN)])
    access = Access(tmp_path)
    (tmp_path / keys.FILE).write_text(text)
    with pytest.raises(ConfigError, match=said):
        keys.read(tmp_path)
    assert access.caller("secret").user == "ann"


def test_keys_that_are_added_at_once_are_all_kept(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda number: main(["keys", "add", f"u{number}", "--home", str(tmp_path)]), range(24)))
    assert codes == [0] * 24
    assert {key.user for key in keys.read(tmp_path) or ()} == {f"u{number}" for number in range(24)}


def test_keys_of_one_user_may_not_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path, capsys, "ann", "--running", "2")
    assert main(["keys", "add", "ann", "--running", "3", "--home", str(tmp_path)]) == 2
    assert "different values of running" in capsys.readouterr().err
    add(tmp_path, capsys, "ann", "--pages", "7", "--weight", "2")
    found = keys.read(tmp_path)
    assert found is not None
    default = Quotas(Quota(running=9, share=0.5), {"ann": Quota(running=4, share=0.25), "bob": Quota(running=1)})
    assert keys.quotas(found, default).users == {"ann": Quota(2, 7, 0.25, 2.0), "bob": Quota(running=1)}


def test_without_a_file_only_this_machine_is_let_in(tmp_path: Path) -> None:
    access = Access(tmp_path)
    assert access.caller("") == access.caller("whatever") == Caller(Right.ADMIN)
    with pytest.raises(Unauthorized):
        access.caller("", local=False)
    with pytest.raises(ConfigError, match="llmosd keys add") as refused:
        Access(tmp_path, exposed=True)
    assert refused.value.param == "host"


def test_keys_that_vanish_open_no_exposed_daemon(tmp_path: Path) -> None:
    keys.write(tmp_path, [Key(keys.digest_of("secret"), "ann", Right.ADMIN)])
    access = Access(tmp_path, exposed=True)
    assert access.caller("secret").user == "ann"
    (tmp_path / keys.FILE).unlink()
    for key in ("secret", ""):
        with pytest.raises(Unauthorized):
            access.caller(key)
