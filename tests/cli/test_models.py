"""`llmosd models` on the real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from llmosd.application.cli import main
from llmosd.runtime import native
from llmosd.types import KvFormat
from tests.model_home import MODEL_ID


@pytest.mark.timeout(300)
def test_check_measures_every_format(model_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["models", "check", MODEL_ID, "--home", str(model_home), "--tokens", "1024", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["within_budget"] else 1)
    if native.status().available:
        ways = {f"native, {weights} weights, {kv} K/V" for weights in ("file", "float32") for kv in get_args(KvFormat)}
        named = {found["reference"], *(cost["format"] for cost in found["formats"])}
        assert ways | {"gather, file weights, float16 K/V"} == named - {"native, file weights, int8 K/V, strict"}
    assert found["tokens"] == 1022
    for cost in found["formats"]:
        assert cost["low"] <= cost["cost"] <= cost["high"]
        assert abs(cost["perplexity"] / found["perplexity"] - 1 - cost["cost"]) < 1e-9
        assert 0.9 < cost["top1_agreement"] <= 1


def test_a_text_that_is_too_short_is_refused(
    model_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("Too short.")
    assert main(["models", "check", "--home", str(model_home), "--text", str(tmp_path / "text")]) == 2
    assert main(["models", "check", "--home", str(model_home), "--text", str(tmp_path / "none")]) == 2
    assert "1024 tokens" in capsys.readouterr().err
