"""Trains VGG networks A to E on ImageNet, and applies them. See docs/python.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vggdist.api import Classifier, build, compute_errors, load, open_loader, train
    from vggdist.config import Config
    from vggdist.config_file import load_config
    from vggdist.errors import VggdistError

__all__ = [
    "Classifier",
    "Config",
    "VggdistError",
    "build",
    "compute_errors",
    "load",
    "load_config",
    "open_loader",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports torch when it is needed, and not where a command only prints its help."""
    if name not in __all__:
        raise AttributeError(f"module 'vggdist' has no attribute {name!r}")
    from vggdist import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
