"""A preference loss of your own: one object, registered, is a choice of `--dpo.variant`."""

# %% The loss: APO-zero (https://arxiv.org/abs/2408.06266) raises the chosen response's likelihood
# and lowers the rejected one's, each against the reference
import random
import tempfile

import jax

from ixjax.dialogue.chat import RenderedPair
from ixjax.parallel import make_mesh
from ixjax.testing import tiny_model
from ixjax.training import DPOConfig, OptimizerConfig, PreferenceLoss, register_loss, train_dpo


def apo_zero(chosen, rejected, settings):
    """Log-ratios of a pair's two responses, of any shape, to its loss."""
    beta = settings.beta
    return 1 - jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(beta * rejected)


register_loss(PreferenceLoss("apo_zero", apo_zero))

# %% Pairs as tokens: a random prompt, and two responses of which the one with 7 is preferred
draw = random.Random(0)
prompts = [tuple(draw.choices(range(10, 30), k=5)) for _ in range(16)]
pairs = [RenderedPair(prompt, (7, 8), (9, 8), 0) for prompt in prompts]

# %% Align a tiny model; the first loss is checked against that of a policy equal to its reference
config = DPOConfig(
    variant="apo_zero",
    steps=12,
    batch_size=8,
    log_every=1,
    optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0),
)
reports: list[dict[str, float]] = []
train_dpo(
    tiny_model(32),
    pairs,
    config,
    mesh=make_mesh(devices=jax.devices()[:1]),
    seed=0,
    directory=tempfile.mkdtemp(),
    on_step=reports.append,
)
for report in (reports[0], reports[-1]):
    print(f"step {report['step']:>2}  loss {report['loss']:.3f}", end="  ")
    print(f"reward margin {report['rewards/margins']:.3f}")
