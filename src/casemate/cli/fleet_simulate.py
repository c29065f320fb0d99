"""`casemate fleet simulate`: what a rollout would do to a fleet, before there is one."""

from __future__ import annotations

import click

from casemate.cli.output import emit_line, json_option, say


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

    Who is offered it and when it stops is decided by the code of real rollouts; only the devices are simulated: each
    fails with probability P (Q without the release). The last line says how many met it.
    """
    import time

    from casemate.fleet.rollout.failures import Hypotheses
    from casemate.fleet.rollout.plan import Action, Decision, Plan, Tally, sizes_in_words
    from casemate.fleet.rollout.simulate import World, simulate

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
    outcome = simulate(plan, World(fail_rate, baseline, silent), seed, watch)
    cost = time.process_time() - began
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
