"""The shape of a decoder, as one frozen dataclass.

`ModelConfig` is complete: two equal configs describe the same network, so it can be a static
argument of a jitted function and a line of a manifest. `ModelArguments` is what a person sets on
the command line: a size to train from scratch, or the folder of a checkpoint to start from.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama kind (RMSNorm, RoPE, grouped-query attention, SwiGLU)."""

    vocab_size: int
    """Rows of the embedding table."""
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Decoder blocks."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key/value heads; query heads share them in equal groups."""
    head_dim: int
    """Width of one head."""
    intermediate_size: int
    """Width of the SwiGLU."""
    max_length: int = 512
    """Longest context in tokens that the model is trained on and the KV cache is sized for."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: tuple[float, float, float, int] | None = None
    """Llama 3 scaling: (factor, low_freq_factor, high_freq_factor, original_max_length)."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""
    tie_embeddings: bool = True
    """Whether the output head is the embedding table."""
    attention_bias: bool = False
    """Whether the q, k and v projections have a bias (Qwen2)."""
    param_dtype: DType = "float32"
    """Type that parameters are stored in."""
    compute_dtype: DType = "float32"
    """Type of activations and matrix products; norms, softmax and logits stay float32."""

    def __post_init__(self) -> None:
        """Refuse shapes that no decoder can have."""
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads")
        for name in (*sizes, "head_dim", "intermediate_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads "
                f"({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embedding needs an even number")

    @property
    def num_parameters(self) -> int:
        """Weights of the network, tied embeddings counted once."""
        h = self.hidden_size
        q, k = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        block = h * (2 * q + 2 * k) + 3 * h * self.intermediate_size + 2 * h
        block += (q + 2 * k) if self.attention_bias else 0
        embeddings = self.vocab_size * h * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * block + h


@dataclasses.dataclass(frozen=True)
class ModelArguments:
    """The network of a run: a folder to start from, or a size to train from scratch."""

    path: str = ""
    """Folder of a Hugging Face checkpoint that both speakers start from; empty: from scratch."""
    hidden_size: int = 256
    """Width of the residual stream (from scratch)."""
    num_layers: int = 4
    """Decoder blocks (from scratch)."""
    num_heads: int = 4
    """Query heads (from scratch)."""
    num_kv_heads: int = 2
    """Key/value heads (from scratch)."""
    intermediate_size: int = 1024
    """Width of the SwiGLU (from scratch)."""
    max_length: int = 512
    """Longest context in tokens; older turns of a longer dialogue are dropped whole."""
    param_dtype: DType = "float32"
    """Type that parameters and optimiser state are stored in."""
    compute_dtype: DType = "float32"
    """Type of activations and matrix products."""

    def __post_init__(self) -> None:
        """Refuse a width that the heads can't share equally."""
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_heads "
                f"({self.num_heads})"
            )

    def to_config(self, vocab_size: int) -> ModelConfig:
        """The network to train from scratch, for a tokenizer of `vocab_size` tokens."""
        return ModelConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.hidden_size // self.num_heads,
            intermediate_size=self.intermediate_size,
            max_length=self.max_length,
            param_dtype=self.param_dtype,
            compute_dtype=self.compute_dtype,
        )
