"""`casemate fleet simulate`: what a rollout would do to a fleet, before there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from casemate.cli.output import emit_line, json_option, say

if TYPE_CHECKING:
    from casemate.fleet.rollout.simulate import Outcome, World

WHOLE_SERVER: Final = 300
"""So many devices meet a whole server; with more only what decides is asked, to be done in a minute."""


@click.command("simulate")
@click.option("--devices", type=click.IntRange(1, 10_000_000), required=True, metavar="N", help="How many devices.")
@click.option("--fail-rate", type=click.FloatRange(0, 1), required=True, metavar="P", help="Share the release breaks.")
@click.option("--baseline", type=click.FloatRange(0, 0.2), default=0.005, show_default=True, metavar="Q")
@click.option(
    "--silent", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Failures that say nothing."
)
@click.option("--soak-hours", type=click.FloatRange(0.1, 720), default=4.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed is the same rollout.")
@json_option
def command(
    *,
    devices: int,
    fail_rate: float,
    baseline: float,
    silent: float,
    soak_hours: float,
    seed: int,
    as_json: bool,
) -> None:
    """Roll a release out to devices that are not there.

    Only the devices are simulated: each fails with probability P (Q without the release). Up to 300 of them meet a
    whole server: database, steward, picks and signed words; more meet the decisions alone, which are the same code. The
    last line says how many met the release.
    """
    import time

    from casemate.fleet.rollout.failures import Hypotheses
    from casemate.fleet.rollout.plan import Action, Decision, Plan, Tally, sizes_in_words
    from casemate.fleet.rollout.simulate import World, simulate

    world = World(fail_rate, baseline, silent)
    if devices <= WHOLE_SERVER:
        _rehearse(devices, soak_hours, world, seed, as_json=as_json)
        return
    plan = Plan(devices, soak=soak_hours * 3600, test=Hypotheses.around(baseline))

    def watch(now: float, tally: Tally, decision: Decision) -> None:
        if decision.action is not Action.OFFER:
            return
        if as_json:
            emit_line(
                {"hours": round(now / 3600, 2), "offered": tally.offered, "failed": tally.bad, "why": decision.why}
            )
        else:
            say(f"{now / 3600:7.1f} h  {tally.offered:>9} have it  {tally.bad:>6} failed  {decision.why}")

    if not as_json:
        say(f"batches of {sizes_in_words(plan.batches())} devices, each soaks {soak_hours:g} h")
    began = time.process_time()
    outcome = simulate(plan, world, seed, watch)
    _tell(outcome, devices, time.process_time() - began, as_json=as_json)


def _tell(outcome: Outcome, devices: int, cost: float, *, as_json: bool) -> None:
    if as_json:
        emit_line(
            {
                "exposed": outcome.exposed,
                "lost": outcome.lost,
                "state": outcome.state.value,
                "hours": round(outcome.hours, 1),
                "batches": outcome.batches,
                "looks": outcome.looks,
                "cpu_seconds": round(cost, 3),
                "why": outcome.why,
            }
        )
    else:
        click.echo(
            f"{outcome.state.value}: {outcome.exposed} of {devices} devices met it, {outcome.lost} failed, "
            f"after {outcome.hours:.0f} h: {outcome.why}"
        )


def _rehearse(devices: int, soak_hours: float, world: World, seed: int, *, as_json: bool) -> None:
    """Run the server's own code on a database that is thrown away."""
    import asyncio
    import tempfile
    import time
    from pathlib import Path

    from casemate.fleet.rehearse import rehearse
    from casemate.fleet.rollout.terms import Terms

    terms = Terms(soak=soak_hours * 3600, baseline=max(world.baseline, 0.0005))
    said = ""

    def watch(hours: float, row: dict[str, Any]) -> None:
        nonlocal said
        if row["verdict"] == "wait" or row["why"] == said:
            return
        said, bad = row["why"], row["failed"] + row["silent"]
        if as_json:
            emit_line({"hours": round(hours, 2), "offered": row["offered"], "failed": bad, "why": said})
        else:
            say(f"{hours:7.1f} h  {row['offered']:>9} have it  {bad:>6} failed  {said}")

    memory = Path("/dev/shm")  # noqa: S108 - a directory of our own below it, where nothing waits for a disk
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="casemate-", dir=memory if memory.is_dir() else None) as place:
        work = rehearse(Path(place) / "fleet", devices, terms, world, seed=seed, watcher=watch)
        outcome = asyncio.run(work)
    _tell(outcome, devices, time.process_time() - began, as_json=as_json)
