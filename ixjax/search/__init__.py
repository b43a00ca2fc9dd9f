"""i×MCTS: trees of a policy's responses and a simulated user's reactions, and pairs from them."""

from ixjax.io import PAIRS_SCHEMA, TREE_SCHEMA
from ixjax.search.config import SearchConfig
from ixjax.search.human_pairs import human_pairs
from ixjax.search.imcts import check_readable, grow, run, searchable, warm_up
from ixjax.search.inference import SearchingPolicy
from ixjax.search.pairs import (
    PAIR_RULES,
    RESPONSE_RULES,
    PairsConfig,
    balance_depths,
    extract_pairs,
)
from ixjax.search.preference import PreferencePair, llama_factory_info
from ixjax.search.reuse import clear
from ixjax.search.search_tree import Search, check_reaction_weight, search_tree
from ixjax.search.selection import RULES, Responses, SelectionRule
from ixjax.search.stats import SearchStats
from ixjax.search.thinking import ThinkingSession
from ixjax.search.tree import FinishedTree, Tree, TreeNode
from ixjax.search.tree_pool import TreePool
from ixjax.search.uct import add_children, backpropagate, uct_select

__all__ = [
    "PAIRS_SCHEMA",
    "PAIR_RULES",
    "RESPONSE_RULES",
    "RULES",
    "TREE_SCHEMA",
    "FinishedTree",
    "PairsConfig",
    "PreferencePair",
    "Responses",
    "Search",
    "SearchConfig",
    "SearchStats",
    "SearchingPolicy",
    "SelectionRule",
    "ThinkingSession",
    "Tree",
    "TreeNode",
    "TreePool",
    "add_children",
    "backpropagate",
    "balance_depths",
    "check_reaction_weight",
    "check_readable",
    "clear",
    "extract_pairs",
    "grow",
    "human_pairs",
    "llama_factory_info",
    "run",
    "search_tree",
    "searchable",
    "uct_select",
    "warm_up",
]
