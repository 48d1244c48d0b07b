from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmosd.runtime import native
from llmosd.runtime.native.build import BuildError, build


@pytest.fixture(scope="session", autouse=True)
def library() -> None:
    """The library, compiled if need be. A machine without any compiler skips these tests and says so."""
    try:
        build()
    except BuildError as error:
        pytest.skip(str(error))
    native.status.cache_clear()
    assert native.status().available, native.status().why


@pytest.fixture(scope="module", params=["best", "portable"])
def kernels(request: pytest.FixtureRequest, library: None) -> Iterator[str]:
    """Runs a module's tests on this processor's kernels and on the portable ones."""
    found = native.status()
    assert found.path is not None
    loaded = native.load(found.path)
    name = found.isa if request.param == "best" else "portable"
    if name == "portable" and request.param == "best":
        pytest.skip("this processor has no other kernels")
    assert loaded.llmos_use_kernels(name.encode())
    yield name
    assert loaded.llmos_use_kernels(found.isa.encode())
