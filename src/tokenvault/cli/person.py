"""Who runs the command: the person in events of dual control, and of changes of programs and requestors."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from pathlib import Path
from typing import Final

LOGIN: Final = Path("/proc/self/loginuid")
"""Where Linux says who logged in. `sudo` and `su` leave it as it is, and without privileges nobody changes it."""

NO_LOGIN: Final = 2**32 - 1
"""What stands there in services and containers, where nobody logged in."""


def person() -> str:
    """Who logged in, or else the user of this process: whom no argument and no variable names.

    So who becomes another user by `sudo` or `su` stays one person.
    """
    uid = _who_logged_in()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _who_logged_in() -> int:
    with suppress(OSError, ValueError):
        uid = int(LOGIN.read_text(encoding="ascii"))
        if uid != NO_LOGIN:
            return uid
    return os.getuid()
