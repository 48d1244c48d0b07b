from __future__ import annotations

import pytest

from llmosd.application.server import is_exposed, listen


@pytest.mark.parametrize(("host", "exposed"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_what_other_machines_can_reach_is_known(host: str, exposed: bool) -> None:
    with listen(host, 0) as listener:
        assert is_exposed(listener) is exposed
