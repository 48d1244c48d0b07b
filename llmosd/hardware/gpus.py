"""The card that CUDA would use, as NVIDIA's driver reports it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import pynvml


@dataclass(frozen=True, slots=True)
class Card:
    """Memory in bytes; what is free now."""

    name: str
    memory_free: int


def first_card(env: Mapping[str, str] = os.environ) -> Card | None:
    """The first card that CUDA_VISIBLE_DEVICES leaves visible, else the first of all; None without card or driver.

    Numbers are the driver's: CUDA counts the same way where CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    try:
        pynvml.nvmlInit()
        handle = _handle(env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip())
        return Card(str(pynvml.nvmlDeviceGetName(handle)), int(pynvml.nvmlDeviceGetMemoryInfo(handle).free))
    except (pynvml.NVMLError, ValueError):
        return None


def _handle(visible: str) -> object:
    """Of a card named by number or by its unique id; raises ValueError for an empty or negative one, as -1 for none."""
    if visible.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByUUID(visible)
    if (number := int(visible)) < 0:
        raise ValueError(visible)
    return pynvml.nvmlDeviceGetHandleByIndex(number)
