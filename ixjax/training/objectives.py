"""The losses, as pure functions of log-probabilities: per-element results, the caller reduces.

SFT minimises the mean negative log-likelihood of the scored tokens. A preference loss compares the
log-ratios of a pair's two responses. `LOSSES` holds every preference loss by name; settings, checks
and memory estimates follow from that table (examples/own_loss.py adds one).

Axes: B sequences or pairs, T positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from ixjax.training.ranges import NOT_NEGATIVE, POSITIVE, Range, check_ranges

if TYPE_CHECKING:
    LossName = str  # at run time a `Literal` of the names in `LOSSES`; see `__getattr__`


def token_logprobs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the log-probability of each target.

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
    """Return the summed negative log-likelihood, and the weight to divide it by.

    Sum and weight are separate, so that the mean of a batch does not depend on its micro-batches.

    Args:
        logprobs: `[B, T]` log-probabilities of the targets.
        weights: `[B, T]` of scored targets, else 0.

    References:
        Radford et al. 2018, `Improving Language Understanding by Generative Pre-Training
        <https://openai.com/research/language-unsupervised>`_, eq. 1.
    """
    _same_shape(logprobs=logprobs, weights=weights)
    return -jnp.sum(jnp.where(weights > 0, logprobs * weights, 0.0)), jnp.sum(weights)


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Settings that every preference loss receives.

    beta: above 0; scales a log-ratio to a reward.
    label_smoothing: in [0, 0.5); assumed share of pairs with swapped labels.
    gamma: 0 or more; the reward margin that SimPO asks for.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        half = Range(0, 0.5, open_high=True)
        check_ranges(self, beta=POSITIVE, label_smoothing=half, gamma=NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class PreferenceLoss:
    """A loss of preference pairs.

    name: its name in settings.
    function: (chosen, rejected, settings) -> losses, all `[...]`. The two responses come as
        log-ratios `log pi(y | x) - log pi_ref(y | x)`, or as `log pi(y | x)` without a reference.
    has_reference: whether log-probabilities under the reference are subtracted.
    per_token: whether the loss always takes means over a response's tokens instead of sums.
    smooths: whether the function uses `label_smoothing`.
    """

    name: str
    function: Callable[[jax.Array, jax.Array, LossSettings], jax.Array]
    has_reference: bool = True
    per_token: bool = False
    smooths: bool = False

    def at(self, chosen: float, rejected: float, settings: LossSettings) -> float:
        """Return the loss of one pair of these log-ratios."""
        return float(self.function(jnp.float32(chosen), jnp.float32(rejected), settings))

    def first(self, settings: LossSettings) -> float | None:
        """Return the loss of a policy equal to its reference; None without a reference."""
        return self.at(0.0, 0.0, settings) if self.has_reference else None

    def check(self, settings: LossSettings) -> None:
        """Raise `ValueError` for settings that this loss does not take."""
        smoothing = settings.label_smoothing
        if smoothing and not self.smooths:
            raise ValueError(
                f"label_smoothing is {smoothing}; expected 0: the loss {self.name} takes none"
            )


def sigmoid(chosen: jax.Array, rejected: jax.Array, settings: LossSettings) -> jax.Array:
    """Return DPO's loss; with label smoothing conservative DPO's.

    References:
        Rafailov et al. 2023, `DPO <https://arxiv.org/abs/2305.18290>`_, eq. 7.
        Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO".
    """
    return _logistic(settings.beta * (chosen - rejected), settings.label_smoothing)


def ipo(chosen: jax.Array, rejected: jax.Array, settings: LossSettings) -> jax.Array:
    """Return IPO's loss. TRL's IPO is this one with `length_normalized`.

    References:
        Azar et al. 2023, `IPO <https://arxiv.org/abs/2310.12036>`_, eq. 17.
    """
    return jnp.square(chosen - rejected - 1 / (2 * settings.beta))


def hinge(chosen: jax.Array, rejected: jax.Array, settings: LossSettings) -> jax.Array:
    """Return SLiC's loss, of log-ratios to the reference.

    References:
        Zhao et al. 2023, `SLiC-HF <https://arxiv.org/abs/2305.10425>`_, eq. 2.
    """
    return jax.nn.relu(1 - settings.beta * (chosen - rejected))


def robust(chosen: jax.Array, rejected: jax.Array, settings: LossSettings) -> jax.Array:
    """Return rDPO's loss, an unbiased estimate of DPO's under swapped labels.

    References:
        Chowdhury et al. 2024, `rDPO <https://arxiv.org/abs/2403.00409>`_, eq. 12.
    """
    noise, margin = settings.label_smoothing, settings.beta * (chosen - rejected)
    wins, loses = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -((1 - noise) * wins - noise * loses) / (1 - 2 * noise)


def simpo(chosen: jax.Array, rejected: jax.Array, settings: LossSettings) -> jax.Array:
    """Return SimPO's loss, of mean log-probabilities per token.

    References:
        Meng et al. 2024, `SimPO <https://arxiv.org/abs/2405.14734>`_, eq. 6.
    """
    margin = settings.beta * chosen - settings.beta * rejected - settings.gamma
    return _logistic(margin, settings.label_smoothing)


LOSSES: dict[str, PreferenceLoss] = {
    loss.name: loss
    for loss in (
        PreferenceLoss("sigmoid", sigmoid, smooths=True),
        PreferenceLoss("ipo", ipo),
        PreferenceLoss("hinge", hinge),
        PreferenceLoss("robust", robust, smooths=True),
        PreferenceLoss("simpo", simpo, has_reference=False, per_token=True, smooths=True),
    )
}


def __getattr__(name: str) -> Any:
    # Resolved when flags are parsed, so that registered losses are choices too.
    if name == "LossName":
        return Literal[tuple(LOSSES)]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register_loss(loss: PreferenceLoss) -> None:
    """Make a loss available as `dpo.variant`.

    A run's fingerprint holds the name alone: give a changed loss another name.

    Raises:
        ValueError: the name is taken.
    """
    if LOSSES.setdefault(loss.name, loss) != loss:
        raise ValueError(f"a loss named {loss.name!r} is registered; expected another name")


def get_loss(name: str) -> PreferenceLoss:
    """Return the loss of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in LOSSES:
        raise ValueError(f"variant is {name!r}; expected one of {', '.join(LOSSES)}")
    return LOSSES[name]


def dpo_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    reference_chosen: jax.Array,
    reference_rejected: jax.Array,
    *,
    beta: float,
    variant: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the losses of pairs by name: see `preference_loss`, which takes a loss of your own."""
    settings = LossSettings(beta=beta, label_smoothing=label_smoothing)
    sides = policy_chosen, policy_rejected, reference_chosen, reference_rejected
    return preference_loss(*sides, loss=variant, settings=settings)


def preference_loss(
    policy_chosen: jax.Array,
    policy_rejected: jax.Array,
    reference_chosen: jax.Array | None = None,
    reference_rejected: jax.Array | None = None,
    *,
    loss: PreferenceLoss | str = "sigmoid",
    settings: LossSettings | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the losses of pairs and the rewards of their responses.

    Args:
        policy_chosen: `[...]` log pi(y_w | x), a sum over the response's tokens or their mean.
        policy_rejected: `[...]` log pi(y_l | x).
        reference_chosen: `[...]` log pi_ref(y_w | x); ignored by a loss without a reference.
        reference_rejected: `[...]` log pi_ref(y_l | x).
        loss: the loss, or its name in `LOSSES`.
        settings: of the loss; None: the defaults.

    Returns:
        losses `[...]`, chosen rewards `[...]`, rejected rewards `[...]`; a reward is `beta` times
        the log-ratio.

    Raises:
        ValueError: shapes differ, an unknown name, or a setting out of its range.
    """
    settings = settings or LossSettings()
    loss = get_loss(loss) if isinstance(loss, str) else loss
    loss.check(settings)
    chosen, rejected = policy_chosen.astype(jnp.float32), policy_rejected.astype(jnp.float32)
    _same_shape(policy_chosen=chosen, policy_rejected=rejected)
    if loss.has_reference:
        if reference_chosen is None or reference_rejected is None:
            raise ValueError(f"the loss {loss.name} compares with a reference; found none")
        _same_shape(
            policy_chosen=chosen,
            reference_chosen=reference_chosen,
            reference_rejected=reference_rejected,
        )
        chosen = chosen - reference_chosen.astype(jnp.float32)
        rejected = rejected - reference_rejected.astype(jnp.float32)
    losses = loss.function(chosen, rejected, settings)
    return losses, settings.beta * chosen, settings.beta * rejected


def _logistic(margin: jax.Array, label_smoothing: float) -> jax.Array:
    """Return -log p(chosen wins), if labels are swapped with that probability."""
    wins, loses = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - label_smoothing) * wins - label_smoothing * loses


def _same_shape(**arrays: jax.Array) -> None:
    """Refuse to broadcast silently."""
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes are {shapes}; expected one shape for all")
