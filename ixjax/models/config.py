"""The configuration of a decoder, as one frozen dataclass.

`ModelConfig` is complete: two equal configs describe the same network, so it can be a static
argument of a jitted function and a line of a manifest. `ModelArguments` holds the settings of the
command line: a size to train from scratch, or the folder of a checkpoint to start from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ixjax.io import NO_EFFECT

DType = Literal["float32", "bfloat16", "float16"]
Activation = Literal["silu", "gelu_tanh"]

SIZES = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "intermediate_size",
    "max_length",
)
LORA_TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on a frozen base (Hu et al. 2022): y += (alpha / rank) x A B."""

    rank: int = 16
    """Width of the bottleneck."""
    alpha: float = 32.0
    """The adapter's output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = LORA_TARGETS
    """Projections that have an adapter."""
    adapters: int = 1
    """Number of adapters on the base; each row of a batch chooses one."""

    def __post_init__(self) -> None:
        """Refuse sizes and names that no adapter can have."""
        _at_least_one(self, "rank", "adapters")
        unknown = [target for target in self.targets if target not in LORA_TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"targets is {self.targets}; expected some of {', '.join(LORA_TARGETS)}, each once"
            )


@dataclasses.dataclass(frozen=True)
class LoraArguments:
    """Adapters that a training learns instead of all weights."""

    rank: int = 0
    """Width of the bottleneck; 0: no adapters, all weights are trained."""
    alpha: float = 32.0
    """The adapter's output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = LORA_TARGETS
    """Projections that have an adapter."""

    def __post_init__(self) -> None:
        """Refuse sizes and names that no adapter can have."""
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank}; expected 0 (no adapters) or more")
        LoraConfig(max(self.rank, 1), self.alpha, self.targets)

    def to_config(self) -> LoraConfig | None:
        """Return the config of one adapter; None if all weights are trained."""
        return LoraConfig(self.rank, self.alpha, self.targets) if self.rank else None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama kind: RMSNorm, RoPE, grouped-query attention, a gated MLP.

    The features of other families are fields, off by default.
    """

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
    """Width of the gated MLP."""
    max_length: int = 512
    """Longest context in tokens that the model is trained on and the KV cache is sized for."""
    max_positions: int | None = dataclasses.field(default=None, metadata=NO_EFFECT)
    """Longest context that the checkpoint's config.json names; None: max_length."""
    activation: Activation = "silu"
    """Activation of the MLP's gate: SwiGLU, or Gemma's GELU (tanh form)."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: tuple[float, float, float, int] | None = None
    """Llama 3 scaling: (factor, low_freq_factor, high_freq_factor, original_max_length)."""
    rope_factor: float = 1.0
    """Linear scaling: divisor of positions (Gemma 3's global layers)."""
    local_rope_theta: float | None = None
    """Base of the rotary frequencies of local layers, unscaled; None: as in other layers."""
    sliding_window: int | None = None
    """Tokens that a local layer sees, the present one included; None: no layer is local."""
    local_layers: tuple[bool, ...] = ()
    """Whether each layer is local; empty: all are, if there is a window."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""
    norm_offset: float = 0.0
    """Added to every norm's weight (Gemma stores them as differences from 1)."""
    qk_norm: bool = False
    """Whether queries and keys are normed, head by head, before they are rotated (Qwen3)."""
    post_norms: bool = False
    """Whether the outputs of attention and MLP are normed before they are added (Gemma)."""
    query_pre_attn_scalar: float | None = None
    """Scores are divided by its square root; None: by the square root of head_dim (Gemma)."""
    attention_softcap: float | None = None
    """Attention scores s become cap * tanh(s / cap) (Gemma 2)."""
    logits_softcap: float | None = None
    """The same for the output logits (Gemma 2)."""
    scale_embeddings: bool = False
    """Whether embeddings are multiplied by sqrt(hidden_size) (Gemma)."""
    tie_embeddings: bool = True
    """Whether the output head is the embedding table."""
    attention_bias: bool = False
    """Whether the q, k and v projections have a bias (Qwen2)."""
    lora: LoraConfig | None = None
    """Adapters on the projections; None: none."""
    param_dtype: DType = "float32"
    """Type of stored parameters."""
    compute_dtype: DType = "float32"
    """Type of activations and matrix products; norms, softmax and logits stay float32."""

    def __post_init__(self) -> None:
        """Refuse shapes that no decoder can have."""
        _at_least_one(self, *SIZES, "vocab_size", "head_dim")
        _check_heads(self.num_heads, self.num_kv_heads, self.head_dim)
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window is {self.sliding_window}; expected 1 or more")
        if self.local_layers and len(self.local_layers) != self.num_layers:
            raise ValueError(
                f"local_layers lists {len(self.local_layers)} layers; expected {self.num_layers} "
                "(num_layers)"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Return a config from the JSON of `dataclasses.asdict`.

        Raises:
            TypeError: an unknown or missing field.
            ValueError: values that no decoder can have.
        """
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        lora = fields.get("lora")
        if lora is not None:
            fields["lora"] = LoraConfig(**{**lora, "targets": tuple(lora["targets"])})
        return cls(**fields)

    @property
    def is_local(self) -> tuple[bool, ...]:
        """`[L]`: whether each layer sees only the last `sliding_window` tokens."""
        if self.sliding_window is None:
            return (False,) * self.num_layers
        return self.local_layers or (True,) * self.num_layers

    @property
    def num_parameters(self) -> int:
        """Number of weights; tied embeddings count once, adapters do not count."""
        h = self.hidden_size
        q, k = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        block = h * (2 * q + 2 * k) + 3 * h * self.intermediate_size
        block += (4 if self.post_norms else 2) * h + (2 * self.head_dim if self.qk_norm else 0)
        block += (q + 2 * k) if self.attention_bias else 0
        embeddings = self.vocab_size * h * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * block + h


@dataclasses.dataclass(frozen=True)
class ModelArguments:
    """The network of a run: a folder to start from, or a size to train from scratch."""

    path: str = dataclasses.field(default="", metadata=NO_EFFECT)
    """Hugging Face folder or *.gguf file that both speakers start from; empty: from scratch."""
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
    """Type of stored parameters; optimiser state is float32."""
    compute_dtype: DType = "float32"
    """Type of activations and matrix products."""

    def __post_init__(self) -> None:
        """Refuse sizes that no decoder can have, and a width that the heads can't share equally."""
        _at_least_one(self, *SIZES)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; expected a multiple of num_heads "
                f"({self.num_heads})"
            )
        _check_heads(self.num_heads, self.num_kv_heads, self.hidden_size // self.num_heads)

    def to_config(self, vocab_size: int) -> ModelConfig:
        """Return the config of a network to train from scratch, for `vocab_size` tokens."""
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


def _at_least_one(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; expected 1 or more")


def _check_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads is {num_heads}; expected a multiple of num_kv_heads ({num_kv_heads})"
        )
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}; expected an even number (rotary embedding)")
