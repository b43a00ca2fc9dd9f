"""`ixjax plan`: Estimate what a run takes, without allocating anything."""

from __future__ import annotations

import dataclasses
import json

from rich.console import Console

from ixjax.commands.summary import print_plan
from ixjax.pipeline import PlanConfig, RunConfig, make_plan

SUMMARY = "Estimate memory, arithmetic and time of a run, on devices that need not be present."


@dataclasses.dataclass(frozen=True)
class Settings(RunConfig):
    """A run, and the devices to plan for."""

    devices: int = 1
    """Number of devices of the run."""
    plan: PlanConfig = dataclasses.field(default_factory=PlanConfig)
    """The kind of device."""
    json: bool = False
    """Print one JSON object instead of tables."""


def execute(settings: Settings, console: Console) -> None:
    """Print the plan."""
    plan = make_plan(settings, settings.plan, devices=settings.devices)
    if settings.json:
        record = dataclasses.asdict(plan)
        for kind, stages in (("training", plan.training), ("play", plan.play)):
            for stage, memory in stages.items():
                record[kind][stage]["peak"] = memory.peak
        print(json.dumps(record))
    else:
        print_plan(console, plan)
