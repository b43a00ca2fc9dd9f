"""Preference pairs: two responses in one history, the one that earned more against the other.

Every decision node of a finished tree is a history; its children are responses with a mean return
and a visit count. Which of them make pairs is docs/algorithm.md, "Preference pairs";
how many did not, and by which rule, is counted.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ixjax.dialogue.scenarios.base import Scenario
from ixjax.dialogue.types import Dialogue
from ixjax.generation.turns import SILENCE
from ixjax.io import InputError
from ixjax.search.tree import FinishedTree, TreeNode, restored_dialogue

PAIRS_SCHEMA = "ixjax.pairs"

# Values are float32 means: 0.6 - 0.5 must pass a margin of 0.1.
_MARGIN_SLACK = 1e-6


@dataclass(frozen=True)
class PairsConfig:
    """Which preference pairs are taken from a tree."""

    selection: Literal["all", "extremes"] = "all"
    """Every two siblings that differ enough, or the best against the worst alone."""
    min_visits: int = 1
    """Returns that a response needs before it is compared."""
    min_margin: float = 0.1
    """Least difference of the mean returns, in units of engagement."""
    max_pairs_per_node: int = 4
    """Most pairs from one history; the widest margins are kept."""
    keep_truncated: bool = False
    """Also take pairs whose chosen response was cut at the token limit."""
    human_pair_ratio: float = 0.25
    """Human pairs for every pair of the search, in the mix."""

    def __post_init__(self) -> None:
        if self.selection not in ("all", "extremes"):
            raise InputError(f"pairs.selection is {self.selection!r}; expected all or extremes")
        for name in ("min_visits", "max_pairs_per_node"):
            if getattr(self, name) < 1:
                raise InputError(f"pairs.{name} is {getattr(self, name)}; expected 1 or more")
        if self.min_margin > 1:
            raise InputError(f"pairs.min_margin is {self.min_margin}; engagement is 1 at most")
        for name in ("min_margin", "human_pair_ratio"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"pairs.{name} is {getattr(self, name)}; expected 0 or more")


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
    """Where the preference comes from: mean returns, or a person having said it."""
    chosen_value: float | None = None
    """Mean return `Q` of the chosen response; None for a human pair."""
    rejected_value: float | None = None
    """Mean return `Q` of the rejected response; None for a human pair."""
    chosen_visits: int = 0
    """Returns `N` behind `chosen_value`."""
    rejected_visits: int = 0
    """Returns `N` behind `rejected_value`."""
    node_id: int | None = None
    """Decision node of the tree; None for a human pair."""
    depth: int = 0
    """Policy turns from the tree's root to the history."""

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise InputError(
                f"a pair of condition {self.condition_id!r} has the same text twice: "
                f"{self.chosen!r}; chosen and rejected must differ"
            )

    @classmethod
    def from_human(cls, history: Dialogue, *, chosen: str, rejected: str) -> PreferencePair:
        """A person's turn against the policy's own sample in the same history."""
        depth = sum(turn.role == "policy" for turn in history.turns)
        return cls(history, chosen, rejected, source="human", depth=depth)

    @property
    def condition_id(self) -> str:
        """Id of the user condition."""
        return self.history.condition.id

    @property
    def margin(self) -> float:
        """`Q_chosen - Q_rejected`; nan for a human pair."""
        if self.chosen_value is None or self.rejected_value is None:
            return math.nan
        return self.chosen_value - self.rejected_value

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `io.write_jsonl(..., schema=PAIRS_SCHEMA)` writes a file of them."""
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
        """The inverse of `to_json`.

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
        """TRL's conversational form: prompt, chosen and rejected as lists of messages.

        The prompt is the policy's view: its system prompt and the dialogue, never the condition.
        """
        roles = {"policy": "assistant", "user": "user"}
        prompt = [{"role": "system", "content": scenario.policy_prompt}]
        prompt += [{"role": roles[turn.role], "content": turn.text} for turn in self.history.turns]
        return {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }


def extract_pairs(
    tree: FinishedTree, config: PairsConfig, *, account: Counter[str] | None = None
) -> list[PreferencePair]:
    """All preference pairs of a tree by the rules of `config`, node by node, widest first.

    Args:
        tree: a finished tree.
        config: the rules.
        account: counts to add to: `kept` pairs; responses left out as `few_visits` or `silent`
            (without a word); and pairs dropped as `truncated` (the chosen one was cut),
            `equal_text`, `small_margin` and `over_limit` (more than `max_pairs_per_node`).
    """
    account = Counter() if account is None else account
    pairs: list[PreferencePair] = []
    for node in tree.nodes:
        if node.kind == "decision":
            kept = _sound(tree.children(node.id), config, account)
            account["over_limit"] += max(0, len(kept) - config.max_pairs_per_node)
            kept = kept[: config.max_pairs_per_node]
            account["kept"] += len(kept)
            if kept:
                history = tree.dialogue_at(node.id)
                pairs += [_pair(history, node, chosen, rejected) for chosen, rejected in kept]
    return pairs


def _sound(
    responses: Sequence[TreeNode], config: PairsConfig, account: Counter[str]
) -> list[tuple[TreeNode, TreeNode]]:
    """(chosen, rejected) that pass every rule but the limit, widest margin first."""
    visited = [node for node in responses if node.visits >= config.min_visits]
    compared = [node for node in visited if node.text != SILENCE]
    account["few_visits"] += len(responses) - len(visited)
    account["silent"] += len(visited) - len(compared)
    sound = []
    for chosen, rejected in _candidates(compared, config):
        rule = _broken_rule(chosen, rejected, config)
        if rule is None:
            sound.append((chosen, rejected))
        else:
            account[rule] += 1
    return sorted(sound, key=lambda pair: pair[1].value - pair[0].value)


def _candidates(
    responses: Sequence[TreeNode], config: PairsConfig
) -> Iterator[tuple[TreeNode, TreeNode]]:
    """Two siblings at a time, the better one first; ties in value keep the order of ids."""
    ranked = sorted(responses, key=lambda node: (-node.value, node.id))
    if config.selection == "all":
        return itertools.combinations(ranked, 2)
    # The best that may be chosen at all, against the worst.
    choosable = [node for node in ranked if config.keep_truncated or not node.truncated]
    return iter(
        [(choosable[0], ranked[-1])] if choosable and choosable[0] is not ranked[-1] else []
    )


def _broken_rule(chosen: TreeNode, rejected: TreeNode, config: PairsConfig) -> str | None:
    if chosen.text == rejected.text:
        return "equal_text"
    if chosen.value - rejected.value < config.min_margin - _MARGIN_SLACK:
        return "small_margin"
    if chosen.truncated and not config.keep_truncated:
        return "truncated"
    return None


def _pair(
    history: Dialogue, node: TreeNode, chosen: TreeNode, rejected: TreeNode
) -> PreferencePair:
    return PreferencePair(
        history=history,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_value=chosen.value,
        rejected_value=rejected.value,
        chosen_visits=chosen.visits,
        rejected_visits=rejected.visits,
        node_id=node.id,
        depth=node.depth // 2,
    )
