"""Pkcs11KeyStore on modules with the limits of others: what SoftHSM allows, and tells, many do not.

Each test imposes one limit by `shim.c`; what it stands for was seen at SoftHSM, opencryptoki, NSS, tpm2-pkcs11 or
p11-kit, or read in the documents of hardware and cloud modules.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from pkcs11 import Attribute, KeyType, MechanismFlag

import tokenvault as tv
from tests import shims, softhsm, vaults
from tests.shims import Shim
from tests.vaults import issue
from tokenvault.keys import Custody, KeyName, KeyPurpose
from tokenvault.keys.pkcs11.constants import code_name
from tokenvault.keys.pkcs11.cryptoki import Cryptoki
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.keys.uri import parse_pkcs11_uri

SEAL = KeyPurpose.SEAL
GENERAL_ERROR, DEVICE_ERROR, DEVICE_REMOVED, NOT_SUPPORTED = 0x5, 0x30, 0x32, 0x54
DATA_LEN_RANGE, MECHANISM_INVALID, MECHANISM_PARAM_INVALID = 0x21, 0x70, 0x71
KEY_TYPE_INCONSISTENT, KEY_FUNCTION_NOT_PERMITTED, FUNCTION_REJECTED = 0x63, 0x68, 0x200
LOGIN_REQUIRED, PIN_INITIALIZED, FINAL_TRY, LOCKED, PIN_TO_BE_CHANGED = 0x4, 0x8, 0x20000, 0x40000, 0x80000


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shims.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(built: Path, tmp_path: Path, softhsm_uri: str) -> Shim:
    return Shim(built, tmp_path, softhsm_uri)


@pytest.fixture
def uri(shim: Shim) -> str:
    return shim.uri


@pytest.fixture
def memory() -> Iterator[tv.TokenStore]:
    with closing(tv.open_token_store("memory:")) as store:
        yield store


def provisioned(uri: str, store: tv.TokenStore, custody: Custody = Custody.IN_MODULE) -> None:
    with Pkcs11KeyStore(uri) as keys:
        tv.provision(keys, store, custody=custody)


def use_a_vault(uri: str, store: tv.TokenStore) -> None:
    """Open, issue, redeem, provision again, which changes nothing by now."""
    with Pkcs11KeyStore(uri) as keys:
        with vaults.open_vault(keys, store) as vault:
            token = issue(vault).token
            assert vault.detokenize(token, vaults.use()).pan.reveal() == vaults.VISA
        tv.provision(keys, store)


def blocks(count: int) -> bytes:
    return b"".join(number.to_bytes(16, "big") for number in range(count))


# What is asked for, and of whom


@pytest.mark.parametrize("code", [NOT_SUPPORTED, 0x3, DEVICE_ERROR])
@pytest.mark.parametrize("custody", Custody)
def test_a_run_time_user_needs_no_right_to_make_keys(
    shim: Shim, memory: tv.TokenStore, code: int, custody: Custody
) -> None:
    provisioned(shim.uri, memory, custody)
    shim.impose(FAIL_C_GenerateKey=code, FAIL_C_GenerateKeyPair=code, FAIL_C_DestroyObject=code)
    shim.forget_calls()
    use_a_vault(shim.uri, memory)
    assert shim.calls()["C_GenerateKey"] == 0


def plant_foreign_keys(uri: str, count: int) -> None:
    """Keys of others on the token, of both kinds: like ours in all but the label, and as python-pkcs11 makes them."""
    real = uri.replace(str(Path(uri.partition("module-path=")[2].partition("&")[0])), softhsm.module_path())
    with Pkcs11KeyStore(real), closing(softhsm.session(real)) as session:
        for number in range(count):
            session.generate_key(
                KeyType.AES,
                256,
                label=f"payroll-{number}",
                store=True,
                capabilities=MechanismFlag.ENCRYPT if number % 2 else None,
                template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
            )


def test_opening_asks_for_no_more_whatever_else_the_token_holds(shim: Shim, memory: tv.TokenStore) -> None:
    provisioned(shim.uri, memory)
    calls = []
    for others in (0, 40):
        plant_foreign_keys(shim.uri, others)
        shim.forget_calls()
        with Pkcs11KeyStore(shim.uri) as keys, vaults.open_vault(keys, memory):
            calls.append(shim.calls())
    assert calls[0] == calls[1]
    assert calls[0]["C_GetAttributeValue"] <= 8, "one for each key, one for the point of the public key"
    assert calls[0]["C_FindObjectsInit"] <= 80


def test_provisioning_asks_for_no_more_whatever_else_the_token_holds(
    shim: Shim, memory: tv.TokenStore
) -> None:
    plant_foreign_keys(shim.uri, 40)
    provisioned(shim.uri, memory)
    assert shim.calls()["C_GetAttributeValue"] <= 20


def test_nothing_is_finalized_under_the_feet_of_others(shim: Shim, memory: tv.TokenStore) -> None:
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)
    with Pkcs11KeyStore(shim.uri) as keys:
        keys.create(SEAL, Custody.IN_MODULE)
        keys.destroy(KeyName(SEAL, 2))
        keys.create_signer()
    assert shim.calls()["C_Finalize"] == 0
    assert shim.calls()["C_Initialize"] == 1


@pytest.mark.parametrize(
    "code", [MECHANISM_INVALID, GENERAL_ERROR, DEVICE_ERROR, DEVICE_REMOVED, 0x13, 0x101, 0x80000042]
)
def test_a_module_that_makes_no_key_pair_has_a_vault_without_signatures(
    shim: Shim, memory: tv.TokenStore, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    shim.impose(FAIL_C_GenerateKeyPair=code)
    with caplog.at_level(logging.WARNING, "tokenvault"):
        provisioned(shim.uri, memory)
    assert "C_GenerateKeyPair: " in caplog.text
    assert shim.calls()["C_Finalize"] == 0
    use_a_vault(shim.uri, memory)
    with Pkcs11KeyStore(shim.uri) as keys:
        assert keys.signer() is None
        report = tv.verify_audit(memory, keys=keys)
    assert report.intact
    assert report.signed == 0


# Functions that a module lacks: NULL in its list, where a call would end the process


@pytest.mark.parametrize(
    "function",
    [
        "C_Initialize",
        "C_GetSlotList",
        "C_OpenSession",
        "C_Login",
        "C_GenerateKey",
        "C_FindObjectsInit",
        "C_FindObjects",
        "C_FindObjectsFinal",
        "C_EncryptInit",
        "C_Encrypt",
    ],
)
def test_a_function_that_a_module_lacks_is_named(shim: Shim, function: str) -> None:
    shim.impose(**{f"NULL_{function}": 1})
    with pytest.raises(tv.KeyStoreError, match=f"{function}: CKR_FUNCTION_NOT_SUPPORTED") as caught:
        create_and_encrypt(shim.uri)
    assert caught.value.code == "KEY_STORE_MODULE_UNFIT"
    assert shim.calls()["C_Finalize"] == 0, "nothing is tried again that can not succeed"


def test_a_token_that_can_not_be_asked_about_is_none(shim: Shim) -> None:
    shim.impose(NULL_C_GetTokenInfo=1)
    with pytest.raises(tv.KeyStoreError, match="C_GetTokenInfo: CKR_FUNCTION_NOT_SUPPORTED"):
        Pkcs11KeyStore(shim.uri)


@pytest.mark.parametrize(
    "function", ["C_GetInfo", "C_Finalize", "C_CloseSession", "C_WaitForSlotEvent", "C_DestroyObject"]
)
def test_a_vault_needs_no_more_functions_than_it_must(
    shim: Shim, memory: tv.TokenStore, function: str
) -> None:
    """C_GetInfo and C_Finalize: python-pkcs11, where other code has imported it, would call them unseen."""
    shim.impose(**{f"NULL_{function}": 1})
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)


@pytest.mark.parametrize("function", ["C_GetMechanismList", "C_GenerateKeyPair", "C_SignInit", "C_Sign"])
def test_a_module_that_lacks_a_function_of_signing_has_a_vault_without_signatures(
    shim: Shim, memory: tv.TokenStore, function: str
) -> None:
    shim.impose(**{f"NULL_{function}": 1})
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)
    with Pkcs11KeyStore(shim.uri) as keys:
        assert keys.signer() is None


def test_a_module_that_lists_no_mechanisms_has_a_vault_without_signatures(
    shim: Shim, memory: tv.TokenStore
) -> None:
    shim.impose(FAIL_C_GetMechanismList=NOT_SUPPORTED)
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)


def test_a_list_of_mechanisms_that_fails_is_no_lack_of_signatures(shim: Shim) -> None:
    shim.impose(FAIL_C_GetMechanismList=DEVICE_ERROR)
    with Pkcs11KeyStore(shim.uri) as keys:
        with pytest.raises(tv.KeyStoreError, match="C_GetMechanismList: CKR_DEVICE_ERROR"):
            keys.create_signer()
        shim.impose(FAIL_C_GetMechanismList=0)
        assert keys.create_signer() is not None


def test_a_module_without_a_list_of_functions_is_refused(shim: Shim) -> None:
    shim.impose(NULL_LIST=1)
    with pytest.raises(tv.KeyStoreError, match=r"can not be loaded.*C_GetFunctionList"):
        Pkcs11KeyStore(shim.uri)


# What a module tells of a key


def attributes(prefix: str, *names: str) -> dict[str, int]:
    return {f"{prefix}_0x{Attribute[name]:x}": 1 for name in names}


@pytest.mark.parametrize(
    "limits",
    [
        attributes("FALSE", "LOCAL"),  # NSS
        attributes("FALSE", "LOCAL", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE"),
        attributes("UNTOLD", "LOCAL", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE"),
        attributes("UNTOLD", "SENSITIVE", "EXTRACTABLE"),
        attributes("UNTOLD", "SENSITIVE", "NEVER_EXTRACTABLE"),
        attributes("UNTOLD", "VALUE_LEN", "DERIVE", "PRIVATE"),
        attributes("UNTOLD", "DERIVE", "WRAP") | {"UNTOLD_CODE": 0x11},
        attributes("UNTOLD", "LOCAL", "VALUE_LEN") | {"UNTOLD_CODE": 0x6},
    ],
    ids=str,
)
def test_what_a_module_does_not_tell_is_not_held_against_it(shim: Shim, limits: dict[str, int]) -> None:
    shim.impose(**limits)
    with Pkcs11KeyStore(shim.uri) as keys:
        key = keys.create(SEAL, Custody.IN_MODULE)
        assert len(keys.cipher(key).encrypt_blocks(bytes(16))) == 16
        assert keys.create_signer() is not None


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (attributes("TRUE", "EXTRACTABLE"), "EXTRACTABLE"),
        (attributes("FALSE", "SENSITIVE"), "SENSITIVE"),
        (attributes("UNTOLD", "SENSITIVE", "ALWAYS_SENSITIVE"), "SENSITIVE"),
        (attributes("UNTOLD", "EXTRACTABLE", "NEVER_EXTRACTABLE"), "EXTRACTABLE"),
        (attributes("UNTOLD", "SENSITIVE") | attributes("FALSE", "ALWAYS_SENSITIVE"), "SENSITIVE"),
        (attributes("TRUE", "DECRYPT"), "DECRYPT"),
        (attributes("TRUE", "WRAP"), "WRAP"),
        (attributes("FALSE", "TOKEN"), "TOKEN"),
    ],
    ids=str,
)
def test_a_key_that_the_module_may_hand_out_is_refused_and_destroyed(
    shim: Shim, limits: dict[str, int], named: str
) -> None:
    shim.impose(**limits)
    with Pkcs11KeyStore(shim.uri) as keys:
        with pytest.raises(tv.KeyStoreError, match=f"other attributes than asked for.*{named}"):
            keys.create(SEAL, Custody.IN_MODULE)
        shim.impose(**dict.fromkeys(limits, 0))
        assert keys.versions(SEAL) == ()


def test_twins_are_found_by_a_module_that_tells_one_object_at_a_time(shim: Shim) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        keys.create(SEAL, Custody.IN_MODULE)
        keys.create_signer()
        real = shim.uri.replace(str(shim.path), softhsm.module_path())
        with Pkcs11KeyStore(real), closing(softhsm.session(real)) as session:
            label = f"tokenvault/seal/1/{Custody.IN_MODULE.value}"
            session.generate_key(KeyType.AES, 256, label=label, store=True)
    shim.impose(FOUND_AT_ONCE=1)
    with Pkcs11KeyStore(shim.uri) as keys:
        with pytest.raises(tv.KeyStoreError, match="more than one key seal version 1"):
            keys.cipher(KeyName(SEAL, 1)).encrypt_blocks(bytes(16))
        with pytest.raises(tv.KeyStoreError, match="more than one key seal version 1"):
            keys.versions(SEAL)
        assert keys.signer() is not None


def test_an_object_that_a_module_tells_again_and_again_is_one(shim: Shim, memory: tv.TokenStore) -> None:
    shim.impose(FOUND_FOR_EVER=1)
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)


def test_a_token_remembers_destroyed_versions(uri: str) -> None:
    """No version is made twice, and newer ones are found behind any number of destroyed ones."""
    with Pkcs11KeyStore(uri) as keys:
        for _ in range(5):
            keys.create(SEAL, Custody.IN_MODULE)
        for version in (1, 2, 3, 4):
            keys.destroy(KeyName(SEAL, version))
        assert keys.versions(SEAL) == (5,)
        keys.destroy(KeyName(SEAL, 5))
        assert keys.versions(SEAL) == ()
        assert keys.create(SEAL, Custody.IN_PROCESS) == KeyName(SEAL, 6)
    with Pkcs11KeyStore(uri) as keys:
        assert keys.versions(SEAL) == (6,)


# Initialising


def test_arguments_of_initialize(shim: Shim, memory: tv.TokenStore) -> None:
    shim.impose(ARGUMENTS=1)
    with pytest.raises(tv.KeyStoreError, match="C_Initialize: CKR_ARGUMENTS_BAD"):
        Pkcs11KeyStore(shim.uri)
    uri = shim.uri + "&x-init-args=config='x'%20flags=y"
    provisioned(uri, memory)
    use_a_vault(uri, memory)
    assert in_child(lambda: use_a_vault(uri, memory))


def test_a_module_that_others_initialized_is_used_and_never_finalized(
    shim: Shim, memory: tv.TokenStore
) -> None:
    shim.initialize_as_the_host()
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(KeyName(SEAL, 1))
        before = cipher.encrypt_blocks(bytes(16))
        shim.impose(DEAD=DEVICE_ERROR)
        for _ in range(3):
            with pytest.raises(tv.KeyStoreError):
                cipher.encrypt_blocks(bytes(16))
        shim.impose(DEAD=0)
        assert cipher.encrypt_blocks(bytes(16)) == before
        assert shim.calls()["C_Finalize"] == 0
        shim.finalize_as_the_host()
        assert cipher.encrypt_blocks(bytes(16)) == before
        assert shim.calls()["C_Finalize"] == 1


def in_child(action: object) -> bool:
    """Whether an action ends without an exception in a forked child."""
    pid = os.fork()
    if pid == 0:
        outcome = 1
        try:
            action()  # type: ignore[operator] # what a test gives can be called
            outcome = 0
        finally:
            os._exit(outcome)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("knows_forks", [False, True])
def test_a_forked_child_initializes_first(shim: Shim, knows_forks: bool) -> None:
    """It finalises only when told that the module is initialised: what it holds may be the parent's connection."""
    shim.impose(KNOWS_FORKS=int(knows_forks))
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        before = cipher.encrypt_blocks(bytes(16))
        ids: list[int] = []
        reader, writer = os.pipe()

        def child() -> None:
            os.write(writer, str(os.getpid()).encode())
            assert cipher.encrypt_blocks(bytes(16)) == before
            assert keys.versions(SEAL) == (1,)

        assert in_child(child)
        ids.append(int(os.read(reader, 20)))
        os.close(reader)
        os.close(writer)
        first = ["C_Initialize"] if knows_forks else ["C_Initialize", "C_Finalize", "C_Initialize"]
        assert shim.order(ids[0])[: len(first) + 1] == [*first, "C_GetSlotList"]
        assert cipher.encrypt_blocks(bytes(16)) == before


@pytest.mark.parametrize("fault", ["LOGOUT_EVERY", "LOSE_SESSIONS_EVERY", "FAIL_EVERY"])
def test_a_module_that_initializes_only_once_recovers_without(
    shim: Shim, memory: tv.TokenStore, fault: str
) -> None:
    shim.impose(ONCE=1, **{fault: 3})
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(KeyName(SEAL, 1))
        assert len({cipher.encrypt_blocks(bytes(16)) for _ in range(20)}) == 1
    assert shim.calls()["C_Initialize"] == 1
    assert shim.calls()["C_Finalize"] == 0


# Slots


BASE = 2**60 + 12_345


def slots_of(shim: Shim) -> list[int]:
    """The slots of the token, as the module numbers them now."""
    label = parse_pkcs11_uri(shim.uri).token
    cryptoki = Cryptoki(str(shim.path))
    return [slot for slot in cryptoki.slots() if cryptoki.token(slot).label == label]


def by_slot(shim: Shim, slot: int) -> str:
    return f"pkcs11:slot-id={slot}?" + shim.uri.partition("?")[2]


@pytest.mark.parametrize("code", [0xE0, 0xE1, 0x3, NOT_SUPPORTED, DEVICE_ERROR])
def test_empty_slots_are_passed_over(shim: Shim, memory: tv.TokenStore, code: int) -> None:
    shim.impose(EMPTY_SLOTS=code, SLOT_BASE=BASE)
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)
    with pytest.raises(tv.KeyStoreError, match=f"no token that fits.*C_GetTokenInfo: {code_name(code)}"):
        Pkcs11KeyStore(by_slot(shim, 2**64 - 2))


def test_a_slot_of_any_number_is_named_by_it(shim: Shim, memory: tv.TokenStore) -> None:
    shim.impose(SLOT_BASE=BASE)
    with Pkcs11KeyStore(shim.uri):
        (slot,) = slots_of(shim)
    assert slot > BASE
    provisioned(by_slot(shim, slot), memory)
    use_a_vault(by_slot(shim, slot), memory)


def test_two_tokens_that_tell_the_same_are_told_apart_by_their_slots(shim: Shim) -> None:
    shim.impose(TWINS=1)
    with pytest.raises(tv.KeyStoreError, match=r"several tokens fit.*serial=.*slot-id=") as caught:
        Pkcs11KeyStore(shim.uri)
    assert caught.value.code == "KEY_STORE_TOKEN_AMBIGUOUS"
    slots = slots_of(shim)
    assert len(slots) == 2
    assert all(str(slot) in str(caught.value) for slot in slots)
    assert shim.calls()["C_Login"] == 0
    for slot in slots:
        with Pkcs11KeyStore(by_slot(shim, slot)) as keys:
            assert keys.create(SEAL, Custody.IN_MODULE).version


def test_slots_that_are_numbered_anew_leave_the_token_the_same(shim: Shim) -> None:
    shim.impose(SESSIONS=3)
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        before = cipher.encrypt_blocks(bytes(16))
        for number in (1, 2):
            shim.impose(SLOT_BASE=number * BASE)
            assert keys.versions(SEAL) == (1,)
            shim.impose(DEAD=DEVICE_REMOVED)
            with pytest.raises(tv.KeyStoreError):
                cipher.encrypt_blocks(bytes(16))
            shim.impose(DEAD=0, SLOT_BASE=number * BASE + 1)
            assert cipher.encrypt_blocks(bytes(16)) == before
            assert keys.versions(SEAL) == (1,)


def test_a_pin_that_was_refused_is_not_tried_again_in_another_slot(shim: Shim) -> None:
    shim.pin_path.write_text("a wrong one")
    for number in range(3):
        shim.impose(SLOT_BASE=number * BASE)
        with pytest.raises(tv.KeyStoreError, match="refused the PIN"):
            Pkcs11KeyStore(shim.uri)
    assert shim.calls()["C_Login"] == 1


# Sessions and sizes


EXHAUSTED = [0xB1, 0x31, 0x2, 0xB4, 0x80000042]


@pytest.mark.parametrize("code", EXHAUSTED)
@pytest.mark.parametrize("sessions", [1, 2, 3])
def test_a_module_with_few_sessions(shim: Shim, memory: tv.TokenStore, sessions: int, code: int) -> None:
    shim.impose(SESSIONS=sessions, SESSIONS_CODE=code)
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)
    with Pkcs11KeyStore(shim.uri) as keys:
        for _ in range(2):
            key = keys.create(SEAL, Custody.IN_MODULE)
            assert len(keys.cipher(key).encrypt_blocks(blocks(3_000))) == 48_000
        keys.destroy(KeyName(SEAL, 2))
        assert keys.versions(SEAL) == (1, 3)
        assert keys.create_signer() is not None


@pytest.mark.parametrize("code", EXHAUSTED)
def test_a_module_without_a_session_is_told_as_such_and_not_hammered(shim: Shim, code: int) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        keys.create(SEAL, Custody.IN_MODULE)
    shim.impose(FAIL_C_OpenSession=code)
    shim.forget_calls()
    with pytest.raises(
        tv.KeyStoreError, match=f"out of sessions or memory.*C_OpenSession: {code_name(code)}"
    ) as caught:
        Pkcs11KeyStore(shim.uri)
    assert caught.value.code == "KEY_STORE_OUT_OF_SESSIONS"
    calls = shim.calls()
    assert calls["C_OpenSession"] <= 6
    assert calls["C_Finalize"] <= 1
    shim.impose(FAIL_C_OpenSession=0)
    Pkcs11KeyStore(shim.uri).close()


def test_a_module_whose_sessions_others_use_is_initialized_anew_once(shim: Shim) -> None:
    """Which ends sessions of ours that it did not close; as long as it does not help, it is not done again."""
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        before = cipher.encrypt_blocks(bytes(16))
        shim.forget_calls()
        shim.impose(FAIL_C_OpenSession=0xB1, LOSE_SESSIONS_EVERY=1)
        for _ in range(5):
            with pytest.raises(tv.KeyStoreError, match="out of sessions"):
                cipher.encrypt_blocks(bytes(16))
        assert shim.calls()["C_Finalize"] <= 1
        shim.impose(FAIL_C_OpenSession=0, LOSE_SESSIONS_EVERY=0)
        assert cipher.encrypt_blocks(bytes(16)) == before


@pytest.mark.parametrize("code", EXHAUSTED)
def test_open_sessions_go_on_where_no_further_one_opens(shim: Shim, code: int) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        before = cipher.encrypt_blocks(bytes(16))
        shim.impose(FAIL_C_OpenSession=code, FAIL_EVERY=2)
        assert cipher.encrypt_blocks(bytes(16)) == before
        shim.impose(FAIL_EVERY=0)
        for _ in range(6):
            assert cipher.encrypt_blocks(bytes(16)) == before


def test_refused_logins_use_up_no_sessions(shim: Shim) -> None:
    shim.impose(SESSIONS=2)
    right = shim.pin_path.read_text()
    for number in range(4):
        shim.pin_path.write_text(f"wrong {number}")
        with pytest.raises(tv.KeyStoreError, match="refused the PIN"):
            Pkcs11KeyStore(shim.uri)
    shim.pin_path.write_text(right)
    Pkcs11KeyStore(shim.uri).close()


@pytest.mark.parametrize(
    ("size", "code"),
    [
        (2_048, DATA_LEN_RANGE),
        (16_384, GENERAL_ERROR),
        (40_000, DEVICE_ERROR),
        (16, 0x20),
        (64, 0x80000001),
        (64, KEY_FUNCTION_NOT_PERMITTED),
    ],
)
def test_a_module_that_takes_little_at_once(shim: Shim, size: int, code: int) -> None:
    """Found out by use, whatever the return code, and remembered."""
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        count = min(size, 6_000)
        expected = cipher.encrypt_blocks(blocks(count))
    shim.impose(BYTES=size, BYTES_CODE=code)
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(KeyName(SEAL, 1))
        keys._sessions.state().module.limits.__init__()  # type: ignore[misc] # as in a process of its own
        assert cipher.encrypt_blocks(blocks(count)) == expected
        cipher.encrypt_blocks(blocks(count))
        shim.forget_calls()
        assert cipher.encrypt_blocks(blocks(count)) == expected
        calls = shim.calls()
    assert calls["C_Encrypt"] == calls["C_EncryptInit"], "nothing is tried again that was refused"
    assert calls["C_EncryptInit"] <= 2 * count * 16 / size + 1
    assert calls["C_Finalize"] == 0


def test_calls_start_small_and_grow(shim: Shim) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        cipher.encrypt_blocks(blocks(1_024))
        used = keys.operations
        cipher.encrypt_blocks(blocks(100_000))
        assert keys.operations - used <= 7
        used = keys.operations
        cipher.encrypt_blocks(blocks(50_000))
        assert keys.operations - used == 1


def test_a_failure_is_not_taken_for_a_limit(shim: Shim) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        cipher.encrypt_blocks(blocks(4_000))
        before = keys._sessions.state().module.limits.good
        shim.impose(FAIL_EVERY=3)
        for _ in range(10):
            cipher.encrypt_blocks(blocks(4_000))
        shim.impose(FAIL_EVERY=0, DEAD=DEVICE_REMOVED)
        with pytest.raises(tv.KeyStoreError):
            cipher.encrypt_blocks(blocks(8_000))
        shim.impose(DEAD=0)
        cipher.encrypt_blocks(blocks(8_000))
        limits = keys._sessions.state().module.limits
        assert limits.refused is None
        assert limits.good >= before


@pytest.mark.parametrize("custody", Custody)
def test_a_session_that_may_not_write_is_enough_to_run(
    shim: Shim, memory: tv.TokenStore, custody: Custody
) -> None:
    provisioned(shim.uri, memory, custody)
    shim.impose(READ_ONLY=1)
    use_a_vault(shim.uri, memory)
    with Pkcs11KeyStore(shim.uri) as keys, pytest.raises(tv.KeyStoreError, match="write-protected"):
        keys.create(SEAL, custody)


@pytest.mark.parametrize("code", [0xB4, 0xE2, GENERAL_ERROR])
def test_a_module_whose_sessions_all_write(shim: Shim, memory: tv.TokenStore, code: int) -> None:
    shim.impose(NO_READ_ONLY=code)
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)


ECB_REFUSALS = [
    MECHANISM_INVALID,
    MECHANISM_PARAM_INVALID,
    KEY_FUNCTION_NOT_PERMITTED,
    KEY_TYPE_INCONSISTENT,
    NOT_SUPPORTED,
    FUNCTION_REJECTED,
    0x80000042,
]


@pytest.mark.parametrize("code", ECB_REFUSALS)
def test_a_module_without_ecb_keeps_keys_that_work_in_the_process(
    shim: Shim, memory: tv.TokenStore, code: int
) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        expected = keys.cipher(keys.create(KeyPurpose.FPE, Custody.IN_PROCESS)).encrypt_blocks(blocks(3))
    shim.impose(NO_ECB=code)
    with Pkcs11KeyStore(shim.uri) as keys:
        assert keys.cipher(KeyName(KeyPurpose.FPE, 1)).encrypt_blocks(blocks(3)) == expected
        in_module = keys.cipher(keys.create(KeyPurpose.FPE, Custody.IN_MODULE))
        with pytest.raises(tv.KeyStoreError, match=f"C_EncryptInit: {code_name(code)}"):
            in_module.encrypt_blocks(blocks(1))
        keys.destroy(KeyName(KeyPurpose.FPE, 2))
    provisioned(shim.uri, memory, Custody.IN_PROCESS)
    use_a_vault(shim.uri, memory)


@pytest.mark.parametrize("code", [MECHANISM_INVALID, KEY_FUNCTION_NOT_PERMITTED])
def test_a_module_without_ecb_is_told_of_the_custody_that_it_has(shim: Shim, code: int) -> None:
    shim.impose(NO_ECB=code)
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        for _ in range(2):
            with pytest.raises(tv.KeyStoreError, match="IN_PROCESS") as caught:
                cipher.encrypt_blocks(blocks(1))
            assert caught.value.code == "KEY_STORE_MODULE_UNFIT"


@pytest.mark.parametrize("ecb", ECB_REFUSALS)
@pytest.mark.parametrize("cbc", [MECHANISM_INVALID, 0x80000043])
def test_a_module_with_neither_ecb_nor_cbc_is_told_both_codes(shim: Shim, ecb: int, cbc: int) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        key = keys.create(SEAL, Custody.IN_PROCESS)
        shim.impose(NO_ECB=ecb, NO_CBC=cbc)
        for _ in range(2):
            with pytest.raises(tv.KeyStoreError, match=f"ECB.*{code_name(ecb)}.*CBC.*{code_name(cbc)}"):
                keys.cipher(key)


def test_one_refusal_of_a_vendors_own_code_is_no_lack_of_ecb(shim: Shim) -> None:
    """It may say anything: that a key in the process was derived by CBC then, does not tell of keys in the module."""
    with Pkcs11KeyStore(shim.uri) as keys:
        derived = keys.create(SEAL, Custody.IN_PROCESS)
        cipher = keys.cipher(keys.create(KeyPurpose.FPE, Custody.IN_MODULE))
        shim.impose(NO_ECB=0x80000042)
        keys.cipher(derived)
        shim.impose(NO_ECB=0)
        assert len(cipher.encrypt_blocks(blocks(2))) == 32


# PINs


def test_ten_objects_with_a_wrong_pin_make_one_login(shim: Shim) -> None:
    right = shim.pin_path.read_text()
    shim.pin_path.write_text("a wrong one")
    for _ in range(10):
        with pytest.raises(tv.KeyStoreError, match=r"refused the PIN.*pin-source"):
            Pkcs11KeyStore(shim.uri)
    assert shim.calls()["C_Login"] == 1
    assert not in_child(lambda: Pkcs11KeyStore(shim.uri))
    assert shim.calls()["C_Login"] == 1, "a child knows too"
    shim.pin_path.write_text(right)
    Pkcs11KeyStore(shim.uri).close()
    assert shim.calls()["C_Login"] == 2


@pytest.mark.parametrize(
    ("on", "off", "told"),
    [
        (FINAL_TRY, 0, "one more wrong PIN would lock"),
        (LOCKED, 0, "PIN is locked"),
        (0, PIN_INITIALIZED, "no user PIN yet"),
    ],
)
def test_no_pin_is_tried_on_a_token_that_is_about_to_lock_or_has_none(
    shim: Shim, on: int, off: int, told: str
) -> None:
    shim.impose(FLAGS_ON=on, FLAGS_OFF=off)
    for _ in range(3):
        with pytest.raises(tv.KeyStoreError, match=told):
            Pkcs11KeyStore(shim.uri)
    assert shim.calls()["C_Login"] == 0
    shim.impose(FLAGS_ON=0, FLAGS_OFF=0)
    Pkcs11KeyStore(shim.uri).close()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0xA0, "refused the PIN .*CKR_PIN_INCORRECT"),
        (0xA1, "CKR_PIN_INVALID"),
        (0xA2, "too short or too long"),
        (0xA3, "expired"),
        (0xA4, "locked"),
        (0x102, "no user PIN yet"),
    ],
)
def test_each_refusal_of_a_pin_has_its_own_text_and_is_not_tried_again(
    shim: Shim, code: int, told: str
) -> None:
    shim.impose(FAIL_C_Login=code)
    for _ in range(3):
        with pytest.raises(tv.KeyStoreError, match=told):
            Pkcs11KeyStore(shim.uri)
    assert shim.calls()["C_Login"] == 1


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0x104, "as another user.*USER_ANOTHER_ALREADY_LOGGED_IN"),
        (0x105, "as many users.*USER_TOO_MANY_TYPES"),
    ],
)
def test_a_login_that_others_stand_in_the_way_of_says_so_and_not_that_the_pin_is_wrong(
    shim: Shim, code: int, told: str
) -> None:
    shim.impose(FAIL_C_Login=code)
    with pytest.raises(tv.KeyStoreError, match=told) as caught:
        Pkcs11KeyStore(shim.uri)
    assert "PIN" not in str(caught.value)
    assert caught.value.code == "KEY_STORE_LOGIN_REFUSED"
    assert shim.calls()["C_Login"] == 1
    shim.impose(FAIL_C_Login=0)
    Pkcs11KeyStore(shim.uri).close()


def test_a_pin_that_is_to_be_changed_is_used_and_warned_of(
    shim: Shim, memory: tv.TokenStore, caplog: pytest.LogCaptureFixture
) -> None:
    shim.impose(FLAGS_ON=PIN_TO_BE_CHANGED)
    with caplog.at_level(logging.WARNING, "tokenvault"):
        provisioned(shim.uri, memory)
    assert "PIN is to be changed" in caplog.text
    use_a_vault(shim.uri, memory)


def make_and_use(keys: Pkcs11KeyStore) -> None:
    assert keys.create_signer() is not None
    keys.cipher(keys.create(SEAL, Custody.IN_MODULE)).encrypt_blocks(bytes(16))


@pytest.mark.parametrize(
    "function", ["C_FindObjectsInit", "C_GenerateKey", "C_GenerateKeyPair", "C_EncryptInit"]
)
def test_a_pin_that_expired_after_the_login_is_named_by_every_function(shim: Shim, function: str) -> None:
    """As where a token lets a user in whose PIN is to be changed, and then refuses all but that."""
    shim.impose(**{f"FAIL_{function}": 0xA3})
    with Pkcs11KeyStore(shim.uri) as keys:
        with pytest.raises(tv.KeyStoreError, match=f"PIN has expired.*{function}: CKR_PIN_EXPIRED") as caught:
            make_and_use(keys)
        assert caught.value.code == "KEY_STORE_PIN_EXPIRED"
        assert shim.calls()["C_Finalize"] == 0
        assert shim.calls()["C_Login"] == 1
        shim.impose(**{f"FAIL_{function}": 0})
        make_and_use(keys)


@pytest.mark.parametrize("code", [0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0x102])
@pytest.mark.parametrize("function", ["C_GenerateKeyPair", "C_Login"])
def test_a_matter_of_the_pin_leaves_no_vault_without_signatures(
    shim: Shim, memory: tv.TokenStore, function: str, code: int
) -> None:
    """Only a module that can not, or may not, make the pair does."""
    shim.impose(SESSIONS=1)  # so that the session that writes is logged in on anew
    with Pkcs11KeyStore(shim.uri) as keys:
        shim.impose(**{f"FAIL_{function}": code})
        with pytest.raises(tv.KeyStoreError, match=f"{function}: CKR_[A-Z_]*PIN"):
            tv.provision(keys, memory) if function == "C_GenerateKeyPair" else keys.create_signer()


@pytest.mark.parametrize("code", [GENERAL_ERROR, 0x6, 0x80000005])
def test_a_login_that_fails_otherwise_is_tried_once_a_call(shim: Shim, code: int) -> None:
    """It may be the PIN all the same: some modules say so with any code."""
    shim.impose(FAIL_C_Login=code)
    for _ in range(2):
        with pytest.raises(tv.KeyStoreError, match="C_Login: "):
            Pkcs11KeyStore(shim.uri)
    assert shim.calls()["C_Login"] == 2
    shim.impose(FAIL_C_Login=0)
    Pkcs11KeyStore(shim.uri).close()


def test_pin_from_the_environment(shim: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = shim.uri.partition("&pin-source")[0] + "&pin-source=env:VAULT_PIN"
    with pytest.raises(tv.KeyStoreError, match="VAULT_PIN that pin-source names is not set"):
        Pkcs11KeyStore(uri)
    monkeypatch.setenv("VAULT_PIN", "a wrong one")
    with pytest.raises(tv.KeyStoreError, match="refused the PIN") as caught:
        Pkcs11KeyStore(uri)
    assert "a wrong one" not in str(caught.value)
    monkeypatch.setenv("VAULT_PIN", shim.pin_path.read_text().strip())
    with Pkcs11KeyStore(uri) as keys:
        assert keys.versions(SEAL) == ()


def test_a_token_without_pin(shim: Shim, memory: tv.TokenStore) -> None:
    uri = shim.uri.partition("&pin-source")[0]
    with pytest.raises(tv.KeyStoreError, match="wants a PIN"):
        Pkcs11KeyStore(uri)
    shim.log_in_by_itself()
    shim.impose(FLAGS_OFF=LOGIN_REQUIRED | PIN_INITIALIZED, FAIL_C_Login=GENERAL_ERROR)
    provisioned(uri, memory)
    use_a_vault(uri, memory)
    assert shim.calls()["C_Login"] == 0
    with Pkcs11KeyStore(shim.uri) as keys:  # a PIN that is not wanted does no harm
        assert keys.versions(SEAL) == (1,)


# What a module tells of its sessions


@pytest.mark.parametrize(
    "limits",
    [
        {"NULL_C_GetSessionInfo": 1},
        {"FAIL_C_GetSessionInfo": NOT_SUPPORTED},
        {"FAIL_C_GetSessionInfo": GENERAL_ERROR},
        {"FAIL_C_GetSessionInfo": DEVICE_ERROR},
        {"FAIL_C_GetSessionInfo": 0x80000042},
    ],
    ids=str,
)
def test_a_module_that_tells_nothing_of_sessions_is_logged_in_as_the_login_said(
    shim: Shim, memory: tv.TokenStore, limits: dict[str, int]
) -> None:
    shim.impose(**limits)
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)
    with Pkcs11KeyStore(shim.uri) as keys:
        assert keys.signer() is not None
        keys.destroy(KeyName(SEAL, 1))
        assert keys.versions(SEAL) == ()
        with pytest.raises(tv.KeyStoreError, match="has no key seal version 1"):
            keys.cipher(KeyName(SEAL, 1))
    assert shim.calls()["C_Finalize"] <= 2, "only for the key that is missing"


@pytest.mark.parametrize("fault", ["LOGOUT_EVERY", "LOSE_SESSIONS_EVERY", "FAIL_EVERY"])
def test_a_module_that_tells_nothing_of_sessions_recovers(shim: Shim, fault: str) -> None:
    shim.impose(FAIL_C_GetSessionInfo=NOT_SUPPORTED, ONCE=1, **{fault: 3})
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        assert len({cipher.encrypt_blocks(bytes(16)) for _ in range(20)}) == 1


@pytest.mark.parametrize("told", [0, NOT_SUPPORTED])
def test_a_search_that_finds_nothing_because_it_is_logged_out_is_made_again(shim: Shim, told: int) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        key = keys.create(SEAL, Custody.IN_MODULE)
        keys.create_signer()
        shim.impose(FAIL_C_GetSessionInfo=told)
        calls: list[Callable[[], bool]] = [
            lambda: keys.versions(SEAL) == (1,),
            lambda: len(keys.cipher(key).encrypt_blocks(bytes(16))) == 16,
            lambda: keys.signer() is not None,
            lambda: keys.create_signer() is not None,
            lambda: keys.create(SEAL, Custody.IN_MODULE) == KeyName(SEAL, 2),
        ]
        for call in calls:
            shim.log_out_at_next_search()
            shim.forget_calls()
            assert call()
            assert 1 <= shim.calls()["C_Login"] <= 5, "each with the right PIN"
            assert shim.calls()["C_Finalize"] == 0


def test_a_session_that_is_told_to_be_gone_has_found_nothing_that_counts(shim: Shim) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        shim.impose(FAIL_C_GetSessionInfo=0xB3)
        with pytest.raises(tv.KeyStoreError, match="C_GetSessionInfo: CKR_SESSION_HANDLE_INVALID"):
            keys.versions(SEAL)
        shim.impose(FAIL_C_GetSessionInfo=0)
        assert keys.versions(SEAL) == ()


@pytest.mark.parametrize("told", [0, NOT_SUPPORTED])
@pytest.mark.parametrize("every", [0, 1])
def test_a_module_that_logs_its_user_out_is_given_a_wrong_pin_once(shim: Shim, told: int, every: int) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        key = keys.create(SEAL, Custody.IN_MODULE)
        cipher = keys.cipher(key)
        right = shim.pin_path.read_text()
        shim.pin_path.write_text("a wrong one")
        shim.impose(FAIL_C_GetSessionInfo=told, LOGOUT_EVERY=every)
        shim.log_out_at_next_search()
        shim.forget_calls()
        for _ in range(3):
            with pytest.raises(tv.KeyStoreError, match="refused the PIN"):
                cipher.encrypt_blocks(bytes(16)) if every else keys.versions(SEAL)
        assert shim.calls()["C_Login"] == 1
        shim.pin_path.write_text(right)
        shim.impose(LOGOUT_EVERY=0)
        assert keys.versions(SEAL) == (1,)
        assert len(cipher.encrypt_blocks(bytes(16))) == 16


def test_a_module_that_logs_its_user_out_with_any_session_is_logged_in_again(
    shim: Shim, memory: tv.TokenStore
) -> None:
    shim.impose(LOGOUT_AT_CLOSE=1, ONCE=1)
    provisioned(shim.uri, memory)
    use_a_vault(shim.uri, memory)
    with Pkcs11KeyStore(shim.uri) as keys:
        for version in (2, 3):
            assert keys.create(SEAL, Custody.IN_MODULE) == KeyName(SEAL, version)
            assert keys.signer() is not None
        keys.destroy(KeyName(SEAL, 2))
        assert keys.versions(SEAL) == (1, 3)


@pytest.mark.parametrize("told", [0, NOT_SUPPORTED])
def test_what_could_not_be_proved_is_destroyed_also_by_a_user_who_was_logged_out(
    shim: Shim, told: int
) -> None:
    shim.impose(LOGOUT_AFTER_ATTRIBUTES=1, FAIL_C_GetSessionInfo=told, **attributes("FALSE", "SENSITIVE"))
    with Pkcs11KeyStore(shim.uri) as keys:
        with pytest.raises(tv.KeyStoreError, match=r"other attributes than asked for.*SENSITIVE"):
            keys.create(SEAL, Custody.IN_MODULE)
        shim.impose(**dict.fromkeys(attributes("FALSE", "SENSITIVE"), 0))
        assert keys.versions(SEAL) == ()
        assert keys.create_signer() is not None


def test_a_module_whose_every_login_succeeds_may_hold_no_keys(shim: Shim) -> None:
    shim.impose(FAIL_C_GetSessionInfo=NOT_SUPPORTED, LOGS_IN_AGAIN=1)
    with Pkcs11KeyStore(shim.uri) as keys:
        assert keys.versions(SEAL) == ()


# Modules that hang, die and come back


def test_a_module_that_hangs_holds_nobody_for_longer_than_the_bound(shim: Shim) -> None:
    """Each caller is told in time, callers after that at once; when it is back, the next call works."""
    with Pkcs11KeyStore(shim.uri + "&x-call-seconds-max=1") as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        before = cipher.encrypt_blocks(bytes(16))
        shim.impose(HANG=1)
        start = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(cipher.encrypt_blocks, bytes(16)) for _ in range(6)]
            calls += [pool.submit(keys.versions, SEAL)]  # type: ignore[arg-type] # another answer
            errors = [call.exception(30) for call in calls]
        assert time.monotonic() - start < 10
        for error in errors:
            assert isinstance(error, tv.KeyStoreError)
            assert "did not answer" in str(error)
            assert "C_" in str(error)
        time.sleep(0.2)
        start = time.monotonic()
        with pytest.raises(tv.KeyStoreError, match="did not answer"):
            cipher.encrypt_blocks(bytes(16))
        assert time.monotonic() - start < 0.9
        shim.impose(HANG=0)
        assert cipher.encrypt_blocks(bytes(16)) == before
        assert keys.versions(SEAL) == (1,)


@pytest.mark.parametrize("function", ["C_Initialize", "C_GetSlotList", "C_OpenSession", "C_Login"])
def test_opening_a_module_that_hangs(shim: Shim, function: str) -> None:
    shim.impose(**{f"HANG_{function}": 1})
    with pytest.raises(tv.KeyStoreError, match=f"did not answer.*{function}"):
        Pkcs11KeyStore(shim.uri + "&x-call-seconds-max=1")
    shim.impose(**{f"HANG_{function}": 0})
    Pkcs11KeyStore(shim.uri).close()


def test_closing_a_store_whose_module_hangs(shim: Shim) -> None:
    keys = Pkcs11KeyStore(shim.uri + "&x-call-seconds-max=1")
    shim.impose(HANG=1)
    keys.close()
    shim.impose(HANG=0)
    with pytest.raises(tv.KeyStoreError, match="closed"):
        keys.versions(SEAL)


@pytest.mark.parametrize(
    ("code", "name"),
    [(DEVICE_ERROR, "CKR_DEVICE_ERROR"), (DEVICE_REMOVED, "CKR_DEVICE_REMOVED"), (0x80000123, "0x80000123")],
)
def test_a_module_that_dies_is_named_and_used_again_when_it_is_back(shim: Shim, code: int, name: str) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        before = cipher.encrypt_blocks(bytes(16))
        for _ in range(2):
            shim.impose(DEAD=code)
            for _ in range(2):
                with pytest.raises(tv.KeyStoreError, match=f"C_[A-Za-z]+: {name}"):
                    cipher.encrypt_blocks(bytes(16))
            shim.impose(DEAD=0)
            assert cipher.encrypt_blocks(bytes(16)) == before
            assert keys.versions(SEAL) == (1,)


def test_a_dead_module_is_not_hammered(shim: Shim) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        cipher = keys.cipher(keys.create(SEAL, Custody.IN_MODULE))
        before = cipher.encrypt_blocks(bytes(16))
        shim.impose(DEAD=DEVICE_ERROR)
        shim.forget_calls()
        until = time.monotonic() + 1

        def hammer(_: int) -> None:
            while time.monotonic() < until:
                with pytest.raises(tv.KeyStoreError):
                    cipher.encrypt_blocks(bytes(16))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(hammer, range(8)))
        assert sum(shim.calls().values()) < 300
        shim.impose(DEAD=0)
        assert cipher.encrypt_blocks(bytes(16)) == before


@pytest.mark.parametrize("function", ["C_GetSlotList", "C_OpenSession", "C_EncryptInit", "C_GenerateKey"])
def test_errors_name_the_function_and_the_return_code(shim: Shim, function: str) -> None:
    with Pkcs11KeyStore(shim.uri) as keys:
        keys.create(SEAL, Custody.IN_MODULE)
    shim.impose(**{f"FAIL_{function}": DEVICE_ERROR})
    with pytest.raises(tv.KeyStoreError, match=f"{function}: CKR_DEVICE_ERROR"):
        encrypt_and_create(shim.uri)


def encrypt_and_create(uri: str) -> None:
    with Pkcs11KeyStore(uri) as keys:
        keys.cipher(KeyName(SEAL, 1)).encrypt_blocks(bytes(16))
        keys.create(SEAL, Custody.IN_MODULE)


def create_and_encrypt(uri: str) -> None:
    with Pkcs11KeyStore(uri) as keys:
        keys.cipher(keys.create(SEAL, Custody.IN_MODULE)).encrypt_blocks(bytes(16))


def test_what_the_loader_says_is_told(shim: Shim, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(tv.KeyStoreError, match=r"can not be loaded.*(ELF|file too short|header)"):
        Pkcs11KeyStore(shim.uri.replace(str(shim.path), str(tmp_path / "text.so")))
    import _ctypes  # a library that is no PKCS#11 module

    with pytest.raises(tv.KeyStoreError, match="no function C_GetFunctionList"):
        Pkcs11KeyStore(shim.uri.replace(str(shim.path), _ctypes.__file__))
