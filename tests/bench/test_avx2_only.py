"""The comparison for processors without AVX-512: what its children see."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers import avx2_only


def cpuid_can_fault() -> bool:
    try:
        return "cpuid_fault" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not cpuid_can_fault(), reason="this processor cannot let cpuid fault")
def test_a_child_sees_a_processor_with_avx2_and_no_more(tmp_path: Path) -> None:
    assert avx2_only.preload(tmp_path).exists(), "it exits unless the library, preloaded, hides what is beyond AVX2"


def test_without_a_llama_for_it_there_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"install\.py with --avx2"):
        avx2_only.environment(tmp_path)
