"""Preference pairs from trees: which responses are compared, and which pairs are kept.

Every decision node of a finished tree is a history; its children are responses with a mean return
and a visit count. docs/algorithm.md, "Preference pairs", has the rules. Dropped responses and pairs
are counted by rule.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ixjax.dialogue.types import Dialogue
from ixjax.generation.turns import SILENCE
from ixjax.io import InputError
from ixjax.search.preference import PreferencePair
from ixjax.search.similarity import text_similarity
from ixjax.search.tree import FinishedTree, TreeNode

RESPONSE_RULES = ("few_visits", "silent")
"""Names in an account: rules by which a response is not compared."""

PAIR_RULES = (
    "equal_text",
    "small_margin",
    "truncated",
    "near_duplicate",
    "over_limit",
    "over_depth_limit",
)
"""Names in an account: rules by which a compared pair is dropped; the first that applies counts."""

# Values are float32 means: 0.6 - 0.5 must pass a margin of 0.1.
_MARGIN_SLACK = 1e-6


@dataclass(frozen=True)
class PairsConfig:
    """Which preference pairs are taken from a tree."""

    selection: Literal["all", "extremes"] = "all"
    """Compare all siblings, or only the best with the worst."""
    min_visits: int = 1
    """Returns that a response needs to be compared."""
    min_margin: float = 0.1
    """Smallest difference of the mean returns, in units of engagement."""
    max_pairs_per_node: int = 4
    """Most pairs from one history; the widest margins are kept."""
    keep_truncated: bool = False
    """Also keep pairs whose chosen response was cut at the token limit."""
    max_similarity: float = 0.9
    """Highest similarity of chosen and rejected (shared character trigrams); 1: no limit."""
    max_depth_ratio: float = 0.0
    """Most pairs of one depth in a run, as a multiple of the mean over depths; 0: no limit."""
    human_pair_ratio: float = 0.25
    """Human pairs per pair of the search, in the mix."""

    def __post_init__(self) -> None:
        if self.selection not in ("all", "extremes"):
            raise InputError(f"pairs.selection is {self.selection!r}; expected all or extremes")
        for name in ("min_visits", "max_pairs_per_node"):
            if getattr(self, name) < 1:
                raise InputError(f"pairs.{name} is {getattr(self, name)}; expected 1 or more")
        if self.min_margin > 1:
            raise InputError(f"pairs.min_margin is {self.min_margin}; expected 0 to 1")
        for name in ("min_margin", "human_pair_ratio"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"pairs.{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.max_similarity <= 1:
            raise InputError(
                f"pairs.max_similarity is {self.max_similarity}; expected 0 to 1 (1: no limit)"
            )
        if self.max_depth_ratio != 0 and not 1 <= self.max_depth_ratio < math.inf:
            raise InputError(
                f"pairs.max_depth_ratio is {self.max_depth_ratio}; expected 1 or more, or 0 (no "
                "limit)"
            )

    def too_similar(self, chosen: str, rejected: str) -> bool:
        """Return whether two responses are too similar for a pair."""
        limit = self.max_similarity
        return limit < 1 and text_similarity(chosen, rejected) > limit


def extract_pairs(
    tree: FinishedTree, config: PairsConfig, *, account: Counter[str] | None = None
) -> list[PreferencePair]:
    """Return all preference pairs of a tree, node by node, widest margin first.

    Args:
        tree: a finished tree.
        config: the rules.
        account: counts to add to: `kept` pairs; responses not compared: `few_visits`, `silent`
            (without a word); and dropped pairs: `equal_text`, `small_margin`, `truncated` (the
            chosen one was cut), `near_duplicate`, `over_limit` (more than `max_pairs_per_node`).
            Kept and dropped pairs add up to the compared ones: every two siblings, or one pair per
            node with `selection="extremes"`.
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


def balance_depths(
    pairs: Sequence[PreferencePair], config: PairsConfig, *, account: Counter[str] | None = None
) -> list[PreferencePair]:
    """Return the pairs of a run, with at most `max_depth_ratio` times the mean at any depth.

    The mean is over depths that have pairs. The widest margins are kept. Ties go to the lower
    condition id, node id and texts, so the choice does not depend on the order of the trees.

    Args:
        pairs: of all trees, with values.
        config: the rules.
        account: counts to move from `kept` to `over_depth_limit`.

    Returns:
        The kept pairs, in the order given.
    """
    if not pairs or config.max_depth_ratio == 0:
        return list(pairs)
    places: dict[int, list[int]] = {}  # of the pairs of each depth, the widest margin first
    for place in sorted(range(len(pairs)), key=lambda place: _rank(pairs[place])):
        places.setdefault(pairs[place].depth, []).append(place)
    limit = math.floor(config.max_depth_ratio * len(pairs) / len(places))
    kept = sorted(place for group in places.values() for place in group[:limit])
    balanced = [pairs[place] for place in kept]
    if account is not None:
        account["kept"] -= len(pairs) - len(balanced)
        account["over_depth_limit"] += len(pairs) - len(balanced)
    return balanced


def _rank(pair: PreferencePair) -> tuple[float, str, int, str, str]:
    node = -1 if pair.node_id is None else pair.node_id
    return -pair.margin, pair.condition_id, node, pair.chosen, pair.rejected


def _sound(
    responses: Sequence[TreeNode], config: PairsConfig, account: Counter[str]
) -> list[tuple[TreeNode, TreeNode]]:
    """Return (chosen, rejected) that pass every rule but the limit, widest margin first."""
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
    """Return pairs of siblings, the better one first; ties in value keep the order of ids."""
    ranked = sorted(responses, key=lambda node: (-node.value, node.id))
    if config.selection == "all":
        return itertools.combinations(ranked, 2)
    # The best response that may be chosen, with the worst.
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
    if config.too_similar(chosen.text, rejected.text):
        return "near_duplicate"
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
