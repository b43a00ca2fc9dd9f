"""Models of three sizes, ours and transformers' of the same shape: what the benchmarks run on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax

from ixjax.models import ModelConfig, Transformer, init_model
from ixjax.models.config import DType
from ixjax.parallel import make_mesh

Size = Literal["quickstart", "a", "b", "c"]
HEAD_DIM = 64
SIZES: Mapping[Size, Mapping[str, int]] = {
    "quickstart": {  # 0.5 M, as configs/quickstart.yaml trains it
        "hidden_size": 128,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "intermediate_size": 384,
        "vocab_size": 512,
    },
    "a": {  # 5 M
        "hidden_size": 256,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "intermediate_size": 1024,
        "vocab_size": 4096,
    },
    "b": {  # 29 M
        "hidden_size": 512,
        "num_layers": 8,
        "num_heads": 8,
        "num_kv_heads": 4,
        "intermediate_size": 1536,
        "vocab_size": 8192,
    },
    "c": {  # 1.1 B, for an accelerator
        "hidden_size": 2048,
        "num_layers": 22,
        "num_heads": 32,
        "num_kv_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 32000,
    },
}


def head_dim(size: Size) -> int:
    """Of both models."""
    return 32 if size == "quickstart" else HEAD_DIM


def make_model(size: Size, *, max_length: int, dtype: DType = "float32") -> Transformer:
    """A random decoder on the first device."""
    config = ModelConfig(
        **SIZES[size],
        head_dim=head_dim(size),
        max_length=max_length,
        param_dtype=dtype,
        compute_dtype=dtype,
    )
    return init_model(config, seed=0, mesh=make_mesh(devices=jax.local_devices()[:1]))


class Peer:
    """transformers' Llama of the same shape, and its `generate` with top-p sampling.

    Args:
        size: as ours.
        dtype: of weights and computation.
        top_p: nucleus.
    """

    def __init__(self, size: Size, *, dtype: DType, top_p: float):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        shape = SIZES[size]
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.vocab_size = shape["vocab_size"]
        self.top_p = top_p
        config = LlamaConfig(
            hidden_size=shape["hidden_size"],
            num_hidden_layers=shape["num_layers"],
            num_attention_heads=shape["num_heads"],
            num_key_value_heads=shape["num_kv_heads"],
            head_dim=head_dim(size),
            intermediate_size=shape["intermediate_size"],
            vocab_size=shape["vocab_size"],
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(self.device, getattr(torch, dtype))
        self._model = model.eval()

    def prompts(self, rows: int, length: int) -> Any:
        """Random tokens `[rows, length]`."""
        return self.torch.randint(16, self.vocab_size, (rows, length), device=self.device)

    def generate(self, tokens: Any, new: int) -> Any:
        """Append exactly `new` tokens to each row; return `[rows, length + new]`."""
        found = self._model.generate(
            tokens,
            attention_mask=self.torch.ones_like(tokens),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=True,
            temperature=1.0,
            top_p=self.top_p,
            top_k=0,
            pad_token_id=0,
            eos_token_id=None,
        )
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        assert found.shape == (tokens.shape[0], tokens.shape[1] + new)
        return found
