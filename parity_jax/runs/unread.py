"""Numbers that are set, or are axes, and that nothing reads: members would be alike."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity_jax.config import ConfigError, require_default, under
from parity_jax.hypers import BOUNDS, Hypers
from parity_jax.models.huggingface import is_hf_folder
from parity_jax.population import Population
from parity_jax.runs.directory import RunDirectory
from parity_jax.runs.resolve import (
    ResolvedRun,
    in_own_code,
    make_program,
    under_run,
)
from parity_jax.stages.rollout import RolloutConfig


def check_numbers(
    runs: Mapping[str, ResolvedRun], programs: Mapping[str, Population]
) -> None:
    """ConfigError for a number without effect, on its run and those that it came from
    or that come from it with the same one; of an axis for any of its values. Where
    parent_member says which value of a parent all start from, only that one counts.

    programs    of the runs that are to train; of a relative that has ended, or is left
                out, one is made if it is asked
    """
    made = dict(programs)

    def program_of(name: str) -> Population:
        if name not in made:
            with under_run(name), in_own_code(runs[name]):
                made[name] = make_program(runs[name])
        return made[name]

    for name, run in runs.items():
        check_form(name, run)
        if name not in programs:
            continue
        chain = chain_of(name, runs)
        for number in BOUNDS:
            given = values_of(run, number)
            if given == (getattr(Hypers(), number),):
                continue
            alike = [n for n in chain if {*given} & {*values_of(runs[n], number)}]
            unfelt = [*given]
            for other in sorted(alike, key=lambda n: (n not in programs, n)):
                if unfelt:
                    felt = values_felt(number, runs[other], program_of(other))
                    for pin in pins_between(number, name, other, runs):
                        felt &= {pin}
                    unfelt = [value for value in unfelt if value not in felt]
            if unfelt:
                is_axis, where = number in run.axes, f"runs.{name}.hypers.{number}"
                told = given if is_axis else given[0]
                allowed = f"is read by no run ({', '.join(alike)}): it changes nothing"
                if number in run.parent.member:
                    pin = f"{number}={run.parent.member[number]:g}"
                    allowed = f"changes nothing: all of {name} start from {pin}"
                    allowed += " (parent_member), and it does not read it"
                if len(unfelt) < len(given):
                    allowed = f"has {unfelt[0]:g}, which {allowed}"
                if is_axis:  # that all runs have it is the experiment's doing
                    is_shared = all(number in each.axes for each in runs.values())
                    where = "axes." if is_shared else f"runs.{name}.axes."
                    where += number
                raise ConfigError(where, told, allowed)


def check_form(name: str, run: ResolvedRun) -> None:
    """ConfigError for the form of a price of length that no member pays."""
    rollout = getattr(run.stage, "rollout", None)
    if isinstance(rollout, RolloutConfig):
        with under(f"runs.{name}.stage.rollout"):
            is_paid = any(values_of(run, "length_price"))
            otherwise = "with length_price=0"
            require_default(rollout, is_paid, otherwise, "length_price_form")


def values_of(run: ResolvedRun, number: str) -> tuple[Any, ...]:
    """Along its axis, or the one of all members."""
    return tuple(run.axes.get(number, (getattr(run.hypers, number),)))


def chain_of(name: str, runs: Mapping[str, ResolvedRun]) -> set[str]:
    """A run with all that it comes from and that come from it."""

    others = {other for other in runs if name in lineage_of(other, runs)}
    return {*lineage_of(name, runs)} | others


def lineage_of(name: str, runs: Mapping[str, ResolvedRun]) -> list[str]:
    """A run, its parent and so on, of this experiment."""
    parent = runs[name].parent.sibling
    return [name, *(lineage_of(parent, runs) if parent else [])]


def pins_between(
    number: str, name: str, other: str, runs: Mapping[str, ResolvedRun]
) -> list[Any]:
    """The values of a number from which all of a run between two of a chain start."""
    lower, upper = (name, other) if other in lineage_of(name, runs) else (other, name)
    between = lineage_of(lower, runs)
    pins = [runs[n].parent.member for n in between[: between.index(upper)]]
    return [pin[number] for pin in pins if number in pin]


def values_felt(number: str, run: ResolvedRun, program: Population) -> set[Any]:
    """Those of a run that its program reads, or that whoever trained what it starts
    from, elsewhere, had too.
    """
    own = {*values_of(run, number)}
    if number in program.numbers_read():
        return own
    elsewhere = RunDirectory(Path(run.parent.path or "/"))
    is_run = not run.parent.sibling and not is_hf_folder(elsewhere.path)
    if not (run.parent.path and is_run):
        return set()
    if not elsewhere.has_config():  # gone; it was asked when the run began
        return own
    pinned = {run.parent.member.get(number, value) for value in own}
    return own & pinned & {*values_of(elsewhere.read_config(), number)}
