"""The audit trail: verify it, export it, take the anchor by which a later verification proves that it only grew."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Final

import attrs
import typer
from rich.console import RenderableType
from rich.progress import Progress, TaskID

from tokenvault import maintenance
from tokenvault.audit.feed import LOOK_SECONDS, Feed
from tokenvault.audit.verify.report import ANCHOR_CHARACTERS_MAX, AuditFinding, AuditReport
from tokenvault.audit.verify.verify import verify_audit
from tokenvault.cli.command import Session, command
from tokenvault.cli.commands import apps
from tokenvault.cli.commands.options import Yes
from tokenvault.cli.exits import NO
from tokenvault.cli.feed_files import FeedFiles
from tokenvault.cli.inputs import confirm, reason_of, write_private
from tokenvault.cli.views import NOTHING, counted, facts, listing, verdict
from tokenvault.errors import IntegrityError, InvalidInputError
from tokenvault.stores import TokenStore
from tokenvault.stores.forwarding import Forwarding

FINDINGS_SHOWN_MAX: Final = 50

SAVED_LINES: Final = 1_000
"""Lines of an export after which its position is kept."""

PublicKey = Annotated[
    Path | None,
    typer.Option("--public-key", metavar="FILE", help="Of the signatures, PEM, as `keys signer` shows it."),
]
Since = Annotated[
    Path | None,
    typer.Option(
        "--since", metavar="FILE", help="An earlier anchor: all that was there must be there still."
    ),
]
Archive = Annotated[
    list[Path] | None,
    typer.Option("--archive", metavar="FILE", help="Read in it what a purge took out. May be repeated."),
]
WithoutKeys = Annotated[bool, typer.Option("--without-keys", help="Use no key store: the auditor's view.")]


class WatchedStore(Forwarding):
    """A token store that shows how many events and records are read of it."""

    def __init__(self, store: TokenStore, progress: Progress) -> None:
        self._store = store
        self._progress = progress
        self._tasks: Final = {
            "events": progress.add_task("events", total=None),
            "scan": progress.add_task("records", total=None),
        }

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        answer = getattr(self._store, name)(*args, **kwargs)
        task: TaskID | None = self._tasks.get(name)
        if task is not None:
            self._progress.advance(task, len(answer))
        return answer


@command(apps.audit, "verify")
def verify(
    session: Session,
    public_key: PublicKey = None,
    since: Since = None,
    archive: Archive = None,
    without_keys: WithoutKeys = False,
) -> None:
    """Verify the trail, and the records against it.

    Ends with 1 where anything is wrong.
    """
    report = _verified(session, public_key, since, archive or (), without_keys=without_keys)
    _show(session, report, {})
    if not report.intact:
        raise typer.Exit(NO.code)


@command(apps.audit, "archive")
def archive(
    session: Session,
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="The archive: a new file, or one to add to.")
    ],
) -> None:
    """Add all events to an archive that it does not hold yet.

    As JSON Lines with all that verification needs, on the disk when it ends. Stopped at any point, it has done what
    it has done: start it again. Ends with 1 where rows are not genuine: these are left out.
    """
    done = maintenance.archive_events(session.keys, session.store, to)
    shown = [verdict(f"{counted(done.done, 'event')} added to {to}", good=not done.unreadable)]
    if done.unreadable:
        shown.append(verdict(f"{counted(done.unreadable, 'row')} not genuine: left out", good=False))
    session.output.result(attrs.asdict(done) | {"to": str(to)}, *shown)
    if done.unreadable:
        raise typer.Exit(NO.code)


@command(apps.audit, "anchor")
def anchor(
    session: Session,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="New file for the anchor.")],
    public_key: PublicKey = None,
    since: Since = None,
    without_keys: WithoutKeys = False,
) -> None:
    """Verify the trail and write its anchor.

    Keep it away from the database: `audit verify --since` proves by it that the trail only grew. Ends with 1, and
    writes none, where anything is wrong.
    """
    report = _verified(session, public_key, since, without_keys=without_keys)
    if not report.intact:
        _show(session, report, {})
        raise typer.Exit(NO.code)
    write_private(to, f"{report.anchor()}\n")
    _show(session, report, {"anchor": str(to)})


@command(apps.audit, "acknowledge")
def acknowledge(
    session: Session,
    operator: Annotated[str, typer.Option("--operator", help="Who answers for it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why it is so, such as which backup was restored.")],
    since: Since = None,
    yes: Yes = False,
) -> None:
    """Acknowledge what a restore or a failover lost.

    Verifies, shows the findings and asks; then an event names them, and later verifications are intact but for these.
    Give the last anchor from before. Ends with 1 where nothing is to be acknowledged.
    """
    report = _verified(session, None, since, without_keys=False)
    count = len(report.findings) + len(report.open_findings)
    if not count:
        _show(session, report, {})
        raise typer.Exit(NO.code)
    for kind, number in sorted(Counter(each.kind.name for each in report.findings).items()):
        session.output.note(f"{kind}: {number:,}")
    confirm(f"Acknowledge {count:,} findings, for ever?", yes=yes)
    done = session.vault.acknowledge(report, operator=operator, reason=reason)
    session.output.result({"acknowledged": done}, verdict(f"{done:,} findings are acknowledged", good=True))


@command(apps.audit, "export")
def export(
    session: Session,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="File of lines; unset, the standard output.")
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option("--after", metavar="FILE", help="Keep the position in this file, and go on behind it."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for new events, until interrupted.")] = False,
    ocsf: Annotated[bool, typer.Option("--ocsf", help="As events of OCSF 1.8.0.")] = False,
    without_keys: WithoutKeys = False,
) -> None:
    """Write all events as JSON Lines.

    Each says whether its MAC is right. With --after, a run goes on where the one before ended or was killed.
    """
    with ExitStack() as opened:
        files = FeedFiles(session.output.console.file, to, after)
        opened.callback(files.close)
        progress = opened.enter_context(session.output.progress("read"))
        feed = Feed(
            WatchedStore(session.store, progress),
            None if without_keys else session.keys,
            after=files.position,
            shape="ocsf" if ocsf else "tokenvault",
        )
        count = _write(feed, files, follow=False)
        while follow:
            if not feed.more:
                time.sleep(LOOK_SECONDS)
            count += _write(feed, files, follow=True)
    if to is not None:
        session.output.result(
            {"events": count, "to": str(to)}, verdict(f"{count:,} events in {to}", good=True)
        )


def _write(feed: Feed, files: FeedFiles, *, follow: bool) -> int:
    """Write the lines of one look. Returns how many."""
    count = 0
    try:
        for count, line in enumerate(feed.look_again() if follow else feed.look(), 1):
            files.write(line)
            if count % SAVED_LINES == 0:
                files.save(line.position)
    except IntegrityError:  # of a stream that could not be read on: the other ones were
        files.save(feed.position)
        raise
    if count or not follow:
        files.save(feed.position)
    return count


def _verified(
    session: Session,
    public_key: Path | None,
    since: Path | None,
    archive: Sequence[Path] = (),
    *,
    without_keys: bool,
) -> AuditReport:
    with session.output.progress("read") as progress:
        return verify_audit(
            WatchedStore(session.store, progress),
            keys=None if without_keys else session.keys,
            public_key=None if public_key is None else _text_of(public_key),
            since=None if since is None else _text_of(since),
            archive=list(archive),
        )


def _text_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(ANCHOR_CHARACTERS_MAX)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path.name} can not be read ({reason_of(error)})") from None


def _show(session: Session, report: AuditReport, more: dict[str, str]) -> None:
    numbers = {
        name: getattr(report, name)
        for name in ("streams", "events", "records", "checkpoints", "signed", "covered", "gaps")
    }
    if report.purged:
        numbers |= {"purged": report.purged, "archived": report.archived}
    document = {
        "intact": report.intact,
        "findings": report.findings,
        "findings_omitted": report.findings_omitted,
        "open_findings": report.open_findings,
        **numbers,
        **more,
    }
    count = len(report.findings) + report.findings_omitted
    shown: list[RenderableType] = [
        verdict(
            "the trail is intact" if report.intact else f"the trail is not intact: {count:,} findings",
            good=report.intact,
        ),
        facts({name: f"{number:,}" for name, number in numbers.items()} | more),
    ]
    listed = (*report.findings, *report.open_findings)
    if listed:
        shown.append(
            listing(
                ("finding", "stream", "number", "what"),
                map(_finding_row, listed[:FINDINGS_SHOWN_MAX]),
            )
        )
    hidden = len(listed) + report.findings_omitted - FINDINGS_SHOWN_MAX
    if hidden > 0:
        shown.append(f"and {hidden:,} more: --json has them")
    session.output.result(document, *shown)


def _finding_row(finding: AuditFinding) -> tuple[RenderableType, ...]:
    where = finding.stream or finding.reference
    number = f"{finding.number} to {finding.last}" if finding.last is not None else str(finding.number or "-")
    return finding.kind.value, f"{where[:8]}…" if where else NOTHING, number, finding.message
