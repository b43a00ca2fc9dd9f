"""A fine-tuning step on packed rows, compared with transformers' `Trainer` on the same tokens.

    python benchmarks/sft_step.py --size a --peer

A step trains on `rows` rows of `length` tokens. Each row holds `examples` examples; the second half
of an example is scored. transformers gets the same rows: position ids that restart with each
example, by which its attention separates them, and labels for the scored tokens. Both start from
the same weights (ours are exported), and their first losses are compared. The first step compiles
and is not counted. Figures are medians over `steps`; ours and the peer's steps alternate.

A step is bound by arithmetic: forward and backward of every token, 6 FLOPs a weight. We skip the LM
head for tokens that are not scored, and attention scores of later tokens. Prints one JSON line.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from sizes import SIZES, Size, make_model
from training_steps import timed

from ixjax.dialogue.chat import Rendered
from ixjax.models import Remat, save_hf
from ixjax.models.config import DType
from ixjax.parallel import make_mesh
from ixjax.training import OptimizerConfig
from ixjax.training.batching import Rows, pack
from ixjax.training.sft import SFTObjective
from ixjax.training.steps import make_steps, place_batch, place_params

RATE = 1e-6


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    size: Size = "a"
    """5 M, 29 M or 1.1 B parameters."""
    rows: int = 8
    """Packed rows a step."""
    length: int = 512
    """Tokens of a row."""
    examples: int = 4
    """Examples of a row, all of one length."""
    steps: int = 6
    """Steps, of which the first is not counted."""
    remat: Remat = "none"
    """What a block computes again for its gradient."""
    peer: bool = False
    """Run transformers' Trainer, too."""
    dtype: DType = "float32"
    """Of computation; parameters are float32."""


def main(arguments: Arguments) -> None:
    """Measure and print."""
    a = arguments
    batches = random_rows(a)
    report: dict[str, Any] = {
        "library": "ixjax",
        "jax": jax.__version__,
        **dataclasses.asdict(a),
        "device": jax.devices()[0].platform,
    }
    model = make_model(a.size, max_length=a.length)
    model.config = dataclasses.replace(model.config, compute_dtype=a.dtype)
    report |= ours(a, model, batches)
    if a.peer:
        with tempfile.TemporaryDirectory() as folder:
            save_hf(model, folder)
            report |= trainer(a, folder, batches)
        report["over_peer"] = report["peer_seconds_per_step"] / report["seconds_per_step"]
        report["difference_of_first_loss"] = abs(report["first_loss"] - report["peer_first_loss"])
    print(json.dumps(report))


def random_rows(a: Arguments) -> list[Rows]:
    """The rows of each step."""
    rng, size = np.random.default_rng(1), a.length // a.examples
    scored = (False,) * (size // 2) + (True,) * (size - size // 2)

    def example() -> Rendered:
        return Rendered(
            tuple(rng.integers(5, SIZES[a.size]["vocab_size"], size).tolist()), scored, 0
        )

    return [
        pack([example() for _ in range(a.rows * a.examples)], length=a.length)
        for _ in range(a.steps)
    ]


def ours(a: Arguments, model: Any, batches: list[Rows]) -> dict[str, Any]:
    """Seconds of a step, and the first loss."""
    mesh = make_mesh(devices=jax.devices()[:1])
    steps = make_steps(model.config, mesh, SFTObjective(a.remat), OptimizerConfig().to_optax())
    params = jax.tree.map(jax.numpy.copy, place_params(model, mesh))
    state, seconds, losses = (params, steps.init(params)), [], []
    for batch in batches:
        start = time.perf_counter()
        state, metrics = steps.train(state, {}, place_batch(batch, mesh), np.float32(RATE))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
    return {
        "seconds_per_step": statistics.median(seconds[1:]),
        "compile_seconds": seconds[0] - statistics.median(seconds[1:]),
        "tokens": batches[0].num_tokens,
        "first_loss": losses[0],
    }


def trainer(a: Arguments, folder: str, batches: list[Rows]) -> dict[str, Any]:
    """The same of transformers' Trainer, on the weights in `folder`."""
    import torch
    from transformers import LlamaForCausalLM, Trainer, TrainingArguments

    def row(rows: Rows, n: int) -> dict[str, Any]:
        labels = np.full(a.length, -100)
        at = rows.scored_at[n][rows.weights[n] > 0] + 1
        labels[at] = rows.tokens[n][at]
        # transformers takes a position of 0 for the beginning of another sequence.
        return {
            "input_ids": torch.tensor(rows.tokens[n], dtype=torch.long),
            "position_ids": torch.tensor(rows.positions[n], dtype=torch.long),
            "labels": torch.tensor(labels),
        }

    data = [row(rows, n) for rows in batches for n in range(a.rows)]
    in_order, clock = timed(Trainer)
    peer = in_order(
        model=LlamaForCausalLM.from_pretrained(folder),
        args=TrainingArguments(
            output_dir=str(Path(folder) / "trainer"),
            per_device_train_batch_size=a.rows,
            max_steps=a.steps,
            learning_rate=RATE,
            report_to=[],
            logging_steps=1,
            bf16=a.dtype == "bfloat16",
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=data,  # pyright: ignore[reportArgumentType]
        callbacks=[clock],
    )
    peer.train()
    return {
        "peer_seconds_per_step": statistics.median(clock.seconds[1:]),
        "peer_first_loss": float(peer.state.log_history[0]["loss"]),
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
