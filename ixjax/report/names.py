"""Display names of methods and users, and their order of importance."""

from __future__ import annotations

from ixjax.report.files import Record

REFERENCE = "sft"
METHODS = {
    "sft": "SFT",
    "best_of_n": "best of n",
    "imcts": "i×MCTS at inference",
    "dpo_human": "DPO on human pairs",
    "dpo_imcts": "DPO on i×MCTS pairs",
    "dpo_mix": "DPO on both",
    "dpo_preferences": "DPO on given pairs",
}
USERS = {
    "simulator": "the search's simulator",
    "simulator_heldout": "the held-out simulator",
    "true": "the true user",
}
BELIEVED = ("true", "simulator_heldout", "simulator")
"""Users, the most conclusive first."""


def method_name(method: str) -> str:
    """Return a method's display name."""
    return METHODS.get(method, method)


def user_name(user: str) -> str:
    """Return a user's display name."""
    return USERS.get(user, user)


def aligned_method(evaluation: Record) -> str | None:
    """Return the headline method: DPO on the search's pairs, else another DPO, else any."""
    methods = [method for method in evaluation["methods"] if method != REFERENCE]
    dpo = [method for method in methods if method.startswith("dpo_")]
    return next((m for m in ("dpo_imcts", *dpo, *methods) if m in methods), None)


def believed_user(evaluation: Record) -> str | None:
    """Return the most conclusive user."""
    users = evaluation["users"]
    return next((user for user in (*BELIEVED, *users) if user in users), None)


def find_cell(evaluation: Record, method: str | None, user: str | None) -> Record | None:
    """Return the cell of a method and a user."""
    cells = evaluation["cells"]
    return next((c for c in cells if (c["method"], c["user"]) == (method, user)), None)
