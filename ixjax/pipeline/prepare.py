"""Preparation of a corpus: splits, conditions and tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ixjax import io
from ixjax.dialogue.chat import ChatTemplate
from ixjax.dialogue.corpora import read_corpus, split_corpus, write_dialogues
from ixjax.dialogue.scenarios import Scenario
from ixjax.dialogue.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from ixjax.dialogue.types import Dialogue
from ixjax.models import check_hf
from ixjax.pipeline.base_model import check_vocabulary
from ixjax.pipeline.reporter import Reporter
from ixjax.pipeline.run import CONDITIONS_SCHEMA, Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "train_heldout", "valid", "test")


def prepare(run: Run, reporter: Reporter) -> dict[str, Any]:
    """Read the corpus, split it without leakage, train or load the tokenizer.

    Returns:
        The manifest's facts: counts of dialogues read and dropped, and sizes of splits.

    Raises:
        InputError: the corpus can't be read, or a split is empty.
    """
    config = run.config
    with run.stage("prepare") as facts:
        if facts is None:
            return run.facts("prepare")
        given = _given_tokenizer(run)
        reporter.start("prepare", None, "dialogues")
        dialogues, account, official = read_corpus(config.data, config.scenario, seed=config.seed)
        splits = split_corpus(dialogues, config.data, seed=config.seed, official=official)
        for name in SPLITS:
            part = getattr(splits, name)
            if not part:
                raise io.InputError(_empty(name, dialogues))
            write_dialogues(run.directory.data / f"{name}.jsonl", part)
        for name in ("train", "train_heldout"):
            if all(dialogue.outcome is None for dialogue in getattr(splits, name)):
                raise io.InputError(
                    f"no dialogue of the {name} split has an outcome; expected one or more, from "
                    "which a simulator learns outcomes"
                )
        _write_conditions(run, splits.train, splits.test)
        _write_tokenizer(run, given, [*splits.train, *splits.train_heldout])
        facts["account"] = [list(row) for row in account.rows()]
        facts["account"].append(["moved out of their official split (leakage)", splits.moved])
        facts["splits"] = {name: len(getattr(splits, name)) for name in SPLITS}
        facts["sources"] = run.sources
        reporter.finish(**facts["splits"])
    return run.facts("prepare")


def _empty(split: str, dialogues: list[Dialogue]) -> str:
    groups = set.intersection(*(set(dialogue.groups) for dialogue in dialogues))
    shared = f", which all share the group {min(groups)!r}" if groups else ""
    remedy = {
        "train": "smaller --data.valid-fraction, --data.test-fraction or --data.heldout-fraction",
        "train_heldout": "a larger --data.heldout-fraction",
        "valid": "a larger --data.valid-fraction",
        "test": "a larger --data.test-fraction",
    }[split]
    return (
        f"the {split} split has no dialogue, of {len(dialogues)}{shared}; expected one or more. "
        f"Set {remedy}, or add dialogues."
    )


def _write_conditions(run: Run, train: list[Dialogue], test: list[Dialogue]) -> None:
    """Write every condition with its root, by split: searched or held out."""
    records = [
        {"split": split, "root": run.root(dialogue).to_json()}
        for split, dialogues in (("train", train), ("test", test))
        for dialogue in dialogues
    ]
    io.write_jsonl(run.directory.conditions, records, schema=CONDITIONS_SCHEMA)


def _given_tokenizer(run: Run) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer of a given folder, checked against the base model; None: train one."""
    path, base = run.config.tokenizer.path, run.config.model.path
    if not path and not base:
        return None
    setting = "tokenizer.path" if path else "model.path"  # a checkpoint has its own
    tokenizer = load_tokenizer(path or base, setting=setting)
    template = ChatTemplate.from_tokenizer(tokenizer)
    if base:
        check_vocabulary(base, check_hf(base), template)
    return tokenizer


def _write_tokenizer(
    run: Run, given: PreTrainedTokenizerFast | None, dialogues: list[Dialogue]
) -> None:
    size = run.config.tokenizer.vocab_size
    if given is None:
        given = train_tokenizer(_texts(run.scenario, dialogues), vocab_size=size)
    save_tokenizer(given, run.directory.tokenizer)


def _texts(scenario: Scenario, dialogues: list[Dialogue]) -> Iterable[str]:
    """Yield the texts that a speaker reads, without those of held-out splits."""
    for dialogue in dialogues:
        yield scenario.policy_prompt
        yield scenario.simulator_prompt(dialogue.condition)
        yield from (turn.text for turn in dialogue.turns)
        yield from (line for line, _ in scenario.outcome_lines(dialogue.condition))
