"""Progress: a line now and then where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ixjax.commands import progress
from ixjax.commands.progress import ProgressReporter


class Clock:
    """`time` for the reporter, set by hand."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def plain() -> tuple[ProgressReporter, io.StringIO]:
    out = io.StringIO()
    return ProgressReporter(Console(file=out, width=180)), out


def test_without_a_terminal_a_line_comes_every_ten_seconds_at_most(clock):
    reporter, out = plain()
    reporter.start("search", 100, "trees")
    for _ in range(50):
        clock.now += 1.0
        reporter.advance(loss=0.25)
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0].rstrip() == "search: 10/100 trees, 1 trees/s, 90 s left  loss 0.25"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_was_done_before_an_interruption_is_done_but_tells_nothing_of_the_speed(
    clock, terminal
):
    out = io.StringIO()
    reporter = ProgressReporter(
        Console(file=out, width=180, force_terminal=terminal, color_system=None)
    )
    reporter.start("search", 64, "trees")
    reporter.advance(0, earlier=60)
    clock.now += 20.0
    reporter.advance()
    if terminal:
        reporter._bar.refresh()
    assert "61/64" in out.getvalue()
    assert "0.05 trees/s, 60 s left" in out.getvalue()
    reporter.close()


def test_an_unknown_total_shows_no_time_left(clock):
    reporter, out = plain()
    reporter.start("prepare", None, "dialogues")
    clock.now += 20.0
    reporter.advance(40)
    assert out.getvalue().rstrip() == "prepare: 40 dialogues, 2 dialogues/s"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")]
)
def test_the_time_left_is_in_the_unit_that_a_person_would_name(clock, seconds, shown):
    reporter, out = plain()
    reporter.start("sft", 2, "steps")
    clock.now += seconds
    reporter.advance()
    assert f", {shown} left" in out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_quiet_reporter_draws_nothing(clock, terminal):
    out = io.StringIO()
    reporter = ProgressReporter(Console(file=out, force_terminal=terminal), quiet=True)
    reporter.start("search", 100, "trees")
    clock.now += 20.0
    reporter.advance(loss=0.25)
    reporter.note("a line")
    reporter.finish(loss=0.25)
    assert out.getvalue() == ""


def test_finish_says_how_long_it_took_and_the_figures_alone(clock):
    reporter, out = plain()
    reporter.start("sft policy", 4, "steps")
    clock.now += 12.5
    reporter.finish(loss=1.23456, examples=12345, digest="f00", valid=None)
    line = out.getvalue()
    assert line.split() == ["sft", "policy", "12.5", "s", "loss", "1.235", "examples", "12,345"]


def test_brackets_in_a_stage_or_a_note_are_text(clock):
    reporter, out = plain()
    reporter.start("sft [policy]", 4, "steps")
    reporter.finish()
    reporter.note("see runs/[seed1]/[/x]")
    assert "sft [policy]" in out.getvalue()
    assert "see runs/[seed1]/[/x]" in out.getvalue()


def test_a_terminal_has_a_bar_with_rate_and_time_left_that_goes_away():
    out = io.StringIO()
    console = Console(file=out, width=180, force_terminal=True, color_system=None)
    reporter = ProgressReporter(console)
    reporter.start("search", 10, "trees")
    reporter.advance(4, loss=0.5)
    reporter._bar.refresh()
    drawn = out.getvalue()
    assert "4/10" in drawn
    assert "trees/s" in drawn
    assert "loss 0.5" in drawn
    reporter.close()
    assert not console._live_stack


def test_a_new_stage_takes_the_bar_of_the_last_away():
    console = Console(file=io.StringIO(), width=180, force_terminal=True)
    reporter = ProgressReporter(console)
    reporter.start("a", 1, "steps")
    reporter.start("b", 1, "steps")
    assert len(console._live_stack) == 1
    reporter.close()
