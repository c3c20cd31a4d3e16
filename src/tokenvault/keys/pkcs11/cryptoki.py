"""The calls of PKCS#11 that the vault makes, through ctypes.

Why not python-pkcs11: it passes C_Initialize no arguments, which NSS wants; it has no C_GetSessionInfo, which tells
whether a login stands and needs no right; it loses the session on which a PIN was refused; it reads attributes of
every object that it finds, asks for the length of every answer first, and calls the module from finalizers, in any
thread. Nor can calls of our own stand beside it: p11-kit gives each caller of C_GetFunctionList a connection of its
own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from tokenvault.keys.pkcs11.constants import (
    BYTES,
    NUMBERS,
    OS_LOCKING_OK,
    RW_SESSION,
    SERIAL_SESSION,
    TEXTS,
    UNAVAILABLE,
    USER,
    USER_STATES,
    Attribute,
    Code,
    Mechanism,
    TokenFlag,
    code_name,
)
from tokenvault.keys.pkcs11.worker import calling

Value = bool | int | str | bytes
Template = Mapping[Attribute, Value]

ATTRIBUTE_BYTES_MAX: Final = 128
"""The longest attribute value read; a longer one is none of the vault's."""
_SLACK_BYTES: Final = 16
"""More room for an answer than it needs, for modules that reckon with padding."""

# Where the functions stand in CK_FUNCTION_LIST, after the version.
_PLACES: Final = {
    "C_Initialize": 0,
    "C_Finalize": 1,
    "C_GetInfo": 2,
    "C_GetSlotList": 4,
    "C_GetTokenInfo": 6,
    "C_GetMechanismList": 7,
    "C_OpenSession": 12,
    "C_CloseSession": 13,
    "C_GetSessionInfo": 15,
    "C_Login": 18,
    "C_CreateObject": 20,
    "C_DestroyObject": 22,
    "C_GetAttributeValue": 24,
    "C_FindObjectsInit": 26,
    "C_FindObjects": 27,
    "C_FindObjectsFinal": 28,
    "C_EncryptInit": 29,
    "C_Encrypt": 30,
    "C_SignInit": 42,
    "C_Sign": 43,
    "C_GenerateKey": 58,
    "C_GenerateKeyPair": 59,
}
_FUNCTIONS: Final = 68


class CallError(Exception):
    """A call failed.

    Attributes:
        function: the function that failed.
        code: what it returned, a CK_RV.

    Args:
        told: what to say of it, where the two are not all.
    """

    def __init__(self, function: str, code: int, told: str = "") -> None:
        super().__init__(told or f"{function}: {code_name(code)}")
        self.function = function
        self.code = code


class _FunctionList(ctypes.Structure):
    _fields_ = (("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * _FUNCTIONS))


class _InitializeArguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS, and the NULL that NSS looks for after it."""

    _fields_ = (
        ("mutex_functions", ctypes.c_void_p * 4),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_char_p),
        ("end", ctypes.c_void_p),
    )


class _TokenInfo(ctypes.Structure):
    _fields_ = (
        ("label", ctypes.c_ubyte * 32),
        ("manufacturer_id", ctypes.c_ubyte * 32),
        ("model", ctypes.c_ubyte * 16),
        ("serial", ctypes.c_ubyte * 16),
        ("flags", ctypes.c_ulong),
        ("counts_and_sizes", ctypes.c_ulong * 10),
        ("versions", ctypes.c_ubyte * 4),
        ("time", ctypes.c_ubyte * 16),
    )


class _SessionInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_ulong) for name in ("slot", "state", "flags", "device_error"))


class _Attribute(ctypes.Structure):
    _fields_ = (("type", ctypes.c_ulong), ("value", ctypes.c_void_p), ("length", ctypes.c_ulong))


class _Mechanism(ctypes.Structure):
    _fields_ = (("type", ctypes.c_ulong), ("parameter", ctypes.c_char_p), ("length", ctypes.c_ulong))


@attrs.frozen(kw_only=True)
class Token:
    """A token in a slot, and what CK_TOKEN_INFO tells of it."""

    slot_id: int
    label: str
    manufacturer_id: str
    model: str
    serial: str
    flags: TokenFlag


@attrs.frozen(eq=False)
class Session:
    """An open session.

    Attributes:
        handle: its CK_SESSION_HANDLE.
        rw: whether it may change the token.
    """

    module: Cryptoki = attrs.field(repr=False)
    handle: int
    rw: bool

    def close(self) -> None:
        """C_CloseSession."""
        self.module.call("C_CloseSession", _ulong(self.handle))

    def logged_in(self) -> bool:
        """Whether it is one of the logged-in user, by C_GetSessionInfo."""
        info = _SessionInfo()
        self.module.call("C_GetSessionInfo", _ulong(self.handle), ctypes.byref(info))
        return info.state in USER_STATES

    def login(self, pin: bytes) -> None:
        """C_Login as user."""
        self.module.call("C_Login", _ulong(self.handle), _ulong(USER), pin, _ulong(len(pin)))

    def find(self, template: Template, most: int) -> list[int]:
        """Handles of objects that fit a template; no more than so many.

        A search ends when a call tells none: modules may tell fewer at once than are asked for, and than there are.
        """
        handle = _ulong(self.handle)
        code = self.module.attempt("C_FindObjectsInit", handle, *_packed(template))
        if code == Code.OPERATION_ACTIVE and not self.module.has("C_FindObjectsFinal"):
            raise CallError("C_FindObjectsFinal", Code.FUNCTION_NOT_SUPPORTED)  # which ends no search, then
        if code != Code.OK:
            raise CallError("C_FindObjectsInit", code)
        found: list[int] = []
        try:
            # Each tells at least one: there are no more calls than objects asked for.
            while len(found) < most and (more := self._find_more(most - len(found), found)):
                found += more
        finally:
            self.module.attempt("C_FindObjectsFinal", handle)
        return found

    def _find_more(self, most: int, known: Sequence[int]) -> list[int]:
        told = (ctypes.c_ulong * most)()
        count = _ulong(0)
        self.module.call("C_FindObjects", _ulong(self.handle), told, _ulong(most), ctypes.byref(count))
        return [handle for handle in dict.fromkeys(told[: count.value]) if handle not in known]

    def attributes(self, handle: int, wanted: Sequence[Attribute]) -> dict[Attribute, Value]:
        """Those attributes of an object that the module tells: all in one call, or one by one where it errs then."""
        code, told = self._attributes(handle, wanted)
        if code == Code.OK and len(told) == len(wanted):
            return told
        if code != Code.OK and code not in NOT_TOLD:
            raise CallError("C_GetAttributeValue", code)
        told = {}
        for each in wanted:
            code, one = self._attributes(handle, [each])
            if code == Code.OK:
                told.update(one)
            elif code not in NOT_TOLD:
                raise CallError("C_GetAttributeValue", code)
        return told

    def _attributes(self, handle: int, wanted: Sequence[Attribute]) -> tuple[int, dict[Attribute, Value]]:
        buffers = [ctypes.create_string_buffer(ATTRIBUTE_BYTES_MAX) for _ in wanted]
        asked = (_Attribute * len(wanted))(
            *(
                _Attribute(each, ctypes.addressof(buffer), ATTRIBUTE_BYTES_MAX)
                for each, buffer in zip(wanted, buffers, strict=True)
            )
        )
        code = self.module.attempt(
            "C_GetAttributeValue", _ulong(self.handle), _ulong(handle), asked, _ulong(len(wanted))
        )
        told: dict[Attribute, Value] = {}
        for each, answer, buffer in zip(wanted, asked, buffers, strict=True):
            value = None
            if (
                answer.length != UNAVAILABLE and answer.length < ATTRIBUTE_BYTES_MAX
            ):  # or it was not filled in
                value = _unpacked(each, buffer.raw[: answer.length])
            if value is not None:
                told[each] = value
        return code, told

    def create_object(self, template: Template) -> None:
        """C_CreateObject."""
        self.module.call("C_CreateObject", _ulong(self.handle), *_packed(template), ctypes.byref(_ulong(0)))

    def generate_key(self, template: Template) -> None:
        """C_GenerateKey by CKM_AES_KEY_GEN."""
        made, mechanism = ctypes.byref(_ulong(0)), _mechanism(Mechanism.AES_KEY_GEN)
        self.module.call("C_GenerateKey", _ulong(self.handle), mechanism, *_packed(template), made)

    def generate_pair(self, public: Template, private: Template) -> None:
        """C_GenerateKeyPair by CKM_EC_KEY_PAIR_GEN."""
        self.module.call(
            "C_GenerateKeyPair",
            _ulong(self.handle),
            _mechanism(Mechanism.EC_KEY_PAIR_GEN),
            *_packed(public),
            *_packed(private),
            ctypes.byref(_ulong(0)),
            ctypes.byref(_ulong(0)),
        )

    def destroy(self, handle: int) -> None:
        """C_DestroyObject."""
        self.module.call("C_DestroyObject", _ulong(self.handle), _ulong(handle))

    def encrypt(self, key: int, mechanism: Mechanism, data: bytes, vector: bytes | None = None) -> bytes:
        """C_EncryptInit and C_Encrypt."""
        return self._operate("Encrypt", key, _mechanism(mechanism, vector), data, len(data) + _SLACK_BYTES)

    def sign(self, key: int, mechanism: Mechanism, data: bytes) -> bytes:
        """C_SignInit and C_Sign."""
        return self._operate("Sign", key, _mechanism(mechanism), data, ATTRIBUTE_BYTES_MAX)

    def _operate(self, what: str, key: int, mechanism: object, data: bytes, room: int) -> bytes:
        handle = _ulong(self.handle)
        self.module.call(f"C_{what}Init", handle, mechanism, _ulong(key))
        answer = ctypes.create_string_buffer(room)
        length = _ulong(room)
        self.module.call(f"C_{what}", handle, data, _ulong(len(data)), answer, ctypes.byref(length))
        return ctypes.string_at(answer, min(length.value, room))


NOT_TOLD: Final = frozenset(
    {
        Code.ATTRIBUTE_SENSITIVE,
        Code.ATTRIBUTE_TYPE_INVALID,
        Code.ATTRIBUTE_VALUE_INVALID,
        Code.ARGUMENTS_BAD,
        Code.BUFFER_TOO_SMALL,
        Code.FUNCTION_FAILED,
        Code.FUNCTION_NOT_SUPPORTED,
        Code.GENERAL_ERROR,
    }
)
"""What modules return to the question for an attribute that they do not tell."""


class Cryptoki:
    """A loaded library. It stays loaded as long as the process lives.

    Raises:
        OSError: the library can not be loaded; the text is the loader's.
        AttributeError: it is not a PKCS#11 module.
        CallError: it does not give its functions.
    """

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        functions = ctypes.POINTER(_FunctionList)()
        get_functions = self._library.C_GetFunctionList
        get_functions.restype = ctypes.c_ulong
        code = get_functions(ctypes.byref(functions))
        if code == Code.OK and not functions:  # type: ignore[truthy-bool] # NULL is false
            code = Code.FUNCTION_NOT_SUPPORTED
        if code != Code.OK:
            raise CallError("C_GetFunctionList", code)
        prototype = ctypes.CFUNCTYPE(ctypes.c_ulong)  # which lets go of the interpreter's lock
        places = functions.contents.functions
        self._functions: Final = {
            # The list of some modules has NULL where they have no such function.
            name: prototype(places[place])
            for name, place in _PLACES.items()
            if places[place]
        }

    def has(self, *functions: str) -> bool:
        """Whether the module has functions at all: where there is NULL in its list, a call would end the process."""
        return self._functions.keys() >= set(functions)

    def attempt(self, function: str, *arguments: object) -> int:
        """Call a function. Returns its return code: of one that the module lacks, that it is not supported."""
        if function not in self._functions:
            return Code.FUNCTION_NOT_SUPPORTED
        calling(function)
        return int(self._functions[function](*arguments))

    def call(self, function: str, *arguments: object) -> None:
        """Call a function. Raises CallError."""
        code = self.attempt(function, *arguments)
        if code != Code.OK:
            raise CallError(function, code)

    def initialize(self, arguments: str | None) -> int:
        """C_Initialize; with `arguments` as pReserved. Returns its return code."""
        if arguments is None:
            return self.attempt("C_Initialize", None)
        passed = _InitializeArguments(flags=OS_LOCKING_OK, reserved=arguments.encode())
        return self.attempt("C_Initialize", ctypes.byref(passed))

    def finalize(self) -> None:
        """C_Finalize. What it returns does not matter: the library may be down already."""
        self.attempt("C_Finalize", None)

    def is_initialized(self) -> bool:
        """Whether the library is initialized, for this caller of C_GetFunctionList: p11-kit keeps them apart."""
        count = _ulong(0)
        code = self.attempt("C_GetSlotList", ctypes.c_ubyte(1), None, ctypes.byref(count))
        return code != Code.CRYPTOKI_NOT_INITIALIZED

    def slots(self) -> list[int]:
        """The slots with a token in them."""
        count = _ulong(0)
        self.call("C_GetSlotList", ctypes.c_ubyte(1), None, ctypes.byref(count))
        slots = (ctypes.c_ulong * max(count.value, 1))()
        self.call("C_GetSlotList", ctypes.c_ubyte(1), slots, ctypes.byref(count))
        return list(slots[: count.value])

    def token(self, slot_id: int) -> Token:
        """The token in a slot."""
        info = _TokenInfo()
        self.call("C_GetTokenInfo", _ulong(slot_id), ctypes.byref(info))
        return Token(
            slot_id=slot_id,
            label=_text(info.label),
            manufacturer_id=_text(info.manufacturer_id),
            model=_text(info.model),
            serial=_text(info.serial),
            flags=TokenFlag(info.flags),
        )

    def mechanisms(self, slot_id: int) -> frozenset[int]:
        """What the token in a slot says that it can do."""
        count = _ulong(0)
        self.call("C_GetMechanismList", _ulong(slot_id), None, ctypes.byref(count))
        found = (ctypes.c_ulong * max(count.value, 1))()
        self.call("C_GetMechanismList", _ulong(slot_id), found, ctypes.byref(count))
        return frozenset(found[: count.value])

    def open_session(self, slot_id: int, *, rw: bool) -> Session:
        """C_OpenSession."""
        handle = _ulong(0)
        flags = SERIAL_SESSION | (RW_SESSION if rw else 0)
        self.call("C_OpenSession", _ulong(slot_id), _ulong(flags), None, None, ctypes.byref(handle))
        return Session(self, handle.value, rw)


_ulong = ctypes.c_ulong


def _text(padded: ctypes.Array[ctypes.c_ubyte]) -> str:
    return bytes(padded).rstrip(b" \0").decode("utf-8", "replace")


def _mechanism(mechanism: Mechanism, parameter: bytes | None = None) -> object:
    return ctypes.byref(_Mechanism(mechanism, parameter, 0 if parameter is None else len(parameter)))


def _packed(template: Template) -> tuple[object, object]:
    """A template as a function takes it: CK_ATTRIBUTEs, which keep their values alive, and their number."""
    values = [ctypes.create_string_buffer(raw, max(len(raw), 1)) for raw in map(_bytes_of, template.values())]
    lengths = [len(_bytes_of(value)) for value in template.values()]
    packed = (_Attribute * len(template))(
        *(
            _Attribute(each, ctypes.addressof(value), length)
            for each, value, length in zip(template, values, lengths, strict=True)
        )
    )
    packed.values = values  # type: ignore[attr-defined] # a place to keep them
    return packed, _ulong(len(template))


def _bytes_of(value: Value) -> bytes:
    if isinstance(value, bool):
        return bytes([value])
    if isinstance(value, int):
        return bytes(_ulong(value))
    return value.encode() if isinstance(value, str) else value


def _unpacked(attribute: Attribute, raw: bytes) -> Value | None:
    """The value of an attribute; None where it has not the length of one."""
    if attribute in NUMBERS:
        return _ulong.from_buffer_copy(raw).value if len(raw) == ctypes.sizeof(_ulong) else None
    if attribute in TEXTS:
        return raw.decode("utf-8", "replace")
    if attribute in BYTES:
        return raw
    return bool(raw[0]) if len(raw) == 1 else None
