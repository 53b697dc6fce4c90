"""Libraries that a slim installation lacks, or one clear error in their place.

NumPy and safetensors alone carry sampling, ranking, evaluation and `kdrs.Student`. Whatever else is used there is imported
when it is needed, by ``from kdrs._libraries import polars``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdrs.errors import MachineError

if TYPE_CHECKING:
    import platformdirs as platformdirs
    import polars as polars
    import scipy as scipy

PACKAGES = {
    "platformdirs": "platformdirs", "polars": "polars", "pydantic": "pydantic", "pydantic_core": "pydantic",
    "scipy": "scipy", "tomli_w": "tomli-w", "torch": "torch", "typer": "typer",
}  # fmt: skip
"""Modules that more than the slim part of kdrs needs, and the packages that bring them."""


def missing(error: ModuleNotFoundError, what: str) -> MachineError | None:
    """The error of ``what``, where one of kdrs's own libraries is not installed; None where something else is amiss."""
    package = PACKAGES.get((error.name or "").partition(".")[0])
    if package is None:
        return None
    return MachineError(
        f"{what} needs {package}, which is not installed",
        f"pip install {package}; or pip install kdrs, without --no-deps, for all that kdrs needs",
    )


def need(name: str, what: str) -> None:
    """Raises ``MachineError`` where ``what`` needs a module of `PACKAGES` that is not installed."""
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        raise missing(error, what) or error from None


def __getattr__(name: str) -> Any:
    if name not in PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    need(name, "this part of kdrs")
    return import_module(name)
