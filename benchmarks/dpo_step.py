"""A DPO step, compared with TRL's `DPOTrainer` on the same weights and tokens.

    python benchmarks/dpo_step.py --size a --peer
    python benchmarks/dpo_step.py --size a --share none    # prompts computed twice, as TRL does

A step trains on `pairs` pairs of `prompt` + `response` random tokens. Both trainers compute the
reference's log-probabilities beforehand. Both start from the same weights (ours are exported) and
see the same pairs in the same order; their first losses and log-probabilities are compared. The
first step compiles and is not counted. Figures are medians over `steps`; ours and the peer's steps
alternate.

A step is bound by arithmetic: forward and backward of every token, 6 FLOPs a weight. With `share`,
a prompt is stored once for its two responses: 352 tokens instead of 608, at most 1.73 times as
fast. Prints one JSON line.
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

from ixjax.dialogue.chat import RenderedPair
from ixjax.models import Remat, save_hf
from ixjax.models.config import DType
from ixjax.parallel import make_mesh
from ixjax.training import DPOConfig, OptimizerConfig, reference_logprobs
from ixjax.training.dpo import PairObjective
from ixjax.training.pair_rows import PairBatches, Share
from ixjax.training.steps import make_steps, place_batch, place_params


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    size: Size = "a"
    """5 M, 29 M or 1.1 B parameters."""
    pairs: int = 8
    """Pairs a step."""
    prompt: int = 256
    """Tokens of a prompt."""
    response: int = 48
    """Tokens of a response, its end token included."""
    steps: int = 6
    """Steps, of which the first is not counted."""
    share: Share = "pair"
    """Prefix that is computed once; see `DPOConfig.share`."""
    micro_batches: int = 1
    """Parts that a batch is taken in."""
    remat: Remat = "none"
    """What a block computes again for its gradient."""
    peer: bool = False
    """Run TRL, too."""
    dtype: DType = "float32"
    """Of computation; parameters are float32."""


RATE = 1e-6
BETA = 0.1
END = 2  # the token that ends a response, ours and TRL's


def main(arguments: Arguments) -> None:
    """Measure and print."""
    a = arguments
    pairs = random_pairs(a)
    report: dict[str, Any] = {
        "library": "ixjax",
        "jax": jax.__version__,
        **dataclasses.asdict(a),
        "device": jax.devices()[0].platform,
    }
    model = make_model(a.size, max_length=a.prompt + a.response)
    model.config = dataclasses.replace(model.config, compute_dtype=a.dtype)
    report |= ours(a, model, pairs)
    if a.peer:
        with tempfile.TemporaryDirectory() as folder:
            save_hf(model, folder)
            report |= trl(a, folder, pairs)
        report["over_peer"] = report["peer_seconds_per_step"] / report["seconds_per_step"]
        report["difference_of_first_loss"] = abs(report["first_loss"] - report["peer_first_loss"])
        report["difference_of_logps"] = max(
            abs(report[f"logps_{side}"] - report[f"peer_logps_{side}"])
            for side in ("chosen", "rejected")
        )
    print(json.dumps(report))


def random_pairs(a: Arguments) -> list[RenderedPair]:
    """Pairs of all steps."""
    rng, size = np.random.default_rng(1), SIZES[a.size]["vocab_size"]

    def draw(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(5, size, count).tolist())

    return [
        RenderedPair(draw(a.prompt), (*draw(a.response - 1), END), (*draw(a.response - 1), END), 0)
        for _ in range(a.pairs * a.steps)
    ]


def ours(a: Arguments, model: Any, pairs: list[RenderedPair]) -> dict[str, Any]:
    """Seconds of a step, and what the first one said."""
    mesh = make_mesh(devices=jax.devices()[:1])
    config = DPOConfig(beta=BETA, batch_size=a.pairs, share=a.share, remat=a.remat)
    known = reference_logprobs(model, pairs, config, mesh=mesh)
    numbers = [range(n * a.pairs, (n + 1) * a.pairs) for n in range(a.steps)]
    batches = PairBatches(
        pairs,
        numbers,
        share=a.share,
        max_length=a.prompt + a.response,
        multiple=a.micro_batches,
    )
    steps = make_steps(
        model.config,
        mesh,
        PairObjective.of(config),
        OptimizerConfig().to_optax(),
        micro_batches=a.micro_batches,
    )
    params = jax.tree.map(jax.numpy.copy, place_params(model, mesh))
    state, seconds, found = (params, steps.init(params)), [], []
    for n in range(a.steps):
        start = time.perf_counter()
        batch = place_batch(batches.make(n, known), mesh)
        state, metrics = steps.train(state, {}, batch, np.float32(RATE))
        found.append(jax.device_get(metrics))
        seconds.append(time.perf_counter() - start)
    first = {name: float(value) for name, value in found[0].items()}
    return {
        "seconds_per_step": statistics.median(seconds[1:]),
        "compile_seconds": seconds[0] - statistics.median(seconds[1:]),
        "tokens": batches.make(0, known).rows.num_tokens,
        "first_loss": first["loss"],
        "logps_chosen": first["logps/chosen"],
        "logps_rejected": first["logps/rejected"],
    }


def trl(a: Arguments, folder: str, pairs: list[RenderedPair]) -> dict[str, Any]:
    """The same of TRL's trainer, on the weights in `folder`."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig as TRLConfig
    from trl import DPOTrainer

    # Special tokens are not called like words: TRL would find "w1" in "w17".
    named = {name: i for i, name in enumerate(("<pad>", "<s>", "</s>", "<unk>"))}
    words = {f"w{i}": i for i in range(len(named), SIZES[a.size]["vocab_size"])}
    by_word = Tokenizer(models.WordLevel(named | words, unk_token="<unk>"))
    by_word.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=by_word,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    text = lambda tokens: " ".join(f"w{i}" for i in tokens)
    rows = [
        {
            "prompt": text(p.prompt),
            "chosen": f" {text(p.chosen[:-1])}",
            "rejected": f" {text(p.rejected[:-1])}",
        }
        for p in pairs
    ]
    in_order, clock = timed(DPOTrainer)
    trainer = in_order(
        model=LlamaForCausalLM.from_pretrained(folder),
        args=TRLConfig(
            output_dir=str(Path(folder) / "trl"),
            per_device_train_batch_size=a.pairs,
            max_steps=a.steps,
            beta=BETA,
            learning_rate=RATE,
            report_to=[],
            logging_steps=1,
            bf16=a.dtype == "bfloat16",
            gradient_checkpointing=False,
            max_length=4096,
            precompute_ref_log_probs=True,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    row = trainer.train_dataset[0]
    assert row["prompt_ids"] == list(pairs[0].prompt)
    assert row["chosen_ids"] == list(pairs[0].chosen)
    trainer.train()
    first = trainer.state.log_history[0]
    return {
        "peer_seconds_per_step": statistics.median(clock.seconds[1:]),
        "peer_first_loss": float(first["loss"]),
        "peer_logps_chosen": float(first["logps/chosen"]),
        "peer_logps_rejected": float(first["logps/rejected"]),
    }


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
