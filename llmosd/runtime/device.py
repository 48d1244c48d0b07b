"""Whether a model runs on the CPU or on an NVIDIA GPU, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal

import onnxruntime as ort

from llmosd.config import Config
from llmosd.errors import ConfigError
from llmosd.hardware import gpus

Device = Literal["cpu", "cuda"]

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
FIRST_VERSION = (1, 32)  # whose PagedAttention takes the inputs that our graph gives it
INSTALL = "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]>=1.32'"


def choose_device(config: Config) -> tuple[Device, str]:
    """(device, why) for a configured `auto`, `cpu` or `cuda`; raises ConfigError where CUDA is wanted but cannot be."""
    if config.device == "cpu":
        return "cpu", "asked for"
    obstacles = [*_told_otherwise(config), *_missing()]
    if not obstacles:
        card = gpus.first_card()
        return "cuda", f"{card.name if card else 'a GPU'}, by onnxruntime {ort.__version__}"
    if config.device == "cuda":
        raise ConfigError(f"device cuda cannot be used: {'; '.join(obstacles)}", param="device")
    return "cpu", obstacles[0]


def providers(device: str) -> list[Any]:
    """What a session on this device is made with. Loads CUDA's libraries where they were installed by pip."""
    if device == "cpu":
        return [CPU_PROVIDER]
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as the driver numbers them
    ort.preload_dlls()
    return [(CUDA_PROVIDER, {"device_id": "0"}), CPU_PROVIDER]


def _told_otherwise(config: Config) -> Iterator[str]:
    if config.strict:
        yield "strict mode is for the CPU, whose operators alone fix the order of every sum"
    if config.backend != "auto":
        yield f"the {config.backend} backend is for the CPU"
    if config.weights != "file":
        yield f"{config.weights} weights are for the CPU"
    if config.kv_format not in ("auto", "float16"):
        yield f"K and V in {config.kv_format} are for the CPU"


def _missing() -> Iterator[str]:
    if gpus.first_card() is None:
        yield "NVIDIA's driver reports no GPU that is visible"
    if CUDA_PROVIDER not in ort.get_available_providers():
        yield f"onnxruntime {ort.__version__} was built without CUDA: {INSTALL}"
    elif tuple(int(part) for part in ort.__version__.split(".")[:2]) < FIRST_VERSION:
        yield f"onnxruntime {ort.__version__} is too old: {INSTALL}"
