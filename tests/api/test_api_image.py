"""Images of hibernated requests on disk: read back as they were, refused when a single bit is not."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
from api_house import NUMERICS
from hypothesis import given
from hypothesis import strategies as st

from llmosd.application import image
from llmosd.application.image import Answer, Image, ImageError, Pages
from llmosd.application.image_directory import ANSWER_S, ImageDirectory
from llmosd.system.snapshot import Branch, KeptPages, Snapshot
from llmosd.types import FinishReason, RequestSpec, RequestView, Sampling, State, TimeSplit

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
tokens = st.lists(st.integers(0, 2**31 - 1), max_size=50).map(tuple)
times = st.builds(TimeSplit, *[st.integers(0, 2**53)] * 5)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    sampling = Sampling(
        max_tokens=draw(st.integers(1, 10**6)),
        temperature=draw(st.floats(0, 2)),
        top_p=draw(st.floats(0, 1)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        logprobs=draw(st.none() | st.integers(0, 20)),
        stop=draw(st.lists(text, max_size=4).map(tuple)),
        n=draw(st.integers(1, 4)),
        ignore_eos=draw(st.booleans()),
    )
    created_at = draw(st.floats(0, 2**33))
    spec = RequestSpec("r", "m", list(draw(tokens)), sampling, draw(text), -3, 0, created_at, draw(text), draw(text))
    branches = st.builds(Branch, tokens, st.none() | st.sampled_from(FinishReason))
    many = st.lists(branches, min_size=sampling.n, max_size=sampling.n).map(tuple)
    return Snapshot(spec, draw(many), draw(times), draw(st.none() | st.integers(0, 2**53)), 2, 7)


SNAPSHOT = Snapshot(
    RequestSpec("r", "m", [1, 2, 3], Sampling(max_tokens=9), created_at=1.5), (Branch((4, 5)),), TimeSplit(queued=3)
)
IMAGE = Image(SNAPSHOT, NUMERICS, 2.0)
VIEW = RequestView(
    *("r", "ann", "m", State.FINISHED, 0, 3, 4, 3, 4, 1, 0, None, 0, 1.5, -7, 9), TimeSplit(other=20), "length"
)
ANSWER = Answer(VIEW, ("text ☕",), (FinishReason.LENGTH,), 5.0)


@given(snapshots(), st.floats(0, 2**33), st.booleans())
def test_an_image_reads_back_as_it_was(snapshot: Snapshot, at: float, stands: bool) -> None:
    written = Image(snapshot, NUMERICS, at, stands, Pages(KeptPages(16, 2, ((0, 1), (0,))), 4096, b"digest"))
    assert image.decode(image.encode(written), Image) == written


def test_an_answer_reads_back_as_it_was() -> None:
    assert image.decode(image.encode(ANSWER), Answer) == ANSWER


@given(st.data())
def test_a_flipped_bit_is_noticed(data: st.DataObject) -> None:
    whole = bytearray(image.encode(IMAGE))
    place = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[place // 8] ^= 1 << place % 8
    with pytest.raises(ImageError):
        image.decode(bytes(whole), Image)


@pytest.mark.parametrize("length", [0, 1, 51, 52, 53, 200])
def test_a_truncated_file_is_noticed(length: int) -> None:
    with pytest.raises(ImageError):
        image.decode(image.encode(IMAGE)[:length], Image)


def test_what_follows_the_end_is_noticed() -> None:
    with pytest.raises(ImageError, match="bytes are there of"):
        image.decode(image.encode(IMAGE) + b"\0", Image)


def test_another_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(image, "FORMAT", 7)
        data = image.encode(IMAGE)
    with pytest.raises(ImageError, match="its format is 7, and this version reads format 1"):
        image.decode(data, Image)


def test_a_sound_file_of_another_kind_is_refused() -> None:
    with pytest.raises(ImageError, match="holds something else"):
        image.decode(image.encode(ANSWER), Image)


# ---------------------------------------------------------------- files


@pytest.fixture
def directory(tmp_path: Path) -> ImageDirectory:
    directory = ImageDirectory(tmp_path / "home" / "hibernated")
    assert directory.open().images == []
    return directory


def test_files_are_their_owner_s_alone_and_nothing_else_is_left(directory: ImageDirectory) -> None:
    directory.write([IMAGE])
    [path] = directory.path.iterdir()
    assert path == directory.image("r")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700


def test_the_oldest_request_comes_first(directory: ImageDirectory) -> None:
    for name, at in (("b", 1.0), ("a", 3.0), ("c", 2.0)):
        spec = RequestSpec(name, "m", (1,), Sampling(max_tokens=9), created_at=at)
        directory.write([Image(Snapshot(spec, (Branch(()),), TimeSplit()), NUMERICS, 2.0)])
    assert [found.id for found in directory.open().images] == ["b", "c", "a"]


def test_what_cannot_be_read_is_told_and_put_aside(directory: ImageDirectory) -> None:
    directory.write([IMAGE])
    directory.image("cut").write_bytes(image.encode(IMAGE)[:-1])
    directory.image("renamed").write_bytes(image.encode(IMAGE))
    directory.answer("noise").write_bytes(os.urandom(200))
    found = directory.open()
    assert found.images == [IMAGE]
    assert {path.name for path, _ in found.bad} == {"cut.image", "renamed.image", "noise.answer"}
    for path, _ in found.bad:
        assert directory.put_aside(path).name == f"{path.name}.bad"
    assert directory.open().bad == []


def test_an_answer_goes_before_the_image_that_it_came_of(directory: ImageDirectory) -> None:
    """The daemon died between writing the one and deleting the other."""
    directory.write([IMAGE, ANSWER])
    found = directory.open()
    assert (found.images, found.answers) == ([], [ANSWER])
    assert not directory.image("r").exists()


def test_scraps_and_old_answers_are_cleared_away(directory: ImageDirectory) -> None:
    directory.write([ANSWER])
    scrap = directory.path / "x.image.new"
    scrap.touch()
    yesterday = time.time() - ANSWER_S - 1
    os.utime(directory.answer("r"), (yesterday, yesterday))
    assert directory.open().answers == []
    assert list(directory.path.iterdir()) == []


def test_pages_belong_to_one_image(directory: ImageDirectory) -> None:
    def with_pages(digest: bytes) -> Image:
        return Image(SNAPSHOT, NUMERICS, 2.0, pages=Pages(KeptPages(16, 1, ((0,),)), 4, digest))

    first = with_pages(directory.write_pages("r", memoryview(b"old.")))
    directory.write([first])
    assert directory.read_pages(directory.open().images[0]) == b"old."
    second = with_pages(
        directory.write_pages("r", memoryview(b"new."))
    )  # and the daemon is killed before it writes the image
    assert directory.read_pages(first) is None
    directory.write([second])
    assert directory.read_pages(directory.open().images[0]) == b"new."
    directory.pages("r").unlink()
    assert directory.read_pages(second) is None


def test_pages_without_an_image_are_cleared_away(directory: ImageDirectory) -> None:
    directory.write_pages("nobody", memoryview(b"K and V"))
    directory.write_pages("r", memoryview(b"of an older image"))
    directory.write([IMAGE])
    assert directory.open().images == [IMAGE]
    assert [path.name for path in directory.path.iterdir()] == ["r.image"]


def test_a_failed_write_leaves_the_old_image(directory: ImageDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.write([IMAGE])

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        directory.write([Image(SNAPSHOT, NUMERICS, 3.0)])
    monkeypatch.undo()
    assert directory.open().images == [IMAGE]
    assert [path.name for path in directory.path.iterdir()] == ["r.image"]
