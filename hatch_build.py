"""Build hook: compiles the native operators into the wheel, or beside the sources of an editable install.

Without a C++ compiler the build asks for the one in the `ziglang` package. Where even that fails the wheel is pure
Python and the runtime falls back to its pure ONNX attention: slower, equally correct, and `llmosd doctor` says so.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("llmosd", "runtime", "native")


class NativeBuildHook(BuildHookInterface[Any]):
    def dependencies(self) -> list[str]:
        builder = self._builder()
        try:
            builder.find_compiler()
        except builder.BuildError:
            return ["ziglang"]
        return []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        builder = self._builder()
        try:
            library: Path = builder.build()
        except builder.BuildError as exc:
            self.app.display_warning(f"the wheel holds no native operators: {exc}")
            return
        if version == "editable":
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"
        build_data["force_include"][str(library)] = (NATIVE / "lib" / library.name).as_posix()

    def _builder(self) -> ModuleType:
        """`llmosd/runtime/native/build.py`, loaded by path: the package itself cannot be imported at build time."""
        spec = importlib.util.spec_from_file_location("llmosd_native_build", Path(self.root) / NATIVE / "build.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def _platform_tag() -> str:
    """The wheel tag of this machine, such as `linux_x86_64`; honours the cross-compilation variable of setuptools."""
    platform = os.environ.get("_PYTHON_HOST_PLATFORM") or sysconfig.get_platform()
    return platform.replace("-", "_").replace(".", "_")
