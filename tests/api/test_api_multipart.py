"""Bodies of uploads: whatever is in a file comes out of it, whatever a body is gives a form or a clear error."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.application.http.multipart import Form, boundary_of, parse
from llmosd.errors import InvalidRequest


def parsed(body: bytes, content_type: str) -> tuple[Form, Path]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "body"
        path.write_bytes(body)
        return parse(path, boundary_of(content_type)), path


@given(st.binary(max_size=300), st.text("abc\r\n-", max_size=40), st.text(max_size=20))
def test_a_file_comes_out_as_it_went_in(contents: bytes, more: str, value: str) -> None:
    contents += more.encode()
    request = httpx.Request("POST", "http://x", data={"purpose": value}, files={"file": ("name", contents)})
    body = request.read()
    form, _ = parsed(body, request.headers["content-type"])
    part = form.files["file"]
    assert (body[part.start : part.end], part.filename) == (contents, "name")
    assert form.fields == {"purpose": value}


@given(st.lists(st.sampled_from([b"--x", b"--", b"\r\n", b"Content-Disposition: form-data; ", b'name="a"', b"z"])))
def test_any_body_gives_a_form_or_an_error(pieces: list[bytes]) -> None:
    try:
        form, _ = parsed(b"".join(pieces), 'multipart/form-data; boundary="x"')
    except InvalidRequest as error:
        assert error.message
    else:
        assert not form.files


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=x", "\0"])
def test_what_is_no_form(kind: str) -> None:
    with pytest.raises(InvalidRequest, match="multipart/form-data"):
        boundary_of(kind)


def test_a_form_is_bounded() -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"%s\r\n\r\n%s\r\n'
    with pytest.raises(InvalidRequest, match="more than"):
        parsed(part % (b"", b"v") * 30 + b"--x--", "multipart/form-data; boundary=x")
    with pytest.raises(InvalidRequest, match="too long a header"):
        parsed(part % (b"; y=" + b"z" * 9000, b"v") + b"--x--", "multipart/form-data; boundary=x")
    with pytest.raises(InvalidRequest, match="too long"):
        parsed(part % (b"", b"v" * 5000) + b"--x--", "multipart/form-data; boundary=x")
