"""The losses, as pure functions of log-probabilities: per-element results, the caller reduces.

SFT is the mean negative log-likelihood of the scored tokens. The DPO family compares a policy with
a fixed reference on pairs of responses; SimPO needs no reference. All sums are float32. What goes
in may be sums over the tokens of a response (as in the papers) or their means ("length-normalised":
long responses then weigh no more than short ones).

Axes: B sequences or pairs, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

DPOVariant = Literal["sigmoid", "ipo", "hinge", "robust"]


def token_logprobs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probability of each target.

    Args:
        logits: `[..., V]`.
        targets: `[...]` int.

    Returns:
        `[...]` float32.
    """
    logits = logits.astype(jnp.float32)
    # log p(target) = logit(target) - logsumexp(logits): no [..., V] log-softmax is kept.
    taken = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return taken - jax.nn.logsumexp(logits, axis=-1)


def sft_loss(logprobs: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Summed negative log-likelihood and the weight it is to be divided by.

    Sum and weight are returned apart, so that the mean of a whole batch does not depend on how
    it was cut into parts.

    Args:
        logprobs: `[B, T]` log-probabilities of the targets.
        weights: `[B, T]` 1 for scored targets, else 0.

    References:
        Radford et al. 2018, `Improving Language Understanding by Generative Pre-Training
        <https://openai.com/research/language-unsupervised>`_, eq. 1.
    """
    _same_shape(logprobs=logprobs, weights=weights)
    return -jnp.sum(jnp.where(weights > 0, logprobs * weights, 0.0)), jnp.sum(weights)


def dpo_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    reference_chosen: jax.Array,
    reference_rejected: jax.Array,
    *,
    beta: float,
    variant: DPOVariant = "sigmoid",
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Direct preference optimisation on summed response log-probabilities.

    Args:
        policy_chosen: `[B]` log pi(y_w | x), summed over response tokens.
        policy_rejected: `[B]` log pi(y_l | x).
        reference_chosen: `[B]` log pi_ref(y_w | x).
        reference_rejected: `[B]` log pi_ref(y_l | x).
        beta: > 0; how strongly the policy is held to the reference.
        variant: `sigmoid` (DPO), `ipo`, `hinge` (SLiC) or `robust`.
        label_smoothing: in [0, 0.5); assumed share of swapped labels (sigmoid: conservative DPO;
            robust: unbiased under that noise). The other variants take none.

    Returns:
        losses `[B]`, chosen rewards `[B]`, rejected rewards `[B]`; a reward is
        `beta * (log pi - log pi_ref)`.

    Raises:
        ValueError: shapes differ, an unknown variant, or a value out of its range.

    `ipo` is the paper's, on what it is given. TRL's divides each side's log-ratio by the length of
    the response first: give means instead of sums for that.

    References:
        sigmoid: Rafailov et al. 2023, `DPO <https://arxiv.org/abs/2305.18290>`_, eq. 7.
        ipo: Azar et al. 2023, `IPO <https://arxiv.org/abs/2310.12036>`_, eq. 17.
        hinge: Zhao et al. 2023, `SLiC-HF <https://arxiv.org/abs/2305.10425>`_, eq. 2, with
        the log-ratio to the reference for the log-probability.
        robust: Chowdhury et al. 2024, `rDPO <https://arxiv.org/abs/2403.00409>`_, eq. 12.
        conservative: Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO".
    """
    _same_shape(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    check_dpo_settings(beta=beta, variant=variant, label_smoothing=label_smoothing)
    chosen = policy_chosen.astype(jnp.float32) - reference_chosen.astype(jnp.float32)
    rejected = policy_rejected.astype(jnp.float32) - reference_rejected.astype(jnp.float32)
    margin = chosen - rejected
    if variant == "sigmoid":
        losses = _logistic(beta * margin, label_smoothing)
    elif variant == "robust":
        wins, loses = jax.nn.log_sigmoid(beta * margin), jax.nn.log_sigmoid(-beta * margin)
        losses = -((1 - label_smoothing) * wins - label_smoothing * loses)
        losses = losses / (1 - 2 * label_smoothing)
    elif variant == "ipo":
        losses = jnp.square(margin - 1 / (2 * beta))
    else:
        losses = jax.nn.relu(1 - beta * margin)
    return losses, beta * chosen, beta * rejected


def simpo_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Preference optimisation without a reference, on mean log-probabilities of a token.

    Args:
        policy_chosen: `[B]` log pi(y_w | x) / |y_w|.
        policy_rejected: `[B]` log pi(y_l | x) / |y_l|.
        beta: > 0; scales the rewards.
        gamma: >= 0; by how much the chosen reward shall exceed the rejected.
        label_smoothing: in [0, 0.5); assumed share of swapped labels.

    Returns:
        losses `[B]`, chosen rewards `[B]`, rejected rewards `[B]`; a reward is `beta` times the
        mean log-probability.

    Raises:
        ValueError: shapes differ, or a value out of its range.

    References:
        Meng et al. 2024, `SimPO <https://arxiv.org/abs/2405.14734>`_, eq. 6.
    """
    _same_shape(policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    _check_beta(beta)
    _check_smoothing(label_smoothing)
    if not gamma >= 0:
        raise ValueError(f"gamma is {gamma}; it must be 0 or more")
    chosen = beta * policy_chosen.astype(jnp.float32)
    rejected = beta * policy_rejected.astype(jnp.float32)
    return _logistic(chosen - rejected - gamma, label_smoothing), chosen, rejected


def _logistic(margin: jax.Array, label_smoothing: float) -> jax.Array:
    """Negative log-likelihood of "the chosen one wins", labels swapped with that probability."""
    wins, loses = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - label_smoothing) * wins - label_smoothing * loses


def check_dpo_settings(*, beta: float, variant: str, label_smoothing: float) -> None:
    """Raise `ValueError` for settings that no DPO loss has."""
    if variant not in get_args(DPOVariant):
        raise ValueError(f"variant is {variant!r}; expected one of {get_args(DPOVariant)}")
    _check_beta(beta)
    _check_smoothing(label_smoothing)
    if label_smoothing and variant in ("ipo", "hinge"):
        raise ValueError(f"label_smoothing is {label_smoothing}; {variant} takes none")


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be above 0")


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 0.5)")


def _same_shape(**arrays: jax.Array) -> None:
    """Refuse to broadcast silently."""
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes must be equal, found {shapes}")
