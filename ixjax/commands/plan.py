"""`ixjax plan`: What a run would take, before anything is allocated."""

from __future__ import annotations

import dataclasses
import json

from rich.console import Console

from ixjax.commands.summary import print_plan
from ixjax.pipeline import PlanConfig, RunConfig, make_plan

SUMMARY = "Memory, arithmetic and time that a run would take on devices that need not exist."


@dataclasses.dataclass(frozen=True)
class Settings(RunConfig):
    """A run, and what it is planned for."""

    devices: int = 1
    """Devices that the run would have."""
    plan: PlanConfig = dataclasses.field(default_factory=PlanConfig)
    """The kind of device."""
    json: bool = False
    """Print one JSON object in place of the tables."""


def execute(settings: Settings, console: Console) -> None:
    """Plan, and print it."""
    plan = make_plan(settings, settings.plan, devices=settings.devices)
    if settings.json:
        record = dataclasses.asdict(plan)
        for kind, stages in (("training", plan.training), ("play", plan.play)):
            for stage, memory in stages.items():
                record[kind][stage]["peak"] = memory.peak
        print(json.dumps(record))
    else:
        print_plan(console, plan)
