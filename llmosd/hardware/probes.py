"""What the host is doing: processor, memory and, where NVIDIA's driver is installed, its graphics cards."""

from __future__ import annotations

import psutil
import pynvml

from llmosd.wire import Gpu, Host


class HostProbe:
    """Samples the host and this process; processor shares are averages since the previous sample."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._cpus = psutil.cpu_count() or 1
        self._gpus = _open_gpus()
        self.sample()

    def sample(self) -> Host:
        """Never blocks on anything but the kernel's own files and the driver; about a millisecond."""
        memory = psutil.virtual_memory()
        with self._process.oneshot():
            cores, resident = self._process.cpu_percent() / 100, self._process.memory_info().rss
        return Host(
            cpus=self._cpus,
            cpu=psutil.cpu_percent() / 100,
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            process_cpu=cores,
            process_rss=resident,
            gpus=tuple(gpu for handle in self._gpus if (gpu := _sample_gpu(handle))),
        )


def _open_gpus() -> list[object]:
    """Handles of all cards; none without a driver, which is no error."""
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _sample_gpu(handle: object) -> Gpu | None:
    """One card, or None when the driver fails just now. Some cards report no utilisation or power."""
    try:
        name = pynvml.nvmlDeviceGetName(handle)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError:
        return None
    return Gpu(str(name), _utilisation(handle), int(memory.used), int(memory.total), _power(handle))


def _utilisation(handle: object) -> float:
    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except pynvml.NVMLError:
        return 0.0


def _power(handle: object) -> float | None:
    try:
        return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000  # milliwatts
    except pynvml.NVMLError:
        return None
