"""What the supervisor of several processes saw of a run, as a section of its page: RUN/launch/events.jsonl."""

import contextlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jax import runs
from lepton_jax.report.document import table
from lepton_jax.report.numbers import clock

SHOWN = 50  # lines


def events(directory: pathlib.Path) -> list[dict[str, Any]]:
    """The events of a run directory, oldest first; none where nobody watched. A line that is not one is left out."""
    path = directory / runs.LAUNCH / "events.jsonl"
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and isinstance(event.get("event"), str):
                    found.append(event)
    return found


def section(found: Sequence[Mapping[str, Any]]) -> str:
    """Where the time went, and each start and failure, as HTML; empty where there are no events."""
    if not found:
        return ""
    lines = [(at(event), event["event"], told) for event in found if (told := sentence(event))]
    note = f"<p>The last {SHOWN} of {len(lines)}.</p>" if len(lines) > SHOWN else ""
    return spent(found) + note + table(("time", "event", ""), lines[-SHOWN:], "facts")


def spent(found: Sequence[Mapping[str, Any]]) -> str:
    """The newest ledger as a table: the page is written before the run has ended, so the last seconds are missing."""
    ledgers = [event["ledger"] for event in found if isinstance(event.get("ledger"), dict)]
    if not ledgers:
        return ""
    total = sum(ledgers[-1].values()) or 1.0
    rows = [(kind, clock(seconds), f"{seconds / total:.1%}") for kind, seconds in ledgers[-1].items()]
    return table(("kind", "time", "share"), rows, "counts")


def sentence(event: Mapping[str, Any]) -> str:
    """What happened, in words; empty for what is of no interest later."""
    match event["event"]:
        case "launch":
            hosts = f" on {', '.join(event.get('hosts') or [])}" if event.get("hosts") else ""
            return f"life {event.get('life')}: {event.get('processes')} process(es){hosts}"
        case "restart":
            return f"{event.get('reason')}; {event.get('failures')} failure(s) without a new checkpoint"
        case "stall":
            where = f"in {event.get('phase')} at step {event.get('step')}"
            return f"process {event.get('process')} did not move for {event.get('idle')} s, {where}"
        case "probe":
            return "; ".join(f"{host} was left out: {why}" for host, why in (event.get("sick") or {}).items())
        case "signal":
            return f"{event.get('signal')} was passed on"
        case "end":
            return f"{event.get('reason')}; exit code {event.get('code')}"
        case _:
            return ""


def at(event: Mapping[str, Any]) -> str:
    """When, as this machine's clock shows it."""
    moment = event.get("time")
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if isinstance(moment, int | float) else ""
