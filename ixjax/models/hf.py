"""Hugging Face checkpoints in and out: config.json and safetensors, without executable code.

One table, `tensors`, maps Hugging Face's tensors to our weights. The headers of all files are
checked before the first weight is read. Weights are then read from memory-mapped files: each
device's part is read and cast separately, a stacked weight layer by layer, so that the host never
holds more than one of Hugging Face's tensors. `ixjax.models.hf_config` reads the config.json, and
`ixjax.models.hf_source` opens the files; a GGUF file is read as a folder is.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ixjax.distributed import is_first, to_host
from ixjax.io import InputError, write_json
from ixjax.models.config import DType, ModelConfig
from ixjax.models.hf_config import SPECIAL_IDS, read_config, to_json
from ixjax.models.hf_files import CONFIG, INDEX, WEIGHTS, Part, TensorSource, write_tensors
from ixjax.models.hf_generation import GENERATION, check_end_tokens
from ixjax.models.hf_source import checkpoint_path, config_file, open_tensors
from ixjax.models.sharding import param_shardings, path_name, weights_by_path
from ixjax.models.transformer import Transformer, weight_specs
from ixjax.parallel import make_mesh

SHARD_BYTES = 5_000_000_000
WHOLE_BYTES = 2**26  # smaller stacked weights are read at once, without compiling an update
HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of Hugging Face's tensors."""

    name: str
    """Full name; `{}` stands for the layer."""
    transposed: bool = False
    """Whether it is a linear weight: [out, in] in the file, [in, out] in the model."""


def _linear(name: str) -> Tensor:
    return Tensor(name, transposed=True)


# attribute path of `weight_specs` -> tensor; `tensors` adds the norms of the family
_TENSORS: Mapping[str, Tensor] = {
    "embedding": Tensor("model.embed_tokens.weight"),
    "layers.attention_norm": Tensor("model.layers.{}.input_layernorm.weight"),
    "layers.query": _linear("model.layers.{}.self_attn.q_proj.weight"),
    "layers.key": _linear("model.layers.{}.self_attn.k_proj.weight"),
    "layers.value": _linear("model.layers.{}.self_attn.v_proj.weight"),
    "layers.query_bias": Tensor("model.layers.{}.self_attn.q_proj.bias"),
    "layers.key_bias": Tensor("model.layers.{}.self_attn.k_proj.bias"),
    "layers.value_bias": Tensor("model.layers.{}.self_attn.v_proj.bias"),
    "layers.output": _linear("model.layers.{}.self_attn.o_proj.weight"),
    "layers.query_norm": Tensor("model.layers.{}.self_attn.q_norm.weight"),
    "layers.key_norm": Tensor("model.layers.{}.self_attn.k_norm.weight"),
    "layers.gate": _linear("model.layers.{}.mlp.gate_proj.weight"),
    "layers.up": _linear("model.layers.{}.mlp.up_proj.weight"),
    "layers.down": _linear("model.layers.{}.mlp.down_proj.weight"),
    "norm": Tensor("model.norm.weight"),
    "head": _linear(HEAD),
}
_PRE_NORMS = {"layers.mlp_norm": Tensor("model.layers.{}.post_attention_layernorm.weight")}
_PRE_AND_POST_NORMS = {
    "layers.attention_post_norm": Tensor("model.layers.{}.post_attention_layernorm.weight"),
    "layers.mlp_norm": Tensor("model.layers.{}.pre_feedforward_layernorm.weight"),
    "layers.mlp_post_norm": Tensor("model.layers.{}.post_feedforward_layernorm.weight"),
}


def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Return Hugging Face's tensor of each weight of this network, by attribute path."""
    named = {**_TENSORS, **(_PRE_AND_POST_NORMS if config.post_norms else _PRE_NORMS)}
    return {path: named[path] for path in weight_specs(config)}


def load_hf(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: DType = "bfloat16",
    compute_dtype: DType | None = None,
    max_length: int | None = None,
) -> Transformer:
    """Read a Hugging Face folder or a GGUF file into a sharded model.

    Args:
        path: folder with config.json and safetensors, one file or several with an index; or a
            *.gguf file, whose weights are dequantised.
        mesh: devices for the weights; default: the first device.
        dtype: type of the stored weights; they are cast while they are read.
        compute_dtype: type of activations; default `dtype`.
        max_length: longest context in tokens, for which caches are sized; default the
            checkpoint's, at most 4096.

    Returns:
        The decoder, with every weight sharded.

    Raises:
        InputError: it is not such a checkpoint, or `Transformer` would not compute its
            model as transformers does. Names the file and the field or tensor.
    """
    found = checkpoint_path(path)
    config = read_config(
        config_file(found), dtype=dtype, compute_dtype=compute_dtype, max_length=max_length
    )
    mesh = make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
    with contextlib.ExitStack() as files:
        checkpoint = _open_whole(found, config, files)

        def place(path: tuple, variable: nnx.Variable) -> nnx.Variable:
            weight = _place(checkpoint, path_name(path), config, variable.get_value())
            return variable.replace(weight)

        params = nnx.map_state(place, param_shardings(config, mesh))
    return nnx.merge(nnx.graphdef(Transformer(config)), params)


def check_hf(path: str | Path, *, max_length: int | None = None) -> ModelConfig:
    """Check a checkpoint as `load_hf` does, by config.json and the headers of the weights alone.

    Args:
        path: as in `load_hf`.
        max_length: as in `load_hf`.

    Returns:
        The config of the checkpoint's model.

    Raises:
        InputError: as `load_hf`.
    """
    found = checkpoint_path(path)
    config = read_config(config_file(found), max_length=max_length)
    with contextlib.ExitStack() as files:
        _open_whole(found, config, files)
    return config


def _open_whole(found: Path, config: ModelConfig, files: contextlib.ExitStack) -> TensorSource:
    """Open a checkpoint's weights after a check of their headers against the config."""
    check_end_tokens(found, config.vocab_size)
    expected = {name: shape for name, _, _, shape in _layout(config)}
    checkpoint = open_tensors(found, config, expected, files)
    _check(checkpoint, config, expected)
    return checkpoint


def save_hf(
    model: Transformer,
    path: str | Path,
    tokenizer: Any = None,
    *,
    end_ids: Sequence[int] = (),
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` loads.

    The host holds one tensor at a time. With several processes, the first one writes.

    Args:
        model: the decoder; weights keep their type.
        path: the folder, created if missing; weights in it are replaced.
        tokenizer: saved with the model; its special tokens are named in config.json.
        end_ids: tokens at which transformers' `generate` stops, such as `ChatTemplate.end_ids`;
            default the tokenizer's eos. Some templates close a turn with another token.
        shard_bytes: largest size of a file.

    Raises:
        ValueError: transformers has no architecture that computes this network, or the model has
            adapters (`merge_lora` and `save_adapter` of `ixjax.models` export them).
    """
    if model.config.lora is not None:
        raise ValueError(
            "the model has adapters; expected none. Merge them (merge_lora) or save them alone "
            "(save_adapter)"
        )
    folder = Path(path)
    described = to_json(model.config, tokenizer, end_ids)
    values = _exported(model)
    try:
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            _write_weights(folder, model.config, values, shard_bytes)
    finally:
        if jax.process_count() > 1:
            # Every process must take part in the transfer of every tensor, after an error too.
            collections.deque(values, maxlen=0)
    if not is_first():
        return
    write_json(folder / CONFIG, described)
    # It repeats config.json, since an older file in the folder would override config.json.
    write_json(folder / GENERATION, {name: described[name] for name in SPECIAL_IDS})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _write_weights(
    folder: Path, config: ModelConfig, values: Iterator[np.ndarray], shard_bytes: int
) -> None:
    """Write files of weights and their index; remove older ones."""
    shards, dtype = _plan_shards(config, shard_bytes), jax.numpy.dtype(config.param_dtype)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = names if len(names) > 1 else [WEIGHTS]
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, shard, dtype, values)
    for stale in folder.glob("model*.safetensors*"):
        if stale.name not in names:
            stale.unlink()
    if len(shards) > 1:
        weight_map = {t: n for n, shard in zip(names, shards, strict=True) for t in shard}
        total = dtype.itemsize * sum(math.prod(s) for shard in shards for s in shard.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _layout(config: ModelConfig) -> Iterator[tuple[str, str, int | None, tuple[int, ...]]]:
    """Yield Hugging Face's tensors of this network: (their name, our path, layer, their shape)."""
    specs = weight_specs(config)
    for path, tensor in tensors(config).items():
        stacked = path.startswith("layers.")
        shape = specs[path].shape[1:] if stacked else specs[path].shape
        shape = shape[::-1] if tensor.transposed else shape
        for layer in range(config.num_layers) if stacked else [None]:
            yield tensor.name.format(layer), path, layer, shape


def _check(
    checkpoint: TensorSource, config: ModelConfig, expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse missing, surplus, misshapen and unreadable tensors, from the headers."""
    source, description = checkpoint.source, checkpoint.description
    for name, shape in expected.items():
        own = checkpoint.own_name(name)
        if name not in checkpoint.names:
            raise InputError(f"{source}: tensor {own} is missing; expected shape {list(shape)}")
        where, found = checkpoint.file(name), checkpoint.shape(name)
        if found != shape:
            raise InputError(
                f"{where}: tensor {own} has shape {list(found)}; {description} implies "
                f"{list(shape)}"
            )
        if checkpoint.dtype(name) not in checkpoint.kinds:
            raise InputError(
                f"{where}: tensor {own} has type {checkpoint.dtype(name)}; "
                f"expected one of {', '.join(checkpoint.kinds)}"
            )
    surplus = checkpoint.names - set(expected)
    if config.tie_embeddings and HEAD in surplus:
        _check_tied(checkpoint)
        surplus.remove(HEAD)
    if surplus:
        name = min(surplus)
        raise InputError(
            f"{checkpoint.file(name)}: tensor {name} is not part of the model in {description} "
            f"({len(surplus)} such tensors)"
        )


def _check_tied(checkpoint: TensorSource) -> None:
    """Refuse a head that differs from the tied embedding: only a repeated one may be skipped."""
    if not checkpoint.equal(_TENSORS["embedding"].name, HEAD):
        raise InputError(
            f"{checkpoint.file(HEAD)}: tensor {HEAD} differs from the embedding; expected equal "
            f"values, since {CONFIG} has tie_word_embeddings true. Set it to false"
        )


def _place(
    checkpoint: TensorSource, path: str, config: ModelConfig, sharding: NamedSharding
) -> jax.Array:
    """Read one of our weights into its shards."""
    tensor, spec = tensors(config)[path], weight_specs(config)[path]
    dtype = jax.numpy.dtype(config.param_dtype)
    read = functools.partial(checkpoint.read, transposed=tensor.transposed)

    if not path.startswith("layers."):
        return _from_parts(spec.shape, dtype, sharding, functools.partial(read, tensor.name))

    def read_layers(part: Part, out: np.ndarray) -> None:
        for i, layer in enumerate(range(*part[0])):
            read(tensor.name.format(layer), part[1:], out[i])

    if math.prod(spec.shape) * dtype.itemsize <= WHOLE_BYTES:
        return _from_parts(spec.shape, dtype, sharding, read_layers)
    # The layer axis is never sharded, so a layer has the sharding of its slice.
    layer_sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    empty, put = _in_place(spec.shape, dtype, sharding)
    whole = empty()
    for layer in range(config.num_layers):
        fill = functools.partial(read, tensor.name.format(layer))
        value = _from_parts(spec.shape[1:], dtype, layer_sharding, fill)
        # Without the wait, layers in transfer would accumulate on the host.
        whole = put(whole, value, layer).block_until_ready()
    return whole


def _from_parts(
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: NamedSharding,
    fill: Callable[[Part, np.ndarray], None],
) -> jax.Array:
    """Return an array in which `fill(part, out)` writes the part of each device."""

    @functools.cache  # devices that hold the same part share one read
    def read(part: Part) -> np.ndarray:
        out = np.empty([stop - start for start, stop in part], dtype)
        fill(part, out)
        return out

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        return read(tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True)))

    return jax.make_array_from_callback(shape, sharding, part)


@functools.lru_cache
def _in_place(
    shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding
) -> tuple[Callable[[], jax.Array], Callable[[jax.Array, jax.Array, int], jax.Array]]:
    """Return two functions: make a stacked weight of zeros, and write a layer into it in place."""

    def empty() -> jax.Array:
        return jax.numpy.zeros(shape, dtype)

    def put(whole: jax.Array, value: jax.Array, layer: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(whole, value, layer, 0)

    return (
        jax.jit(empty, out_shardings=sharding),
        jax.jit(put, donate_argnums=0, out_shardings=sharding),
    )


def _plan_shards(config: ModelConfig, limit: int) -> list[dict[str, tuple[int, ...]]]:
    """Return the tensors (name and shape) of each file, filled in order up to `limit` bytes."""
    item_bytes = jax.numpy.dtype(config.param_dtype).itemsize
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, _, _, shape in _layout(config):
        size = math.prod(shape) * item_bytes
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    return shards


def _exported(model: Transformer) -> Iterator[np.ndarray]:
    """Yield Hugging Face's tensors in the order of `_layout`, each whole on the host.

    All processes must iterate.
    """
    weights, named = weights_by_path(model), tensors(model.config)
    for _, path, layer, _ in _layout(model.config):
        weight = weights[path] if layer is None else _layer_of(weights[path], layer)
        value = to_host(weight)
        yield value.T if named[path].transposed else value


@jax.jit
def _layer_of(stacked: jax.Array, layer: int) -> jax.Array:
    return stacked[layer]
