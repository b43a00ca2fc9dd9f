"""A preference pair: two responses in one history, one of which is preferred.

The record keeps the values and visits of both responses; it is exported in the forms that other
trainers read (docs/data-formats.md). Those forms begin with a user's turn, since TRL, LLaMA-Factory
and many chat templates expect one. If the policy opens the dialogue, the turn that training adds
for such templates comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ixjax.dialogue.rendering import NEUTRAL
from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue, Turn
from ixjax.io import InputError
from ixjax.search.tree import restored_dialogue

_ROLES = {"policy": "assistant", "user": "user"}


@dataclass(frozen=True)
class PreferencePair:
    """Two responses in the same history, and why one is preferred."""

    history: Dialogue
    """The dialogue before the response, with the user's condition."""
    chosen: str
    """The preferred response."""
    rejected: str
    """The other one; never equal to `chosen`."""
    source: Literal["imcts", "human"] = "imcts"
    """Source of the preference: mean returns of a search, or a human dialogue."""
    chosen_value: float | None = None
    """Mean return `Q` of the chosen response; None for a human pair."""
    rejected_value: float | None = None
    """Mean return `Q` of the rejected response; None for a human pair."""
    chosen_visits: int = 0
    """Number of returns `N` in `chosen_value`."""
    rejected_visits: int = 0
    """Number of returns `N` in `rejected_value`."""
    node_id: int | None = None
    """Decision node of the tree; None for a human pair."""
    depth: int = 0
    """Policy turns from the tree's root to the history."""

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise InputError(
                f"a pair of condition {self.condition_id!r} has the same text twice: "
                f"{self.chosen!r}; expected chosen and rejected to differ"
            )
        if self.history.turns and self.history.turns[-1].role == "policy":
            raise InputError(
                f"a pair of condition {self.condition_id!r} has a history that ends with the "
                "policy's turn; expected the user's, or no turn, before a response"
            )

    @classmethod
    def from_human(cls, history: Dialogue, *, chosen: str, rejected: str) -> PreferencePair:
        """Return a pair that prefers a person's turn to the policy's sample in one history."""
        depth = sum(turn.role == "policy" for turn in history.turns)
        return cls(history, chosen, rejected, source="human", depth=depth)

    @property
    def condition_id(self) -> str:
        """Return the id of the user condition."""
        return self.history.condition.id

    @property
    def margin(self) -> float:
        """Return `Q_chosen - Q_rejected`; nan for a human pair."""
        if self.chosen_value is None or self.rejected_value is None:
            return math.nan
        return self.chosen_value - self.rejected_value

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, a line of a file of `io.write_jsonl(..., schema=PAIRS_SCHEMA)`."""
        return {
            "condition_id": self.condition_id,
            "history": self.history.to_json(),
            "chosen": self.chosen,
            "rejected": self.rejected,
            "source": self.source,
            "chosen_value": self.chosen_value,
            "rejected_value": self.rejected_value,
            "chosen_visits": self.chosen_visits,
            "rejected_visits": self.rejected_visits,
            "node_id": self.node_id,
            "depth": self.depth,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PreferencePair:
        """Return the pair of a JSON object from `to_json`.

        Raises:
            InputError: a field is missing or unknown, or the two texts are equal.
        """
        fields = dict(record)
        try:
            fields["history"] = restored_dialogue(fields["history"], fields.pop("condition_id"))
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"not a preference pair: {error}; expected the fields condition_id, history, "
                "chosen, rejected, source, ... as `ixjax search` writes them"
            ) from error

    def to_trl(self, scenario: Scenario) -> dict[str, list[dict[str, str]]]:
        """Return TRL's conversational form: prompt, chosen and rejected as lists of messages.

        The prompt is the policy's view: its system prompt and the dialogue, without the condition.
        It ends with a user's message, as TRL requires, even if the policy opens the dialogue.
        """
        messages = [("system", scenario.policy_prompt)]
        messages += [(_ROLES[turn.role], turn.text) for turn in self._turns_from_user()]
        return {
            "prompt": [{"role": role, "content": text} for role, text in messages],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }

    def to_llama_factory(self, scenario: Scenario) -> dict[str, Any]:
        """Return LLaMA-Factory's Alpaca form; `llama_factory_info` names the columns.

        The last user turn is the `instruction`, and the turns before it are the `history`, a list
        of [user, assistant]. LLaMA-Factory appends `input` to the instruction, so it is empty.
        """
        *before, last = [turn.text for turn in self._turns_from_user()]
        return {
            "instruction": last,
            "input": "",
            "chosen": self.chosen,
            "rejected": self.rejected,
            "system": scenario.policy_prompt,
            "history": list(map(list, zip(before[::2], before[1::2], strict=True))),
        }

    def _turns_from_user(self) -> tuple[Turn, ...]:
        """Return the history; if the policy opens it, after a neutral turn of the user."""
        turns = self.history.turns
        opened = bool(turns) and turns[0].role == "user"
        return turns if opened else (Turn("user", NEUTRAL), *turns)


def llama_factory_info(dataset: str, file_name: str) -> dict[str, Any]:
    """Return the `dataset_info.json` of LLaMA-Factory for a file of `to_llama_factory` records.

    Args:
        dataset: name of the dataset, the value of LLaMA-Factory's setting `dataset`.
        file_name: the file, relative to the folder of `dataset_info.json`.
    """
    columns = {"prompt": "instruction", "query": "input"}
    columns |= {name: name for name in ("chosen", "rejected", "system", "history")}
    return {dataset: {"file_name": file_name, "ranking": True, "columns": columns}}
