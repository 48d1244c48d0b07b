"""The peers: how each is run, and where the recipe (`install.py`) puts what it needs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OURS = "llmos"


@dataclass(frozen=True, slots=True)
class Peer:
    """One engine with one weight format; `command` starts its child process."""

    name: str
    command: tuple[str, ...]


def ours(home: Path, model: str, threads: int) -> Peer:
    return Peer(OURS, (sys.executable, str(HERE / "llmos_child.py"), str(home.absolute()), model, str(threads)))


def peers(directory: Path, threads: int) -> list[Peer]:
    """All that the recipe made; those that may count as best come first."""
    python, count = str(directory / "venv/bin/python"), str(threads)

    def llama(form: str) -> Peer:
        return Peer(f"llama.cpp {form}", (python, child("llama_cpp"), str(directory / f"gguf/{form}.gguf"), count))

    def openvino(form: str, source: str) -> Peer:
        model = directory / f"openvino/{source}/openvino_model.xml"
        return Peer(f"openvino {form}", (python, child("openvino"), str(model), count))

    def genai(form: str) -> Peer:
        models = (str(directory / f"genai/{form}"), str(directory / f"genai/{form}-all"))
        return Peer(f"genai {form}", (python, child("genai"), *models, count))

    return [
        llama("q8_0"),
        openvino("fp32", "f16"),
        openvino("int8", "q8_0"),
        genai("int8"),
        llama("q4_1"),
        genai("fp32"),
        llama("q4_0"),
        openvino("int4", "q4_0"),
        openvino("int4 of q4_1", "q4_1"),
        genai("int4"),
    ]


def child(name: str) -> str:
    return str(HERE / f"{name}_child.py")
