"""The door that all readers go through: whatever a library raises about a file is told as wrong data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kdrs._memory import memory_at_hand
from kdrs.errors import DataError, KdrsError, MachineError, shown

_PASSED = (KdrsError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit)


@contextmanager
def guarded(what: str, remedy: str = "write it again") -> Iterator[None]:
    """Turns what a library raises inside into ``DataError("WHAT: ...")``.

    Damaged files bring up all of ``zlib.error``, ``struct.error``, ``OverflowError``, Polars' errors and the panics of
    its Rust code, which are no ``Exception``. Errors of kdrs, a lack of memory and interrupts pass as they are.
    """
    try:
        yield
    except _PASSED:
        raise
    except BaseException as error:
        raise DataError(f"{what}: {shown(' '.join(str(error).split()) or type(error).__name__)}", remedy) from error


def check_unpacked(name: str, n_bytes: int, of: str = "unpacks to") -> None:
    """``DataError`` for a file whose stated sizes ask for more memory than is at hand, before any is taken."""
    left = memory_at_hand()
    if left is not None and n_bytes > left:
        raise DataError(
            f"{name} {of} {_gigabytes(n_bytes)} by its own account, and {_gigabytes(left)} of memory are at hand",
            "check where the file comes from; a file of that size needs a larger machine",
        )


def check_size(name: str, n_bytes: int) -> None:
    """``MachineError`` for a file whose reading takes more than the memory at hand."""
    left = memory_at_hand()
    if left is not None and n_bytes > left:
        raise MachineError(
            f"{name} takes {_gigabytes(n_bytes)} to read, and {_gigabytes(left)} of memory are at hand",
            "a larger machine, or a part of the file",
        )


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.1f} GB"
