"""i×MCTS: trees of a policy's responses and a simulated user's reactions, and pairs from them."""

from ixjax.search.best_of_n import BestOfN
from ixjax.search.config import SearchConfig
from ixjax.search.expansion import warm_up
from ixjax.search.human_pairs import human_pairs
from ixjax.search.imcts import check_readable, run
from ixjax.search.pairs import PAIRS_SCHEMA, PairsConfig, PreferencePair, extract_pairs
from ixjax.search.tree import TREE_SCHEMA, FinishedTree, Tree, TreeNode
from ixjax.search.uct import add_children, backpropagate, uct_select

__all__ = [
    "PAIRS_SCHEMA",
    "TREE_SCHEMA",
    "BestOfN",
    "FinishedTree",
    "PairsConfig",
    "PreferencePair",
    "SearchConfig",
    "Tree",
    "TreeNode",
    "add_children",
    "backpropagate",
    "check_readable",
    "extract_pairs",
    "human_pairs",
    "run",
    "uct_select",
    "warm_up",
]
