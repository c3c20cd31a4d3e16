"""Which errors are no failure of the code that they ended: time limits that the application set from outside of it.

Such an error strikes at any instruction, and has to come out as it was raised. Two kinds can be told from others:

- a signal's handler raised it: its frame is in the traceback;
- a thread set it in another (`PyThreadState_SetAsyncExc`), and no frame raised it: its class is the application's,
  but the frame that it struck is of this library, of Python's own or of one that is used here, where no class of an
  application is known, and the instruction is none that raises.

An `Exception` that a thread sets in another is taken for a failure where its class is Python's or of a library used
here, and where it strikes in the application's own code that this library calls: an adapter, a clock, an iterator.
"""

from __future__ import annotations

import dis
import os
import signal
import stat
import sys
import traceback
from contextlib import suppress
from types import CodeType
from typing import Final

_MARK: Final = "_tokenvault_interrupt"
_HERE: Final = __name__.partition(".")[0]
_USED_HERE: Final = {
    "attr",
    "attrs",
    "cryptography",
    "numpy",
    "pkcs11",
    "asn1crypto",
    "psycopg",
    "psycopg_binary",
    "psycopg_c",
    "typer",
}
"""Libraries that this one calls, and which raise errors of their own."""

_RAISING: Final = {"RAISE_VARARGS", "RERAISE"}


def is_interrupt(error: BaseException) -> bool:
    """Whether an error came from a signal's handler or from another thread.

    It is marked, as a boundary within another one has taken its frames.
    """
    if getattr(error, _MARK, False):
        return True
    found = _is_of_signal_handler(error) or _is_of_another_thread(error)
    if found:
        with suppress(AttributeError):  # a frozen error, as of attrs
            setattr(error, _MARK, True)
    return found


class ignoring:  # as contextlib.suppress is written
    """Ends errors of some kinds, as `contextlib.suppress` does, but no interrupt."""

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, self._kinds) and not is_interrupt(error)


def real_path(path: str) -> str:
    """The path without links; as it stands where it leads nowhere.

    As `os.path.realpath`, which takes an interrupt that is an OSError for an answer, and so do the two below.
    """
    with ignoring(OSError):
        return os.path.realpath(path, strict=True)
    return os.path.abspath(path)


def exists(path: str) -> bool:
    """Whether a path leads to anything."""
    with ignoring(OSError, ValueError):
        return os.stat(path) is not None
    return False


def is_file(path: str) -> bool:
    """Whether a path leads to a regular file."""
    with ignoring(OSError, ValueError):
        return stat.S_ISREG(os.stat(path).st_mode)
    return False


def _is_of_signal_handler(error: BaseException) -> bool:
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


def _is_of_another_thread(error: BaseException) -> bool:
    if not _is_of_application(type(error).__module__):
        return False
    struck = None
    place = error.__traceback__
    while place is not None:
        if place.tb_frame.f_globals.get("__name__") in sys.modules:  # not generated, as methods of attrs are
            struck = place
        place = place.tb_next
    if struck is None or _is_of_application(struck.tb_frame.f_globals["__name__"]):
        return False
    return dis.opname[struck.tb_frame.f_code.co_code[struck.tb_lasti]] not in _RAISING


def _is_of_application(module: str) -> bool:
    package = module.partition(".")[0]
    return package == "__main__" or not (
        package == _HERE or package in _USED_HERE or package in sys.stdlib_module_names
    )


def _code_of(handler: object) -> CodeType | None:
    """The code of a function, of a method, or of an object that can be called."""
    handler = getattr(handler, "func", handler)  # of functools.partial
    function = handler if hasattr(handler, "__code__") else getattr(type(handler), "__call__", None)  # noqa: B004 # its code
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None
