"""``pollard doctor``: what this machine is to Pollard, and whether the kernels are right on it."""

from __future__ import annotations

from dataclasses import asdict

import typer

from pollard.cli.output import JsonFlag, emit
from pollard.report.doctor import examine
from pollard.report.render import plain_table

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command(epilog="Example: pollard doctor --json")
def doctor(*, json: JsonFlag = False) -> None:
    """Print CPU, instruction sets, threads, versions and folders, and check every kernel against plain torch.

    Each operation runs on each pattern with sizes that divide nothing, and is held against the same product in double
    precision. The exit code is 1 when a check fails.
    """
    diagnosis = examine()
    facts = plain_table("this machine", ("", ""), list(diagnosis.facts.items()), left=2)
    checks = plain_table("kernels, against dense torch in double precision", ("", "operation", ""), [], left=3)
    for check in diagnosis.checks:
        checks.add_row("ok" if check.ok else "FAIL", check.name, check.detail, style=None if check.ok else "bold red")
    emit(asdict(diagnosis) | {"healthy": diagnosis.healthy}, [facts, "", checks], as_json=json)
    if not diagnosis.healthy:
        raise typer.Exit(1)
