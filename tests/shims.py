"""SoftHSM behind `shim.c`, which imposes the limits of other modules on it.

Each shim is a library of its own with a SoftHSM of its own behind it, so what a test does to one, C_Finalize
included, no other test in the process notices.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from tests import softhsm
from tokenvault.keys.uri import parse_pkcs11_uri

SOURCE = Path(__file__).with_name("shim.c")
HEADERS = ("/usr/include/p11-kit-1", "/usr/local/include/p11-kit-1")


def build(folder: Path) -> Path:
    """Compile the shim."""
    built = folder / "shim.so"
    includes = [f"-I{path}" for path in HEADERS]
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wall", "-Werror", *includes, "-o", built, SOURCE, "-ldl"], check=True
    )
    return built


class Shim:
    """One shim: its address, the limits it imposes, the calls it has seen."""

    def __init__(self, built: Path, folder: Path, token_uri: str) -> None:
        self.path = folder / "shim.so"
        shutil.copy(built, self.path)
        shutil.copy(softhsm.module_path(), self._beside("target"))
        self.pin_path = Path(parse_pkcs11_uri(token_uri).pin_path or "")
        self.uri = token_uri.replace(softhsm.module_path(), str(self.path))
        self._limits: dict[str, int] = {}

    def impose(self, **limits: int) -> None:
        """Impose limits, besides those that stand; 0 lifts one."""
        self._limits.update(limits)
        text = "".join(f"{name}={value}\n" for name, value in self._limits.items() if value)
        # In one step: the shim reads it at each call.
        new = self._beside("limits.new")
        new.write_text(text)
        new.replace(self._beside("limits"))

    def calls(self) -> Counter[str]:
        """How often each function was called, by all processes."""
        counts = self._beside("counts")
        lines = counts.read_text().splitlines() if counts.exists() else []
        return Counter(line.partition(" ")[2] for line in lines)

    def order(self, pid: int) -> list[str]:
        """The functions that a process called, in order."""
        lines = (line.partition(" ") for line in self._beside("counts").read_text().splitlines())
        return [function for each, _, function in lines if int(each) == pid]

    def forget_calls(self) -> None:
        """Count from nothing."""
        self._beside("counts").unlink(missing_ok=True)

    def log_in_by_itself(self) -> None:
        """Become a module without PINs."""
        self._beside("pin").write_text(self.pin_path.read_text())

    def log_out_at_next_search(self) -> None:
        """Log the user out by itself, once, when a search begins."""
        self._beside("logout").touch()

    def initialize_as_the_host(self) -> None:
        """C_Initialize, as other code of the process would do it."""
        assert self._host_call(0) == 0

    def finalize_as_the_host(self) -> None:
        """C_Finalize, as other code of the process would do it."""
        assert self._host_call(1) == 0

    def _host_call(self, index: int) -> int:
        class Functions(ctypes.Structure):
            _fields_ = (("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * 2))

        functions = ctypes.POINTER(Functions)()
        assert ctypes.CDLL(str(self.path)).C_GetFunctionList(ctypes.byref(functions)) == 0
        call = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)(functions.contents.functions[index])
        return int(call(None))

    def _beside(self, what: str) -> Path:
        return Path(f"{self.path}.{what}")
