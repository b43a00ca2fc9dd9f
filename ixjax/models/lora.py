"""LoRA adapters: added to a base, merged into it, read and written in PEFT's format.

A model's adapters are stacked in its blocks (`ixjax.models.transformer.low_rank`), so that policy
and simulator share one base and one batch, and each row chooses its adapter.

References: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models";
https://huggingface.co/docs/peft (adapter_config.json, adapter_model.safetensors).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors.numpy import load_file

from ixjax.distributed import is_first, to_host
from ixjax.io import InputError, read_object, write_json
from ixjax.models.config import LORA_TARGETS, LoraConfig, ModelConfig
from ixjax.models.hf import tensors
from ixjax.models.hf_files import ADAPTER_CONFIG, checked_file, save_whole
from ixjax.models.sharding import (
    mesh_of,
    model_of,
    param_shardings,
    path_name,
    weights_by_path,
)
from ixjax.models.transformer import Transformer, weight_specs

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Settings of PEFT that would change an adapter's output, with their supported values.
MUST_BE = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "exclude_modules": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "lora_bias": (False, None),
    # Other values (pissa, olora, ...) subtract the initial adapter from the base, and PEFT repeats
    # that when it loads an adapter.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None, {}),
    "kasa_config": (None, {}),
    "monteclora_config": (None, {}),
}


def add_lora(
    model: Transformer, lora: LoraConfig, *, seed: int, mesh: Mesh | None = None
) -> Transformer:
    """Return the same base with new adapters, which change nothing until they are trained.

    Args:
        model: a decoder without adapters; its weights are shared, not copied.
        lora: size and number of the adapters.
        seed: seed of their first matrices; the second ones are zero.
        mesh: devices for the adapters; default: the model's.

    Returns:
        A decoder with the same weights and adapters.

    Raises:
        ValueError: the model has adapters already.
    """
    keys = jax.random.split(jax.random.key(seed), 2 * len(lora.targets))
    config = _with_lora(model, lora)
    names = sorted(adapter_paths(config))
    specs, dtype = weight_specs(config), jnp.dtype(config.param_dtype)
    drawn = {name: specs[name].draw(key, dtype) for name, key in zip(names, keys, strict=True)}
    return _with_weights(model, config, drawn, mesh)


def merge_lora(model: Transformer, adapter: int = 0) -> Transformer:
    """Return a decoder without adapters that computes the same as the base with one of them.

    Sums are computed in float32 and rounded once to the base's type.

    Raises:
        ValueError: the model has no such adapter.
    """
    lora = _lora_of(model, adapter)
    weights = weights_by_path(model)
    for target in lora.targets:
        a, b = (weights[f"layers.{target}_lora_{side}"][:, adapter] for side in "ab")
        base = weights[f"layers.{target}"]
        added = jnp.einsum("lir,lro->lio", a, b, preferred_element_type=jnp.float32)
        merged = base.astype(jnp.float32) + added * (lora.alpha / lora.rank)
        weights[f"layers.{target}"] = merged.astype(base.dtype)
    return model_of(dataclasses.replace(model.config, lora=None), weights)


def new_adapter(model: Transformer, lora: LoraConfig | None, *, seed: int) -> Transformer:
    """Return the start of a training of adapters: the same function with a new, zero adapter.

    Args:
        model: a decoder; an adapter that it has is merged into its base.
        lora: size of the new adapter; None returns the model unchanged.
        seed: see `add_lora`.
    """
    if lora is None:
        return model
    return add_lora(model if model.config.lora is None else merge_lora(model), lora, seed=seed)


def stack_adapters(models: Sequence[Transformer]) -> Transformer:
    """Return one base, the first model's, with the adapters of all `models` in their order.

    Raises:
        ValueError: no model is given, a model has no adapter, or models differ in more than their
            adapters' weights.
    """
    if not models:
        raise ValueError("models is empty; expected at least one model")
    loras = [_lora_of(model) for model in models]
    plain = {_without_count(model.config) for model in models}
    if len(plain) > 1:
        raise ValueError(
            f"models have {len(plain)} configs; expected equal configs, adapters included"
        )
    by_path = [weights_by_path(model) for model in models]
    stacked = dict(by_path[0])
    for name, first in by_path[0].items():
        values = [weights[name] for weights in by_path]
        if "_lora_" in name:
            stacked[name] = jnp.concatenate(values, axis=1)
        elif not all(value is first or jnp.array_equal(value, first) for value in values):
            raise ValueError(f"{name} differs between the models; expected adapters of one base")
    lora = dataclasses.replace(loras[0], adapters=sum(lora.adapters for lora in loras))
    return model_of(dataclasses.replace(models[0].config, lora=lora), stacked)


def one_adapter(model: Transformer, adapter: int) -> Transformer:
    """Return the base with one of its adapters.

    Raises:
        ValueError: the model has no such adapter.
    """
    lora = dataclasses.replace(_lora_of(model, adapter), adapters=1)
    weights = weights_by_path(model)
    for name in adapter_paths(model.config):
        weights[name] = weights[name][:, adapter : adapter + 1]
    return model_of(dataclasses.replace(model.config, lora=lora), weights)


def adapter_paths(config: ModelConfig) -> list[str]:
    """Return the names of the adapters' matrices in `weight_specs`."""
    return [name for name in weight_specs(config) if "_lora_" in name]


def save_adapter(
    model: Transformer, path: str | Path, *, adapter: int = 0, base: str | None = None
) -> None:
    """Write one adapter as a folder that `peft.PeftModel.from_pretrained` loads.

    Args:
        model: a decoder with adapters; weights keep their type.
        path: the folder, created if missing.
        adapter: index of the adapter.
        base: name or folder of the base checkpoint, for PEFT's automatic loading of the base.

    Raises:
        ValueError: the model has no such adapter.
    """
    lora = _lora_of(model, adapter)
    folder = Path(path)
    weights = weights_by_path(model)
    values = {
        name: np.ascontiguousarray(to_host(weights[ours][layer, adapter]).T)
        for name, ours, layer, _ in _layout(model.config)
    }
    if not is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_whole(folder / ADAPTER_WEIGHTS, values)
    modules = _modules(model.config)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": [modules[target] for target in lora.targets],
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }
    write_json(folder / ADAPTER_CONFIG, described)


def load_adapter(model: Transformer, path: str | Path, *, mesh: Mesh | None = None) -> Transformer:
    """Return a base with one adapter in PEFT's format.

    Args:
        model: a decoder without adapters; its weights are shared, not copied.
        path: folder with adapter_config.json and adapter_model.safetensors.
        mesh: devices for the adapter; default: the model's.

    Returns:
        A decoder with the same weights, and the adapter in their type.

    Raises:
        InputError: the folder is not such an adapter, or its adapter does not fit this base. Names
            the file and the field or tensor.
        ValueError: the model has adapters already.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected {ADAPTER_CONFIG} and its weights")
    config = _with_lora(model, _read_lora(folder / ADAPTER_CONFIG, model.config))
    file = folder / ADAPTER_WEIGHTS
    with checked_file(file, missing="pickled adapters are not read"):
        found = load_file(file)
    specs = weight_specs(config)
    values = {
        name: np.empty(specs[name].shape, jnp.dtype(config.param_dtype))
        for name in adapter_paths(config)
    }
    for name, ours, layer, shape in _layout(config):
        tensor = found.pop(name, None)
        if tensor is None:
            raise InputError(f"{file}: tensor {name} is missing; expected shape {list(shape)}")
        if tensor.shape != shape:
            raise InputError(
                f"{file}: tensor {name} has shape {list(tensor.shape)}; the base and "
                f"{ADAPTER_CONFIG} imply {list(shape)}"
            )
        values[ours][layer, 0] = tensor.T
    if found:
        raise InputError(
            f"{file}: tensor {min(found)} belongs to no projection of target_modules "
            f"({len(found)} such tensors)"
        )
    return _with_weights(model, config, values, mesh)


def _read_lora(path: Path, base: ModelConfig) -> LoraConfig:
    settings = read_object(path)

    def error(name: str, expected: str) -> InputError:
        return InputError(f"{path}: {name} is {settings.get(name)!r}; expected {expected}")

    for name, accepted in MUST_BE.items():
        if name in settings and settings[name] not in accepted:
            raise error(name, f"{accepted[0]!r}, the only supported computation")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise error("r", "a positive integer")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not alpha > 0:
        raise error("lora_alpha", "a positive number")
    if settings.get("use_rslora"):  # alpha / sqrt(rank) there
        alpha = alpha * math.sqrt(rank)
    targets = _targets(settings.get("target_modules"), base)
    if not targets:
        expected = f"'all-linear' or a list of {', '.join(_modules(base).values())}, in every layer"
        raise error("target_modules", expected)
    return LoraConfig(rank, float(alpha), targets)


def _targets(modules: Any, base: ModelConfig) -> tuple[str, ...]:
    """Return our targets for PEFT's module names: full (`model.layers.0.mlp.up_proj`) or suffixes.

    Empty if a module is no projection, or is adapted in some layers only.
    """
    if modules == "all-linear":
        return LORA_TARGETS
    named = tensors(dataclasses.replace(base, lora=None))
    names = {
        target: [
            named[f"layers.{target}"].name.removesuffix(".weight").format(layer)
            for layer in range(base.num_layers)
        ]
        for target in LORA_TARGETS
    }
    if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
        return ()
    adapted = {
        module: {name for of in names.values() for name in of if f".{name}".endswith(f".{module}")}
        for module in modules
    }
    covered = set().union(*adapted.values())
    whole = tuple(target for target, of in names.items() if covered.issuperset(of))
    partly = covered - {name for target in whole for name in names[target]}
    return () if partly or not all(adapted.values()) else whole


def _modules(config: ModelConfig) -> dict[str, str]:
    """Map our targets to names of Hugging Face's modules, such as q_proj."""
    named = tensors(dataclasses.replace(config, lora=None))
    return {target: named[f"layers.{target}"].name.split(".")[-2] for target in LORA_TARGETS}


def _layout(config: ModelConfig) -> Iterator[tuple[str, str, int, tuple[int, int]]]:
    """Yield PEFT's tensors of one adapter: (their name, our path, layer, their shape)."""
    named, specs = tensors(dataclasses.replace(config, lora=None)), weight_specs(config)
    for name in adapter_paths(config):
        target, side = name.rsplit("_lora_", 1)
        *_, width, out = specs[name].shape
        module = named[target].name.removesuffix(".weight")
        for layer in range(config.num_layers):
            full = f"base_model.model.{module.format(layer)}.lora_{side.upper()}.weight"
            yield full, name, layer, (out, width)


def _lora_of(model: Transformer, adapter: int = 0) -> LoraConfig:
    lora = model.config.lora
    if lora is None or not 0 <= adapter < lora.adapters:
        count = 0 if lora is None else lora.adapters
        raise ValueError(f"adapter is {adapter}; expected one of the model's {count} adapters")
    return lora


def _without_count(config: ModelConfig) -> ModelConfig:
    assert config.lora is not None
    return dataclasses.replace(config, lora=dataclasses.replace(config.lora, adapters=1))


def _with_lora(model: Transformer, lora: LoraConfig) -> ModelConfig:
    if model.config.lora is not None:
        raise ValueError("the model has adapters; expected none. Merge them first (merge_lora)")
    return dataclasses.replace(model.config, lora=lora)


def _with_weights(
    model: Transformer, config: ModelConfig, adapters: Mapping[str, Any], mesh: Mesh | None
) -> Transformer:
    """Return a model of the given model's weights and of adapters, which are placed on the mesh."""
    mesh = mesh_of(model) if mesh is None else mesh
    shardings = nnx.to_flat_state(param_shardings(config, mesh))
    where = {path_name(path): leaf.get_value() for path, leaf in shardings}
    placed = {name: jax.device_put(value, where[name]) for name, value in adapters.items()}
    return model_of(config, weights_by_path(model) | placed)
