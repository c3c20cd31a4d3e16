"""The command: every command, in text and as JSON; secrets that are refused; what is shown, and what never is."""

from __future__ import annotations

import csv
import json
import os
import pwd
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests import softhsm
from tests.command import (
    ACQUIRER,
    CONFIGURATION,
    MASTERCARD,
    SHOP,
    VISA,
    Command,
    Ran,
    provision_with_a_short_delay,
    run_in_terminal,
)
from tests.postgres_server import PostgresServer, new_name
from tests.vault_workers import card_number
from tokenvault.cli import configuration, run
from tokenvault.cli import person as who
from tokenvault.cli.commands import apps, dual_control, setup
from tokenvault.cli.exits import EXIT_CODES, exit_code_of
from tokenvault.cli.output import mask_digits, plain
from tokenvault.cli.pictures import draw
from tokenvault.cli.views import STATUS_STYLES
from tokenvault.model import iso
from tokenvault.model.pan import Pan, luhn_check_digit
from tokenvault.stores import schema_sql
from tokenvault.testing.clock import ManualClock
from tokenvault.vault.health import NO_ANSWER

GROUPS = {"keys": apps.keys, "audit": apps.audit, "schema": apps.schema, "programs": apps.programs,
          "requestors": apps.requestors, "reveal": apps.reveal, "export": apps.export}  # fmt: skip
SPELLINGS = [VISA, "4111 1111 1111 1111", "4111-1111-1111-1111", f"--domain={VISA}", f"x{VISA}"]


@pytest.fixture(scope="module")
def key_store(softhsm_folder: Path) -> str:
    return softhsm.new_token(softhsm_folder)


@pytest.fixture
def folder(tmp_path: Path, key_store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("TOKENVAULT_STORE", raising=False)
    monkeypatch.delenv("TOKENVAULT_CONFIG", raising=False)
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", key_store)
    (tmp_path / "tokenvault.toml").write_text(CONFIGURATION)
    return tmp_path


@pytest.fixture
def unprovisioned(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    return Command(capsys, monkeypatch)


@pytest.fixture
def command(unprovisioned: Command) -> Command:
    assert unprovisioned("provision").code == 0
    return unprovisioned


def commands() -> Iterator[tuple[str, ...]]:
    """Every command, by its words."""
    for added in apps.app.registered_commands:
        yield (str(added.name),)
    for name, group in GROUPS.items():
        for added in group.registered_commands:
            yield (name, str(added.name))


# Working with tokens.


def test_a_token_s_life_goes_by_its_reference(command: Command) -> None:
    reference = command.issue()
    assert command.json("suspend", reference, "--by", "issuer")["suspended_by"] == ["issuer"]
    assert command("check", reference, "-r", SHOP).code == 1
    assert command.json("resume", reference, "--by", "issuer")["status"] == "active"
    use = ("-r", SHOP, "--id", "tx-1", "--amount", "4200", "--currency", "EUR")
    assert command.json("check", reference, *use)["allowed"] is True
    assert command.json("detokenize", reference, *use)["pan"] == "411111******1111"
    events = command.json("history", reference)["events"]
    assert [event["action"] for event in events] == ["ISSUE", "SUSPEND", "CHECK", "RESUME", "DETOKENIZE"]
    assert events[-1]["transaction_id"] == "tx-1"
    assert command.json("delete", reference, "--yes")["last4"] is None
    assert command("suspend", reference, "--by", "issuer").code == 6


def test_a_token_gets_another_expiry_customer_metadata_and_assurance_and_winds_down(command: Command) -> None:
    reference = command.issue()
    told = command.json("update-token", reference, "--token-expiry", "2041-03", "--customer", "c-1")
    assert (told["token_expiry"], told["customer"]) == ("2041-03", "c-1")
    pairs = '{"order": "17"}'
    assert command.json("update-token", reference, "--metadata", "-", stdin=pairs)["metadata"] == {
        "order": "17"
    }
    assert command.json("update-token", reference, "--customer", "")["customer"] is None
    at = ("--at", "2026-01-02T03:04:05+01:00")
    assert command.json("update-assurance", reference, "--method", "22", *at)["assurance"] == "22"
    assert command.json("update-assurance", reference, "--none")["assurance"] is None
    over = ("wind-down", reference, "--purge-after", "2040-06-30T00:00:00Z")
    assert command.json(*over)["status"] == "winding down"
    assert command("detokenize", reference, "-r", SHOP).code == 5
    assert command(*over, "-r", "40099999999").code == 5
    for wrong in (
        ("update-token", reference),
        ("update-token", reference, "--token-expiry", "2000-01"),
        ("update-token", reference, "--metadata", "-"),
        ("update-assurance", reference),
        ("update-assurance", reference, "--method", "22", "--none"),
        ("update-assurance", reference, "--method", "22", "--at", "2026-01-02T03:04:05"),
        ("wind-down", reference, "--purge-after", VISA[:8]),
        ("wind-down", reference, "--purge-after", "2020-01-01T00:00:00Z"),
    ):
        ran = command(*wrong, stdin="[1]")
        assert (ran.code, VISA[:8] in ran.err) == (2, False), (wrong, ran)


def test_each_status_has_its_color() -> None:
    assert STATUS_STYLES.keys() == {status.value for status in tv.TokenStatus}


def test_an_inactive_token_is_activated(command: Command) -> None:
    reference = command.issue(VISA, "one-time", "--inactive")
    assert command.json("info", reference)["status"] == "inactive"
    assert command.json("activate", reference)["status"] == "active"


@pytest.mark.parametrize(
    "text", ['{"merchants": ["M-1"]}', 'merchants = ["M-1"]\nvalid_until = 2040-01-01T00:00:00Z']
)
def test_a_domain_comes_from_json_or_toml_in_a_file_or_on_the_standard_input(
    command: Command, text: str
) -> None:
    Path("domain").write_text(text)
    reference = command.issue(VISA, "one-time", "--domain", "domain")
    violations = command("check", reference, "-r", SHOP, "--merchant", "M-2", "--json").document["violations"]
    assert [each["code"] for each in violations] == ["MERCHANT_NOT_ALLOWED"]
    assert command("update-domain", reference, "--none").code == 0
    assert command("check", reference, "-r", SHOP, "--merchant", "M-2").code == 0
    assert command("update-domain", reference, "--domain", "-", stdin=text).code == 0
    assert command("check", reference, "-r", SHOP, "--merchant", "M-2").code == 1


def test_a_renewed_card_stands_behind_the_tokens_of_the_old_one(command: Command) -> None:
    reference = command.issue()
    changed = command.json("update-card", "--new-pan", "--expiry", "2040-01", stdin=f"{VISA}\n{MASTERCARD}\n")
    assert [each["reference"] for each in changed["tokens"]] == [reference]
    assert command.json("tokens", stdin=f"{MASTERCARD}\n")["tokens"][0]["token_expiry"] == "2040-01"
    assert command.json("tokens", stdin=f"{VISA}\n")["tokens"] == []


def test_every_control_that_failed_is_told(command: Command) -> None:
    reference = command.issue(VISA, "card-on-file")
    told = command(
        "detokenize", reference, "-r", ACQUIRER, "--channel", "atm", "--amount", "25001", "--currency", "EUR"
    )
    assert told.code == 5
    assert "REQUESTOR_NOT_ALLOWED" in told.err
    assert "CHANNEL_NOT_ALLOWED" in told.err
    error = command("detokenize", reference, "-r", ACQUIRER, "--json").document["error"]
    assert error["type"] == "DomainRestrictionError"
    assert {each["code"] for each in error["violations"]} == {
        "REQUESTOR_NOT_ALLOWED",
        "CHANNEL_NOT_ALLOWED",
        "AMOUNT_TOO_HIGH",
    }


def test_deleting_asks_first_and_a_token_is_masked_unless_it_is_asked_for(command: Command) -> None:
    reference = command.issue()
    refused = command("delete", reference)
    assert refused.code == 2
    assert "--yes" in refused.err
    masked = command.json("info", reference)["token"]
    whole = command.json("info", reference, "--show-token")["token"]
    assert masked == f"{'*' * 12}{whole[-4:]}"
    assert whole not in command("info", reference).out
    assert whole in command("tokens", "--show-token", stdin=f"{VISA}\n").out


# Many cards.


def test_cards_are_imported_and_lines_that_are_wrong_are_rejected_by_their_number(command: Command) -> None:
    lines = [
        "pan,expiry",
        f"{VISA},2039-12",
        f"{MASTERCARD[:-1]}5,2039-12",
        MASTERCARD,
        f"{MASTERCARD},2039-12",
        "",
        "4111",
    ]
    Path("cards.csv").write_text("\n".join(lines))
    options = ("-r", SHOP, "-p", "card-on-file", "--to", "tokens.csv", "--rejects", "rejects.csv")
    ran = command("import-cards", "cards.csv", *options, "--json")
    assert (ran.code, ran.document["issued"], ran.document["rejected"]) == (1, 2, 3)
    tokens = Path("tokens.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in tokens] == ["line", "2", "5"]
    assert tokens[1].split(",")[3:] == ["1111", "2039-12"]
    rejects = Path("rejects.csv").read_text()
    assert [line.split(",")[0] for line in rejects.splitlines()] == ["line", "3", "4", "7"]
    assert not any(pan[:12] in rejects + ran.out + ran.err for pan in (VISA, MASTERCARD))
    assert {stat.S_IMODE(os.stat(name).st_mode) for name in ("tokens.csv", "rejects.csv")} == {0o600}
    again = command("import-cards", "cards.csv", *options)
    assert again.code == 2
    assert "name a new file" in again.err


def test_cards_come_from_the_standard_input_too(command: Command) -> None:
    options = ("-r", SHOP, "-p", "one-time", "--to", "tokens.csv", "--rejects", "rejects.csv")
    assert command.json("import-cards", "-", *options, stdin=f"pan\n{VISA}\n")["issued"] == 1


@pytest.mark.parametrize("text", ["", "number\n1\n", "pan,pan\n1,1\n", f"{VISA}\n", "pan,cvv\n1,1\n"])
def test_a_file_of_cards_without_its_header_is_refused_and_not_repeated(command: Command, text: str) -> None:
    options = ("-r", SHOP, "-p", "one-time", "--to", "tokens.csv", "--rejects", "rejects.csv")
    ran = command("import-cards", "-", *options, stdin=text)
    assert ran.code == 2
    assert VISA not in ran.out + ran.err


def given_token(number: int, bin_digits: str = "999913") -> str:
    payload = f"{bin_digits}{number:09}"
    return payload + luhn_check_digit(payload)


def row_of(number: int, **given: object) -> dict[str, object]:
    return {"token": given_token(number), "pan": card_number(number), "expiry": "2039-12", **given}


WRONG_ROWS: list[tuple[dict[str, object], str]] = [
    ({"token": given_token(90, "999912")}, "TOKEN_FORMAT_DIFFERS"),
    ({"pan": VISA[:-1] + "2"}, "PAN_CHECK_DIGIT"),
    ({"expiry": "12/39"}, "EXPIRY_FORM"),
    ({"requestor": "40099999999"}, "REQUESTOR_UNKNOWN"),
    ({"program": "none"}, "PROGRAM_UNKNOWN"),
    ({"pan": VISA, "customer": VISA}, "CARD_NUMBER_IN_TEXT"),
    ({"token": given_token(1)}, "TOKEN_TAKEN"),
]


def import_tokens(command: Command, name: str, text: str, *options: str) -> tuple[Ran, list[list[str]]]:
    """Import a file. Returns what was told, and the lines of rejects with their codes."""
    Path(name).write_text(text, encoding="utf-8", errors="surrogateescape")
    Path("rejects.csv").unlink(missing_ok=True)
    common = ("-r", SHOP, "-p", "one-time", "--rejects", "rejects.csv", "--json")
    ran = command("import-tokens", name, *common, *options)
    rejects = Path("rejects.csv").read_text()
    shown = ran.out + ran.err + rejects
    assert not any(card_number(number) in shown or given_token(number) in shown for number in range(99))
    assert VISA not in shown
    return ran, [line[:2] for line in csv.reader(rejects.splitlines()[1:])]


def test_tokens_with_given_values_come_from_a_csv_file_and_wrong_lines_are_told_by_their_code(
    command: Command,
) -> None:
    columns = ["token", "pan", "expiry", "requestor", "program", "customer"]
    rows = [row_of(1), *(row_of(50 + n) | wrong for n, (wrong, _) in enumerate(WRONG_ROWS)), row_of(2)]
    lines = [",".join(str(row.get(name, "")) for name in columns) for row in rows]
    text = "\n".join([",".join(columns), *lines, "", "1,2", f'"{card_number(80)}', ""])
    ran, rejects = import_tokens(command, "tokens.csv", text)
    assert ran.code == 1
    assert (ran.document["imported"], ran.document["rejected"]) == (2, len(WRONG_ROWS) + 2)
    assert rejects == [
        *([str(line), code] for line, (_, code) in enumerate(WRONG_ROWS, 3)),
        [str(len(WRONG_ROWS) + 5), "ROW_MISSHAPEN"],
        [str(len(WRONG_ROWS) + 6), "ROW_MISSHAPEN"],
    ]
    assert command.json("detokenize", given_token(2), "-r", SHOP)["pan"] == Pan.parse(card_number(2)).masked
    history = command.json("history", given_token(1))["events"]
    assert (history[0]["codes"], history[0]["operator"]) == (["IMPORTED"], who.person())
    assert stat.S_IMODE(os.stat("rejects.csv").st_mode) == 0o600


def test_tokens_come_from_json_lines_with_domain_and_metadata(command: Command) -> None:
    good = row_of(1, domain={"merchants": ["M-1"]}, metadata={"from": "vendor"}, customer="c-1")
    lines = [
        json.dumps(good),
        json.dumps(row_of(2, domain={"merchant": ["M-1"]})),
        json.dumps(row_of(3, cvv="123")),
        "",
        json.dumps([card_number(4)]),
        f'{{"pan": "{card_number(5)}"',
        "[" * 60_000,
        json.dumps(row_of(6, customer="x" * 70_000)),
        json.dumps(row_of(7)).replace("2039", "\udcff"),
        json.dumps(row_of(8, pan=4111)),
    ]
    ran, rejects = import_tokens(command, "tokens.jsonl", "\n".join(lines))
    assert (ran.code, ran.document["imported"]) == (1, 1)
    assert [line for line, _ in rejects] == ["2", "3", "5", "6", "7", "8", "9", "10"]
    assert {code for line, code in rejects if line in ("5", "6", "7", "8")} == {"ROW_MISSHAPEN"}
    found = command.json("info", given_token(1), "--show-token")
    assert (found["customer"], found["metadata"]) == ("c-1", {"from": "vendor"})
    assert command("check", given_token(1), "-r", SHOP, "--merchant", "M-2").code == 1
    again, rejects = import_tokens(command, "tokens.txt", lines[0], "--json-lines")
    assert (again.code, again.document["imported"], rejects) == (0, 1, [])


def test_tokens_come_from_the_standard_input_inactive_and_with_a_domain_of_all(command: Command) -> None:
    Path("domain.json").write_text('{"merchants": ["M-1"]}')
    options = ("-r", SHOP, "-p", "one-time", "--rejects", "rejects.csv", "--inactive", "-d", "domain.json")
    text = f"token,pan\n{given_token(1)},{card_number(1)}\n"
    assert command.json("import-tokens", "-", *options, stdin=text)["imported"] == 1
    assert command.json("activate", given_token(1))["status"] == "active"
    assert command("check", given_token(1), "-r", SHOP, "--merchant", "M-2").code == 1
    refused = command("import-tokens", "-", *options, stdin=text)
    assert (refused.code, "name a new file" in refused.err) == (2, True)


@pytest.mark.parametrize(
    "text", ["", "token,pan\n", f"{VISA}\n", f"{VISA},{VISA}\n{VISA},{VISA}\n", "token,pan,cvv\n1,2,3\n"]
)
def test_a_file_of_tokens_without_its_columns_is_refused_and_not_repeated(
    command: Command, text: str
) -> None:
    options = ("-r", SHOP, "-p", "one-time", "--rejects", "rejects.csv")
    ran = command("import-tokens", "-", *options, stdin=text)
    assert ran.code == 2
    assert VISA not in ran.out + ran.err
    assert command("import-tokens", "none.csv", "--rejects", "others.csv").code == 2


def test_long_work_shows_on_a_terminal_how_far_it_has_come_and_nowhere_else(
    command: Command, folder: Path
) -> None:
    rows = [f"{given_token(number)},{card_number(number)}" for number in range(200)]
    Path("tokens.csv").write_text("\n".join(["token,pan", *rows]))
    Path("cards.csv").write_text("\n".join(["pan", *map(card_number, range(200))]))
    common = ("-r", SHOP, "-p", "one-time", "--rejects")
    for arguments, shown in (
        (("import-tokens", "tokens.csv", *common, "one.csv"), "importing"),
        (("import-cards", "cards.csv", *common, "two.csv", "--to", "new.csv"), "issuing"),
        (("audit", "verify"), "events"),
        (("keys", "reseal"), "records"),
        (("schema", "upgrade"), "upgrading"),
    ):
        code, screen = run_in_terminal(arguments, folder)
        assert (code, shown in screen) == (0, True), screen
        assert "\x1b[?25l" in screen, "the cursor is hidden while a bar is there"
        assert "\x1b[?25h" in screen
        assert not any(each in screen for row in rows for each in row.split(","))
    piped = command("audit", "verify")
    assert (piped.code, piped.err) == (0, "")


# What never is an argument, and never shown.


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_card_number_as_an_argument_is_refused_before_anything_is_done(command: Command, text: str) -> None:
    ran = command("issue", "-r", SHOP, "-p", "one-time", text)
    assert ran.code == 2
    assert "history of your shell" in " ".join(ran.err.split())
    assert "1111" not in ran.out + ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--pan", "x"), ("--card=x",), ("--pin", "1234"), ("--passphrase=x",), ("--password", "x"), ("--secret=x",),
        ("--key-store", "x"), ("pkcs11:token=a?pin-value=1234",), ("--x=postgresql://u:hidden@h/d",),
    ],
)  # fmt: skip
def test_secrets_as_arguments_are_refused_with_what_to_do_instead(
    command: Command, arguments: tuple[str, ...]
) -> None:
    ran = command("status", *arguments)
    assert ran.code == 2
    assert "no arguments" in " ".join(ran.err.split())
    assert not any(secret in ran.out + ran.err for secret in ("1234", "hidden"))


def test_a_mistyped_card_number_is_not_repeated_in_a_message(command: Command) -> None:
    ran = command("status", "4111111111111112")
    assert ran.code == 2
    assert "4111" not in ran.out + ran.err
    assert "[digits]" in ran.err


@given(st.text("0123456789", min_size=13, max_size=19), st.sampled_from(["", " ", "-"]), st.text(max_size=8))
def test_no_message_holds_a_run_of_digits(digits: str, separator: str, around: str) -> None:
    number = separator.join(digits[at : at + 4] for at in range(0, len(digits), 4))
    assert number not in mask_digits(f"{around} {number} {around}")


def test_tokens_of_configured_programs_are_arguments(command: Command) -> None:
    told = command.json("issue", "-r", SHOP, "-p", "one-time", stdin=f"{VISA}\n")
    assert command("info", told["token"]).code == 0
    assert command("info", told["token"], "--config=tokenvault.toml").code == 0


def test_the_card_number_is_shown_in_a_private_file_or_a_terminal_and_nowhere_else(
    command: Command, folder: Path
) -> None:
    reference = command.issue()
    arguments = ("detokenize", reference, "-r", SHOP, "--show-pan")
    process = [sys.executable, "-m", "tokenvault.cli", *arguments]
    piped = subprocess.run(process, capture_output=True, text=True, timeout=60)
    assert piped.returncode == 2
    assert "The token was not used" in " ".join(piped.stderr.split())
    for mode, code in ((0o644, 2), (0o640, 2), (0o600, 0)):
        file = os.open("card", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.fchmod(file, mode)
        done = subprocess.run(process, stdout=file, stderr=subprocess.DEVNULL, timeout=60)
        os.close(file)
        assert (done.returncode, VISA in Path("card").read_text()) == (code, code == 0)
    code, shown = run_in_terminal(arguments, folder)
    assert (code, VISA in shown) == (0, True)
    assert [event["action"] for event in command.json("history", reference)["events"]].count(
        "DETOKENIZE"
    ) == 2


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets another user run the command."""
    return lambda name: monkeypatch.setattr(dual_control, "person", lambda: name)


def test_two_users_get_one_card_number_out(
    command: Command, person: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = command.issue()
    person("alice")
    request = command.json("reveal", "request", reference, "--purpose", "chargeback")["id"]
    assert command("reveal", "approve", request).code == 5
    person("bob")
    assert command.json("reveal", "approve", request)["approved_by"] == "bob"
    person("alice")
    piped = command("reveal", "show", request)
    assert piped.code == 2, "whoever reads the pipe may keep it; the request is as good as before"
    monkeypatch.setattr(dual_control, "require_private_output", lambda: None)
    assert VISA in command("reveal", "show", request).out
    assert command("reveal", "show", request).code == 5


def test_the_person_is_who_logged_in_also_behind_sudo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    login = tmp_path / "loginuid"
    monkeypatch.setattr(who, "LOGIN", login)
    login.write_text("4000001")
    for user in (0, 4_000_000):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        assert who.person() == "uid 4000001"
    login.write_text("0")
    assert who.person() == pwd.getpwuid(0).pw_name


@pytest.mark.parametrize("said", [None, "4294967295", "", "who"])
def test_where_nobody_logged_in_the_person_is_the_user_of_the_process_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str | None
) -> None:
    monkeypatch.setattr(who, "LOGIN", tmp_path / "loginuid")
    if said is not None:
        (tmp_path / "loginuid").write_text(said)
    for variable in ("USER", "LOGNAME", "SUDO_USER", "USERNAME"):
        monkeypatch.setenv(variable, "bob")
    assert who.person() == pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert who.person() == "uid 4000000"


def test_cards_move_into_another_vault_by_two_users(
    command: Command, folder: Path, person: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = command.issue()
    key = ec.generate_private_key(ec.SECP256R1())
    pem, locked = serialization.Encoding.PEM, serialization.BestAvailableEncryption(b"a password")
    Path("public.pem").write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    Path("private.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked))
    person("alice")
    asked = command.json(
        "export", "request", "--public-key", "public.pem", "--purpose", "chargeback", "-r", SHOP
    )
    assert asked["terms"][1:] == [f"requestor {SHOP}"]
    write = ("export", "write", asked["id"], "--public-key", "public.pem", "--to")
    assert command(*write, "refused.jwe").code == 5
    person("bob")
    assert command("export", "approve", asked["id"]).code == 0
    person("alice")
    assert command.json(*write, "cards.jwe")["tokens"] == 1
    assert stat.S_IMODE(Path("cards.jwe").stat().st_mode) == 0o600
    monkeypatch.setenv("TOKENVAULT_STORE", "sqlite:///other.db")
    assert command("provision").code == 0
    opened = ("import-export", "cards.jwe", "--private-key", "private.pem")
    assert command(*opened).code == 2
    monkeypatch.setenv("TOKENVAULT_EXPORT_PASSWORD", "a password")
    assert command.json(*opened) == {"imported": 1, "rejected": 0, "errors": {}}
    assert command.json("info", reference)["reference"] == reference
    assert command("import-export", "none.jwe", "--private-key", "private.pem").code == 2


def test_a_prompt_does_not_echo_and_the_output_is_wide_as_the_terminal(
    command: Command, folder: Path
) -> None:
    for columns in (80, 140):
        code, shown = run_in_terminal(
            ["issue", "-r", SHOP, "-p", "one-time"], folder, typed=f"{VISA}\n", columns=columns
        )
        assert code == 0, shown
        assert "Card number (not shown)" in shown
        assert VISA not in shown
        assert "active" in shown
        assert max(map(len, shown.splitlines())) <= columns + 40  # colors take no room


def test_no_command_shows_a_card_number(command: Command) -> None:
    """Every command that reads or finds a card: neither output has more of it than its ends."""
    reference = command.issue()
    use = ("-r", SHOP)
    ran = [
        command(*arguments, *form, stdin=f"{VISA}\n{VISA}\n")
        for arguments in (
            ("issue", *use, "-p", "one-time"), ("issue", *use, "-p", "card-on-file", "--expiry", "2000-01"),
            ("tokens",), ("info", reference), ("check", reference, *use), ("detokenize", reference, *use),
            ("history", reference), ("update-card", "--expiry", "2039-11"), ("update-card", "--new-pan"),
            ("audit", "verify"), ("audit", "export"), ("capacity",), ("status",), ("health",),
        )
        for form in ((), ("--json",))
    ]  # fmt: skip
    assert len(ran) == 28
    assert not any(VISA[:12] in each.out + each.err for each in ran)


def test_a_defect_shows_no_traceback_and_nothing_of_the_call(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(VISA)

    monkeypatch.setattr(tv.Vault, "tokens_of", broken)
    ran = command("tokens", stdin=f"{VISA}\n")
    assert ran.code == 70
    assert "Traceback" not in ran.err
    assert VISA not in ran.err


# JSON, exit codes, help.


def test_every_command_takes_json_and_a_configuration_and_says_so(command: Command) -> None:
    found = list(commands())
    assert len(found) >= 28
    for words in found:
        ran = command(*words, "--help")
        assert ran.code == 0
        assert "--json" in ran.out, words
        assert "--config" in ran.out, words


def test_with_json_the_standard_output_is_one_document_also_where_it_fails(command: Command) -> None:
    for arguments in (
        ("info", "0" * 32),
        ("info",),
        ("bogus",),
        ("check", "0" * 32, "-r", "1"),
        ("schema", "sql", "--for", "x"),
    ):
        ran = command(*arguments, "--json")
        assert ran.code == ran.document["error"]["exit_code"] != 0
        assert ran.err == ""


def test_each_error_of_the_library_has_its_exit_code() -> None:
    errors = [
        getattr(tv, name) for name in tv.__all__ if name.endswith("Error") and name != "TokenVaultError"
    ]
    codes = {kind: exit_code_of(kind.__new__(kind)) for kind in errors}
    assert 70 not in codes.values()
    assert len({each.code for each in EXIT_CODES}) == len(EXIT_CODES)
    assert exit_code_of(tv.TokenVaultError("defect")) == 70


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("info", "0" * 32), 4),
        (("bogus",), 2),
        (("info", "1234"), 2),
        (("info", "0" * 32, "--config", "no.toml"), 3),
        (("issue", "-r", ACQUIRER, "-p", "one-time"), 5),
        (("keys", "signer"), 0),
    ],
)
def test_exit_codes_tell_what_happened(command: Command, arguments: tuple[str, ...], code: int) -> None:
    assert command(*arguments, stdin=f"{VISA}\n").code == code


def test_a_database_that_is_not_provisioned_is_told(unprovisioned: Command) -> None:
    ran = unprovisioned("info", "0" * 32)
    assert ran.code == 3
    assert "provision" in ran.err
    assert unprovisioned("schema", "status").code == 1


def test_whoever_closes_a_pipe_early_gets_no_traceback(command: Command) -> None:
    command.issue()
    piped = f"{sys.executable} -m tokenvault.cli audit export | true; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=60)
    assert ran.stderr == ""
    assert ran.stdout.strip() in ("0", "141")


def test_values_become_plain_json() -> None:
    values = {
        "expiry": tv.CardExpiry(2030, 1), "pan": tv.Pan.parse(VISA), "domain": tv.Domain(channels={tv.Channel.ATM}),
        "money": tv.Money(1, "EUR"), "actors": frozenset(tv.Actor), "nothing": None,
    }  # fmt: skip
    assert json.loads(json.dumps(plain(values))) == {
        "expiry": "2030-01", "pan": "411111******1111", "domain": {"channels": ["atm"]},
        "money": {"amount": 1, "currency": "EUR"}, "nothing": None,
        "actors": ["cardholder", "grantor", "issuer", "requestor", "vault"],
    }  # fmt: skip


# Configuration.


def test_the_environment_goes_before_the_file(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENVAULT_STORE", "sqlite:///other.db")
    assert command("status").code == 3
    assert command.json("provision")["token_store"] == "sqlite:///other.db"
    monkeypatch.setenv("TOKENVAULT_CONFIG", "elsewhere.toml")
    Path("elsewhere.toml").write_text("")
    assert command.json("programs", "list")["programs"] == []


@pytest.mark.parametrize(
    "text",
    [
        "programmes = {}",
        "key_store = 5",
        'custody = "elsewhere"',
        "programs = []",
        '[programs.x]\nbin = "999912"\nmaking = "other"',
        '[programs.x]\nbin = "999912"\ndomains = {}',
        '[programs.x]\nbin = "999912"\ndomain = { channel = ["atm"] }',
        "[programs.x]\nbin = 999912",
        "[programs.x]\nlength = 16",
        "[requestors.1]",
        '[requestors.40012345678]\npermissions = ["all"]',
        "[requestors.40012345678.domain]\nvalid_from = 2030-01-01T00:00:00",
        "= nothing",
        '[codes]\ncurrencies = ["xyz"]',
        '[codes]\ncurrency = ["XYZ"]',
        'codes = "XYZ"',
    ],
)
def test_a_configuration_that_is_misspelled_is_refused_and_names_the_place(
    unprovisioned: Command, text: str
) -> None:
    Path("tokenvault.toml").write_text(text)
    ran = unprovisioned("programs", "list")
    assert ran.code == 3
    assert "configuration" in ran.err


@pytest.mark.parametrize(
    "address", ["postgresql://vault:hidden@db/vault", "pkcs11:token=t?module-path=/m.so&pin-value=hidden"]
)
def test_a_secret_in_a_file_that_others_can_read_is_refused_and_never_shown(
    unprovisioned: Command, address: str
) -> None:
    path = Path("tokenvault.toml")
    path.write_text(f'token_store = "{address}"')
    path.chmod(0o644)
    ran = unprovisioned("programs", "list")
    assert ran.code == 3
    assert "chmod 600" in ran.err
    path.chmod(0o600)
    assert unprovisioned("programs", "list").code == 0
    assert "hidden" not in configuration.shown_address(address)
    assert "hidden" not in repr(configuration.load(path))


def test_codes_of_tomorrow_are_those_of_the_file(
    unprovisioned: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iso, "_added", frozenset())
    head = "[requestors.40012345678.domain]\ncountries = ['ZZ']\ncurrencies = ['XYZ']\n"
    Path("tokenvault.toml").write_text(head)
    assert unprovisioned("programs", "list").code == 3
    Path("tokenvault.toml").write_text(f"{head}[codes]\ncurrencies = ['XYZ']\ncountries = ['ZZ']\n")
    assert unprovisioned("programs", "list").code == 0


def test_programs_and_requestors_are_those_of_the_file(command: Command) -> None:
    programs = {each["name"]: each for each in command.json("programs", "list")["programs"]}
    assert programs["card-on-file"]["domain"] == {"channels": ["ecommerce", "merchant_initiated"]}
    assert programs["one-time"]["expected_tokens"] == 50_000
    acquirer = command.json("requestors", "list")["requestors"][1]
    assert acquirer["permissions"] == ["detokenize"]
    assert acquirer["domain"] == {"max_amount": {"amount": 25_000, "currency": "EUR"}}


def test_programs_and_requestors_of_the_database_are_put_shown_and_disabled(command: Command) -> None:
    Path("tokenvault.toml").write_text('directory = "stored"\ntoken_store = "sqlite:///vault.db"\n')
    Path("program.toml").write_text('bin = "999914"\npans = { lengths = [16, 19] }\n')
    assert command("programs", "put", "fuel", "program.toml").code == 0
    assert [each["name"] for each in command.json("programs", "list")["programs"]] == ["fuel"]
    table = 'programs = ["fuel"]\npermissions = ["issue"]\n'
    assert command.json("requestors", "put", SHOP, "-", stdin=table)["permissions"] == ["issue"]
    assert command.json("requestors", "show", SHOP)["disabled"] is False
    assert command.json("issue", "-r", SHOP, "-p", "fuel", "--expiry", "2040-01", stdin=f"{VISA}\n")[
        "reference"
    ]
    assert command.json("requestors", "disable", SHOP)["disabled"] is True
    assert "nothing: it is disabled" in command("requestors", "show", SHOP).out
    assert command("issue", "-r", SHOP, "-p", "fuel", "--expiry", "2040-01", stdin=f"{VISA}\n").code == 5
    assert command("requestors", "list").code == 2
    assert command("requestors", "put", SHOP, "-", stdin='program = ["fuel"]').code == 2
    assert command("requestors", "show", ACQUIRER).code == 2


@pytest.mark.parametrize("table", ["[programs.fuel]\nbin = '999914'", f"[requestors.{SHOP}]\nprograms = []"])
def test_programs_of_the_database_and_of_the_file_are_not_mixed(unprovisioned: Command, table: str) -> None:
    Path("tokenvault.toml").write_text(f'directory = "stored"\ntoken_store = "sqlite:///vault.db"\n{table}\n')
    for arguments in (("provision",), ("programs", "list"), ("issue", "-r", SHOP, "-p", "fuel")):
        ran = unprovisioned(*arguments, stdin=f"{VISA}\n")
        assert ran.code == 3, ran
        assert "directory" in ran.err
    Path("tokenvault.toml").write_text(f'directory = "elsewhere"\n{table}\n')
    assert unprovisioned("programs", "list").code == 3


# Looking after.


def test_keys_are_listed_and_those_that_are_missing_made(
    unprovisioned: Command, softhsm_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENVAULT_KEY_STORE", softhsm_uri)
    assert unprovisioned.json("keys", "list") == {
        "keys": {"seal": [], "fingerprint": [], "fpe": [], "audit": []},
        "signer": False,
    }
    made = unprovisioned.json("keys", "create", "--custody", "module")
    assert [each["purpose"] for each in made["created"]] == ["seal", "fingerprint", "fpe", "audit"]
    assert unprovisioned.json("keys", "create")["created"] == []
    listed = unprovisioned.json("keys", "list")
    assert listed["signer"]
    assert [[each["version"] for each in versions] for versions in listed["keys"].values()] == [[1]] * 4
    assert unprovisioned.json("keys", "signer")["public_key"].startswith("-----BEGIN PUBLIC KEY-----")


def test_the_trail_is_verified_exported_and_anchored(command: Command) -> None:
    command.issue()
    report = command.json("audit", "anchor", "--to", "anchor.json")
    assert report["intact"]
    assert command.json("audit", "verify", "--since", "anchor.json")["signed"] == report["signed"] > 0
    Path("key.pem").write_text(command.json("keys", "signer")["public_key"])
    assert command("audit", "verify", "--without-keys", "--public-key", "key.pem").code == 0
    lines = command("audit", "export").out.splitlines()
    assert [json.loads(line)["genuine"] for line in lines] == [True] * len(lines)
    assert command.json("audit", "export", "--to", "events.jsonl")["events"] == len(lines)
    with sqlite3.connect("vault.db") as database:
        database.execute("DELETE FROM events WHERE number = 2")
    database.close()
    broken = command("audit", "verify", "--json")
    assert (broken.code, broken.document["intact"]) == (1, False)
    assert "removed" in command("audit", "verify").out
    assert command("audit", "anchor", "--to", "other.json").code == 1
    assert not Path("other.json").exists()


def test_what_is_past_its_time_goes_into_an_archive_and_the_trail_verifies(
    command: Command, key_store: str
) -> None:
    reference = command.issue()
    a_year_ago = ManualClock(time.time_ns() // 1_000_000 - 400 * 86_400_000)
    program = tv.TokenProgram("old", format=tv.TokenFormat(bin="999914"))
    shop = tv.TokenRequestor(SHOP, programs={"old"})
    with (
        closing(tv.open_key_store(key_store)) as keys,
        closing(tv.open_token_store("sqlite:///vault.db")) as store,
        tv.Vault(keys, store, programs=[program], requestors=[shop], clock=a_year_ago) as vault,
    ):
        for number in range(3):
            vault.issue(VISA, requestor=SHOP, program="old", customer=f"c-{number}")
    refused = command("purge", "--events", "300", "--yes")
    assert "ARCHIVE_MISSING" in refused.err
    assert command("purge", "--events", "30", "--yes").code != 0
    assert command("purge", "--events", "300", "--archive", "a", "--without-archive", "--yes").code != 0
    purge = (
        "purge",
        "--events",
        "300",
        "--uses",
        "300",
        "--archive",
        "archive.jsonl",
        "--operator",
        "ann",
        "--yes",
    )
    done = command.json(*purge)
    assert (done["done"], done["unreadable"], done["tombstones"], done["events"]) == (0, 0, 0, 4)
    assert command.json(*purge)["events"] == 0
    report = command.json("audit", "verify", "--archive", "archive.jsonl")
    assert (report["intact"], report["purged"], report["archived"]) == (True, 4, 4)
    added = command.json("audit", "archive", "--to", "archive.jsonl")["done"]
    assert added > 0
    assert "events added" in command("audit", "archive", "--to", "new.jsonl").out
    told = command("purge", "--tombstones", "100", "--random-program", "one-time", "--yes").out
    assert "0 tombstones and 0 events gone" in told
    assert command.json("info", reference)["reference"] == reference


def test_what_a_restore_lost_is_acknowledged_once_and_only_where_somebody_says_yes(command: Command) -> None:
    who_answers = (
        "--operator",
        "alice",
        "--reason",
        "restored from the backup of May",
        "--since",
        "anchor.json",
    )
    command.issue()
    with closing(sqlite3.connect("vault.db")) as file, closing(sqlite3.connect("backup.db")) as backup:
        file.backup(backup)
    command.issue(MASTERCARD)
    assert command("audit", "anchor", "--to", "anchor.json").code == 0
    nothing = command("audit", "acknowledge", *who_answers, "--yes", "--json")
    assert (nothing.code, nothing.document["intact"]) == (1, True)
    for name in ("vault.db", "vault.db-wal", "vault.db-shm"):
        Path(name).unlink(missing_ok=True)
    Path("backup.db").rename("vault.db")
    assert command("audit", "verify", "--since", "anchor.json").code == 1
    unsaid = command("audit", "acknowledge", *who_answers)
    assert (unsaid.code, "Say so with --yes" in " ".join(unsaid.err.split())) == (2, True)
    assert command("audit", "verify", "--since", "anchor.json").code == 1
    done = command("audit", "acknowledge", *who_answers, "--yes", "--json")
    assert (done.code, done.document["acknowledged"] >= 1) == (0, True)
    assert command("audit", "verify", "--since", "anchor.json").code == 0
    lines = [json.loads(line) for line in command("audit", "export").out.splitlines()]
    assert [(line["action"], line["operator"]) for line in lines if line["operator"] == "alice"] == [
        ("ACKNOWLEDGE", "alice")
    ]


def test_an_export_goes_on_where_the_one_before_ended(command: Command) -> None:
    command.issue()
    files = ("--to", "events.jsonl", "--after", "position.json")
    first = command.json("audit", "export", *files)["events"]
    command.issue()
    assert command.json("audit", "export", *files)["events"] > 0
    assert command.json("audit", "export", *files)["events"] == 0
    lines = Path("events.jsonl").read_text()
    assert sorted(lines.splitlines()) == sorted(command("audit", "export").out.splitlines())
    assert len(lines.splitlines()) > first
    assert stat.S_IMODE(Path("events.jsonl").stat().st_mode) == 0o600
    with Path("events.jsonl").open("a") as file:
        file.write('{"what was written": "and not kept"')
    assert command.json("audit", "export", *files)["events"] == 0
    assert Path("events.jsonl").read_text() == lines
    shown = [command("audit", "export", "--after", "shown.json", "--ocsf").out for _ in range(2)]
    assert {json.loads(line)["class_uid"] for line in shown[0].splitlines()} == {3004}
    assert shown[1] == ""


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ("touch mine.txt", ("--to", "mine.txt", "--after", "new.json"), "name a new file"),
        ("echo 4111111111111111 > p.json", ("--after", "p.json"), "holds no position"),
        ("echo '[[[' > p.json", ("--after", "p.json"), "holds no position"),
        ("touch mine.txt", ("--to", "mine.txt", "--after", "kept.json"), "elsewhere"),
        ("truncate -s 9 events.jsonl", ("--to", "events.jsonl", "--after", "kept.json"), "another file"),
        ("mkdir d", ("--after", "d"), "can not be read"),
    ],
)
def test_an_export_does_not_write_over_a_file_that_is_not_its_own(
    command: Command, make: str, options: tuple[str, ...], message: str
) -> None:
    command.issue()
    assert command("audit", "export", "--to", "events.jsonl", "--after", "kept.json").code == 0
    subprocess.run(make, shell=True, check=True)  # noqa: S602 # of this file
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    ran = command("audit", "export", *options)
    assert (ran.code, message in ran.err) == (2, True), ran
    assert VISA not in ran.err
    for path, content in before.items():
        if not path.name.startswith("vault.db"):
            assert path.read_bytes() == content


def test_an_export_that_follows_is_killed_and_goes_on_without_loss_or_repeat(command: Command) -> None:
    arguments = ("audit", "export", "--follow", "--to", "events.jsonl", "--after", "position.json")
    for number in range(5):
        with subprocess.Popen([sys.executable, "-m", "tokenvault.cli", *arguments]) as process:
            try:
                command.issue()
                wanted = len(command("audit", "export").out.splitlines()) - (number % 2)
                until = time.monotonic() + 60
                while not Path("events.jsonl").exists() or (
                    Path("events.jsonl").read_bytes().count(b"\n") < wanted
                ):
                    assert time.monotonic() < until
                    time.sleep(0.01)
            finally:
                process.kill()
    assert command("audit", "export", *arguments[3:]).code == 0
    lines = Path("events.jsonl").read_text().splitlines()
    assert sorted(lines) == sorted(command("audit", "export").out.splitlines())


def test_health_tells_each_part_and_ends_with_one_where_a_part_is_not_well(command: Command) -> None:
    healthy = command.json("health")
    assert healthy["well"]
    assert [part["part"] for part in healthy["parts"]] == [
        "configuration",
        "database",
        "module",
        "clock",
        "signer",
        "checkpoint",
        "vault",
    ]
    Path("vault.db").write_bytes(b"no database at all" * 100)
    sick = command("health", "--json")
    assert sick.code == 1
    assert [part["part"] for part in sick.document["parts"] if not part["well"]] == [
        "database",
        "vault",
    ]


def test_health_waits_for_no_part_longer_than_it_is_told() -> None:
    never = threading.Event()
    begun = time.monotonic()
    finding = setup.look("module", lambda: str(never.wait(30)), 0.2)
    assert time.monotonic() - begun < 5
    assert (finding.well, finding.message) == (False, NO_ANSWER)
    never.set()


def test_capacity_counts_tokens_and_draws_them(command: Command) -> None:
    command.issue()
    command.issue(MASTERCARD)
    told = {each["program"]: each for each in command.json("capacity", "--svg", "capacity.svg")["programs"]}
    assert (told["one-time"]["issued"], told["card-on-file"]["issued"]) == (2, 0)
    assert told["one-time"]["density"] == 2 / told["one-time"]["space"]
    assert "2 issued" in "".join(ElementTree.parse("capacity.svg").getroot().itertext())  # noqa: S314 # ours
    assert "1 in 500,000,000" in command("capacity").out


@given(
    st.lists(
        st.tuples(
            st.text(max_size=20), st.integers(0, 10**9), st.integers(1, 10**12), st.integers(1, 10**15)
        ),
        max_size=6,
    )
)
def test_a_picture_is_well_formed_and_nothing_lies_outside_of_it(
    programs: list[tuple[str, int, int, int]],
) -> None:
    named = [
        ("".join(filter(str.isprintable, name)), issued, expected, space)
        for name, issued, expected, space in programs
    ]
    picture = ElementTree.fromstring(draw(named, 1 / 1_000))  # noqa: S314 # ours
    width = float(picture.attrib["viewBox"].split()[2])
    for bar in picture.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(bar.attrib["width"]) >= 0
        assert float(bar.attrib.get("x", 0)) + float(bar.attrib["width"]) <= width


def test_an_administrator_s_sql_makes_the_schema_that_the_store_wants(command: Command) -> None:
    sql = command("schema", "sql", "--for", "sqlite").out
    with sqlite3.connect("by-hand.db") as database:
        database.executescript(sql)
    database.close()
    store = tv.open_token_store("sqlite:///by-hand.db")
    store.check_schema()
    store.close()
    assert command("schema", "status").code == 0


@pytest.mark.parametrize("options", ["", "schema=cards&partitions=4"])
def test_an_administrator_s_sql_makes_the_schema_in_postgresql(
    postgres_server: PostgresServer, options: str
) -> None:
    database = new_name()
    with postgres_server.raw() as superuser:
        superuser.execute(f"CREATE DATABASE {database}")
    try:
        with postgres_server.raw(database) as superuser:
            for statement in schema_sql(f"postgresql://nobody@nowhere/x?{options}"):
                superuser.execute(statement.encode())
        url = postgres_server.url(database=database)
        store = tv.open_token_store(f"{url}{'&' if '?' in url else '?'}{options}" if options else url)
        store.check_schema()
        store.close()
    finally:
        with postgres_server.raw() as superuser:
            superuser.execute(f"DROP DATABASE {database} WITH (FORCE)")


def test_a_store_without_a_schema_has_no_sql() -> None:
    with pytest.raises(tv.InvalidInputError, match="sqlite: or postgresql:"):
        schema_sql("memory:")


# Around it.


def test_a_shell_completes_the_names_of_programs(command: Command) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tokenvault.cli"],
        env={
            **os.environ,
            "_TOKENVAULT_COMPLETE": "complete_bash",
            "COMP_WORDS": "tokenvault issue -p ",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert {"card-on-file", "one-time"} <= set(ran.stdout.split())


def test_without_the_extra_the_command_says_what_to_install() -> None:
    program = "import sys; sys.modules['typer'] = None; from tokenvault.cli import main; sys.exit(main([]))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 3
    assert "payment-tokenvault[cli]" in ran.stderr


def test_the_library_does_not_import_the_command() -> None:
    program = "import sys, tokenvault; dir(tokenvault); print({'typer', 'rich', 'tokenvault.cli'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "set()\n"


def test_every_module_of_commands_is_loaded() -> None:
    files = {path.stem for path in Path(setup.__file__).parent.glob("*.py")} - {
        "__init__",
        "apps",
        "options",
        "use",
    }
    assert {module.__name__.rpartition(".")[2] for module in run.COMMANDS} == files
    assert isinstance(apps.app, typer.Typer)


# Keys that rotate.


def test_a_key_is_rotated_by_commands(unprovisioned: Command, tmp_path: Path) -> None:
    command = unprovisioned
    provision_with_a_short_delay(os.environ["TOKENVAULT_KEY_STORE"], "sqlite:///vault.db")
    issued = command.json("issue", "-r", SHOP, "-p", "card-on-file", stdin=VISA)
    newest = command.json("keys", "add", "seal")["version"]
    states = {each["version"]: each["state"] for each in command.json("keys", "list")["keys"]["seal"]}
    assert (states[newest], states[newest - 1]) == ("readable", "primary")
    assert command.json("keys", "primary", "seal", str(newest), "--force")["version"] == newest
    assert command("keys", "retire", "seal", str(newest - 1)).code == 6, "records need it"
    assert command.json("keys", "reseal")["done"] == 1
    assert command.json("keys", "reseal", "--fingerprints")["done"] == 0
    for version in range(1, newest):
        assert command.json("keys", "retire", "seal", str(version))["rows_read"] in (0, 1)
        assert command("keys", "destroy", "seal", str(version)).code == 2, "nobody said yes"
        assert command.json("keys", "destroy", "seal", str(version), "--yes")["version"] == version
    inventory = command.json("keys", "inventory")
    assert inventory["bomFormat"] == "CycloneDX"
    assert json.loads(command("keys", "inventory", "--no-rows").out)["specVersion"] == "1.6"
    used = ("detokenize", issued["reference"], "-r", SHOP, "--channel", "ecommerce", "--id", "order-1")
    assert command(*used).code == 0
