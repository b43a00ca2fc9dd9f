"""Selection rules: scores of the responses at a decision node; selection takes the highest.

A rule is a function of `Responses` and `c_uct`, un-batched and jittable. To add one, write it here
and name it in `Rule` and `RULES`; or pass your own to `ixjax.search.run`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp


class Responses(NamedTuple):
    """The responses `a` at one decision node `s`, by child slot. W child slots.

    known: `[W]` whether the slot is filled; scores of other slots are ignored.
    value: `[W]` `Q`, which is 0 before the first return.
    returns: `[W]` int32 returns that arrived.
    visits: `[W]` int32 `N(s, a)`: arrived, pending and unread.
    prior: `[W]` log-likelihood a token under the policy; nan if it is not known.
    total: `[]` `N(s)`, 1 or more.
    mean: `[]` mean of the returns at `s`; 0 before the first.
    """

    known: jax.Array
    value: jax.Array
    returns: jax.Array
    visits: jax.Array
    prior: jax.Array
    total: jax.Array
    mean: jax.Array


SelectionRule = Callable[[Responses, jax.Array], jax.Array]
Rule = Literal["uct", "puct"]


def uct(responses: Responses, c_uct: jax.Array) -> jax.Array:
    """Return `[W]` `Q + c_uct * sqrt(ln N(s) / N(s, a))`; infinite if `N(s, a)` is 0.

    Kocsis and Szepesvári, Bandit based Monte-Carlo planning, 2006.
    """
    visits = responses.visits
    explore = jnp.sqrt(jnp.log(responses.total) / jnp.maximum(visits, 1))
    return jnp.where(visits == 0, jnp.inf, responses.value + c_uct * explore)


def puct(responses: Responses, c_uct: jax.Array) -> jax.Array:
    """Return `[W]` `Q + c_uct * P(a | s) * sqrt(N(s)) / (1 + N(s, a))`.

    `P` is the softmax of the priors, uniform if one is missing. For a response without a return,
    `Q` is the mean at `s`; a `Q` of 0 would rank it below all positive returns.

    Silver et al., A general reinforcement learning algorithm that masters chess, shogi and Go
    through self-play, 2018, supplement, "Search".
    """
    known, prior = responses.known, responses.prior
    value = jnp.where(responses.returns == 0, responses.mean, responses.value)
    complete = jnp.all(jnp.isfinite(prior) | ~known)
    policy = jax.nn.softmax(jnp.where(known, jnp.where(complete, prior, 0), -jnp.inf))
    return value + c_uct * policy * jnp.sqrt(responses.total) / (1 + responses.visits)


RULES: dict[Rule, SelectionRule] = {"uct": uct, "puct": puct}
