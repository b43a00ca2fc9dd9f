"""Warm-up and statistics of the generation engines during a stage."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from ixjax.generation import EngineStats
from ixjax.pipeline.reporter import Reporter
from ixjax.pipeline.run import Run

WARM_UP_SECONDS = 10.0  # between two notes of a warm-up


@contextlib.contextmanager
def engine_at_work(
    run: Run, stage: str, reporter: Reporter, warm_up: Callable[[], None] | None = None
) -> Iterator[None]:
    """Log what the engines do in a block.

    Args:
        run: whose engines work.
        stage: the stage that the block belongs to.
        reporter: receives notes.
        warm_up: compiles all programs that the block needs; called if the settings ask for it.
    """
    engine, debug, stats = run.config.engine, run.config.debug, run.engine_stats
    before, started = stats.copy(), time.monotonic()
    if warm_up is not None and (engine.warm_up or debug.forbid_recompile):
        with _noting_compilations(f"{stage}: warming up", stats, reporter):
            warm_up()
        compiled = (stats - before).compilations
        seconds = time.monotonic() - started
        reporter.note(f"{stage}: warmed up, {compiled} programs in {seconds:.1f} s")
        stats.forbidden = debug.forbid_recompile
        before, started = stats.copy(), time.monotonic()
    try:
        yield
    finally:
        stats.forbidden = False
    report = (stats - before).report(time.monotonic() - started)
    run.log(stage, {"engine": report})
    reporter.note(f"{stage}: {_line(report)}")


@contextlib.contextmanager
def _noting_compilations(what: str, stats: EngineStats, reporter: Reporter) -> Iterator[None]:
    """Note every few seconds of a block how many programs it has compiled."""
    before, started, over = stats.compilations, time.monotonic(), threading.Event()

    def note() -> None:
        while not over.wait(WARM_UP_SECONDS):
            count, seconds = stats.compilations - before, time.monotonic() - started
            reporter.note(f"{what}, {count} programs so far ({seconds:.0f} s)")

    reporter.note(f"{what}: compiling every size that may occur")
    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _line(report: Mapping[str, float]) -> str:
    shares = ", ".join(
        f"{name} {100 * report[f'{name}_share']:.0f} %"
        for name in ("prefill", "decode", "score", "host")
    )
    evicted = f"{report['evictions']:.0f} evictions, " if report["evictions"] else ""
    return (
        f"{report['tokens_per_second']:,.0f} tokens/s, "
        f"occupancy {100 * report['occupancy']:.0f} %, {evicted}"
        f"{report['compilations']:.0f} compilations ({report['compile_seconds']:.1f} s); {shares}"
    )
