"""Where the data that ships with the package lies, in a wheel and in a checkout alike."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_dir(name: str) -> Path:
    """Directory `models`, `migrations` or `text`: inside the installed package, else beside it in a checkout."""
    for base in (_PACKAGE, _PACKAGE.parent):
        if (path := base / name).is_dir():
            return path
    raise FileNotFoundError(f"{name}/ is neither in {_PACKAGE} nor beside it: the installation is incomplete")
