"""Notes of a run: a warm-up in progress, a resumed training."""

from __future__ import annotations

import dataclasses
import time

from ixjax import io
from ixjax.generation import EngineConfig
from ixjax.pipeline import engine_work
from ixjax.pipeline.reporter import report_step
from tests.end_to_end.tiny import Silent


class Notes(Silent):
    """A reporter that keeps its notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.advanced: list[tuple[int, int, dict[str, float]]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, count: int = 1, *, earlier: int = 0, **metrics: float) -> None:
        self.advanced.append((count, earlier, metrics))


def test_a_warm_up_reports_its_progress(untrained, monkeypatch, tmp_path):
    monkeypatch.setattr(engine_work, "WARM_UP_SECONDS", 0.01)
    run = dataclasses.replace(
        untrained,
        config=dataclasses.replace(untrained.config, engine=EngineConfig(warm_up=True)),
        directory=io.RunDirectory(tmp_path),
    )
    reporter, seen = Notes(), []

    def warm_up() -> None:
        while len(reporter.notes) < 3:
            time.sleep(0.01)
        seen.extend(reporter.notes)

    with engine_work.engine_at_work(run, "search", reporter, warm_up):
        pass
    assert all(note.startswith("search: ") for note in reporter.notes)
    assert "0 programs" in seen[1]
    assert "0 programs" in reporter.notes[len(seen)]


def test_a_resumed_training_is_noted_once_and_kept_out_of_the_metrics():
    reporter, logged = Notes(), {"step": 70, "steps": 100, "loss": 0.5, "other": 1.0}
    first = {**logged, "steps_since": 70, "resumed_at": 60}
    second = {**logged, "step": 75, "steps_since": 5}
    for metrics in (first, second):
        report_step(reporter, "sft policy", metrics, shown=("loss", "validation_loss"))
    [note] = reporter.notes
    assert note.startswith("sft policy: ")
    assert "60 of 100" in note
    assert first == {**logged, "steps_since": 70}
    assert reporter.advanced == [(10, 60, {"loss": 0.5}), (5, 0, {"loss": 0.5})]
