"""Device memory, arithmetic and time of each stage of a run, computed from shapes.

Nothing is allocated, and the devices need not exist. Memory is computed by `ixjax.training.memory`
and `ixjax.generation.memory`, arithmetic by `ixjax.models.costs`. docs/scaling.md explains a plan
line by line.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ixjax import io
from ixjax.devices import KINDS, DeviceKind, DeviceName
from ixjax.generation.memory import SIDES, PlayMemory, dialogue_tokens, play_memory
from ixjax.generation.outcomes import OUTCOME_TOKENS
from ixjax.models import ModelConfig
from ixjax.models.costs import decode_flops, forward_flops, kv_bytes, training_flops
from ixjax.models.hf_config import read_config
from ixjax.models.hf_source import config_file
from ixjax.models.placement import MOMENTS, describe_sharding, device_share
from ixjax.padding import round_up
from ixjax.parallel import AnyMesh, abstract_mesh
from ixjax.pipeline.config import RunConfig
from ixjax.pipeline.engines import ADAPTERS
from ixjax.pipeline.evaluate import evaluation_tokens, look_ahead
from ixjax.pipeline.run import Run
from ixjax.pipeline.training import learning_config
from ixjax.pipeline.workload import Corpus, Work, count_corpus, pair_tokens, stage_work
from ixjax.search import SearchConfig
from ixjax.search.imcts import search_tokens
from ixjax.training.batching import Rows
from ixjax.training.dpo import PairObjective
from ixjax.training.memory import StepMemory, step_memory
from ixjax.training.pair_rows import LENGTH_STEP, PairRows
from ixjax.training.sft import SFTObjective
from ixjax.training.steps import trained_paths

OCCUPANCY = 0.85  # of the decode batch; docs/benchmarks.md has 87 to 92 %
USABLE = 0.9  # of a device's memory; the runtime and fragmentation take the rest
GB = 1e9


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """The device to plan for; figures that are not known are not estimated."""

    device: DeviceName | None = None
    """A known kind of device, whose figures are the defaults of the settings below."""
    peak_tflops: float | None = None
    """Dense matrix products of one device, 10^12 operations per second."""
    memory_gb: float | None = None
    """Memory of one device, 10^9 bytes."""
    bandwidth_gb: float | None = None
    """Memory bandwidth of one device, 10^9 bytes per second: it bounds decoding."""
    utilisation: float = 0.4
    """Share of the peak that training and reading reach."""
    bandwidth_utilisation: float = 0.6
    """Share of the bandwidth that decoding reaches."""

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        for name in ("peak_tflops", "memory_gb", "bandwidth_gb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise io.InputError(f"plan.{name} is {value}; expected more than 0")
        for name in ("utilisation", "bandwidth_utilisation"):
            if not 0 < getattr(self, name) <= 1:
                raise io.InputError(
                    f"plan.{name} is {getattr(self, name)}; expected a share in (0, 1]"
                )

    def figure(self, name: str) -> float | None:
        """Return `peak_tflops`, `memory_gb` or `bandwidth_gb`: as set, or of the device."""
        value = getattr(self, name)
        kind: DeviceKind | None = KINDS[self.device] if self.device else None
        return value if value is not None or kind is None else getattr(kind, name)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One stage: its tokens, operations and time.

    flops: of all devices together.
    seconds: of the stage; None if the device's figures are not known.
    """

    work: Work
    flops: float
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The needs of a run.

    parameters: of one model.
    mesh: devices along (data, fsdp, tensor), in training.
    play_devices: of each process that searches.
    training: memory of a step, by stage.
    play: memory of search and evaluation, by stage.
    estimates: by stage, in their order.
    warnings: stages that do not fit, with the flags to change.
    assumed: assumptions of the numbers.
    """

    parameters: int
    mesh: dict[str, int]
    play_devices: int
    training: dict[str, StepMemory]
    play: dict[str, PlayMemory]
    estimates: list[Estimate]
    warnings: list[str]
    assumed: list[str]


def make_plan(config: RunConfig, settings: PlanConfig, *, devices: int) -> Plan:
    """Plan a run.

    Args:
        config: of the run; if `out` has a prepared run, its corpus is counted.
        settings: the kind of device.
        devices: their number in training; processes of a search share them.

    Raises:
        InputError: there is no device, the mesh does not fit, or the checkpoint's config.json
            can't be read.
    """
    if devices < 1:
        raise io.InputError(f"--devices is {devices}; expected 1 or more")
    run = Run(config, io.RunDirectory(Path(config.out)))
    model, corpus = _model(run), count_corpus(run)
    mesh = abstract_mesh(config.mesh, devices)
    per_process, rest = divmod(devices, config.processes.count)
    if rest:
        raise io.InputError(
            f"--devices is {devices}; expected a multiple of --processes.count "
            f"({config.processes.count})"
        )
    play_mesh = abstract_mesh(config.mesh, per_process)
    training = _training(config, model, mesh)
    play = _play(config, settings, model, play_mesh)
    estimates = [
        _estimate(work, config, settings, model, (mesh, play_mesh), corpus)
        for work in stage_work(config, corpus)
    ]
    return Plan(
        parameters=model.num_parameters,
        mesh=dict(mesh.shape),
        play_devices=per_process,
        training=training,
        play=play,
        estimates=estimates,
        warnings=_warnings(settings, training, play),
        assumed=_assumptions(config, settings, corpus),
    )


def _model(run: Run) -> ModelConfig:
    arguments = run.config.model
    if arguments.path:
        return read_config(
            config_file(Path(arguments.path)),
            dtype=arguments.param_dtype,
            compute_dtype=arguments.compute_dtype,
            max_length=arguments.max_length,
        )
    prepared = run.directory.tokenizer.exists()
    size = run.template.vocab_size if prepared else run.config.tokenizer.vocab_size
    return arguments.to_config(size)


def training_objectives(config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the objective of each training stage, without rematerialisation, and its batch."""
    dpo = dataclasses.replace(PairObjective.of(config.dpo), remat="none")
    return {"sft": (SFTObjective(), _sft_batch(config)), "dpo": (dpo, _dpo_batch(config))}


def _training(config: RunConfig, model: ModelConfig, mesh: AnyMesh) -> dict[str, StepMemory]:
    """Return the memory of a step of each training stage."""
    # Besides the learning weights: the initial ones, and the best so far.
    copies = {"sft": 2, "dpo": 1 + (config.dpo.validation_fraction > 0)}
    found = {}
    for stage, (objective, batch) in training_objectives(config).items():
        settings = getattr(config, stage)
        learning = learning_config(model, settings)
        found[stage] = step_memory(
            learning,
            mesh,
            objective,
            batch,
            remat=settings.remat,
            trained=trained_paths(learning, settings.frozen),
            micro_batches=settings.micro_batches,
            moments=MOMENTS if settings.optimizer.kind == "adamw" else 0,
            copies=copies[stage],
        )
    return found


def _rows(count: int, *, length: int, scored: int) -> Rows:
    """Return token rows as shapes."""
    tokens = jax.ShapeDtypeStruct((count, length), jnp.int32)
    targets = jax.ShapeDtypeStruct((count, scored), jnp.int32)
    weights = jax.ShapeDtypeStruct((count, scored), jnp.float32)
    return Rows(tokens, tokens, tokens, tokens, targets, targets, weights)


def _sft_batch(config: RunConfig) -> Rows:
    """Return full rows in which every token may be scored."""
    length = config.model.max_length
    return _rows(config.sft.batch_size, length=length, scored=length)


def _dpo_batch(config: RunConfig) -> PairRows:
    """Return a row per pair, of the longest possible pair; shorter pairs share rows."""
    count, scored = config.dpo.batch_size, 2 * _response_tokens(config)
    rows = _rows(count, length=pair_tokens(config), scored=scored)
    which = jax.ShapeDtypeStruct((count, 1), jnp.int32)
    return PairRows(
        rows=rows,
        segments=rows.targets,
        chosen=which,
        rejected=which,
        reference=jax.ShapeDtypeStruct((count, 1, 2), jnp.float32),
        weights=jax.ShapeDtypeStruct((count, 1), jnp.float32),
    )


def _response_tokens(config: RunConfig) -> int:
    return min(round_up(config.sampling.max_new_tokens, LENGTH_STEP), config.model.max_length)


def _ahead(config: RunConfig) -> SearchConfig:
    """Return the search of the most expensive method of the evaluation."""
    return look_ahead(config, max(config.evaluation.think, 1))


def _play(
    config: RunConfig, settings: PlanConfig, model: ModelConfig, mesh: AnyMesh
) -> dict[str, PlayMemory]:
    """Return the memory of the search, and of the evaluation's look-ahead with a user."""
    on_device = settings.device is not None
    turn = config.sampling.max_new_tokens
    longest = model.max_length - turn - OUTCOME_TOKENS
    search = config.search
    stored = {
        "search": SIDES * search.trees * search_tokens(search, turn, longest),
        "evaluate": evaluation_tokens(config, longest=model.max_length),
    }
    turns = {"search": search.max_turns, "evaluate": config.evaluation.max_turns}
    models, adapted = {"search": 2, "evaluate": 3}, config.sft.lora.to_config()
    if adapted:  # all speakers are adapters of one base, unless DPO merges the policy's
        model = dataclasses.replace(model, lora=dataclasses.replace(adapted, adapters=ADAPTERS))
        models = {"search": 1, "evaluate": 1 + bool(config.dpo.lora.rank)}
    return {
        stage: play_memory(
            model,
            mesh,
            config.engine,
            tokens=tokens,
            longest=dialogue_tokens(turns[stage], turn, longest),
            paged=on_device,
            models=models[stage],
        )
        for stage, tokens in stored.items()
    }


def _estimate(
    work: Work,
    config: RunConfig,
    settings: PlanConfig,
    model: ModelConfig,
    meshes: tuple[AnyMesh, AnyMesh],
    corpus: Corpus,
) -> Estimate:
    """Return operations and time of one stage."""
    mesh, is_dpo = meshes[0], work.stage == "dpo"
    length = pair_tokens(config) if is_dpo else model.max_length
    share = 2 * _response_tokens(config) / length if is_dpo else 1.0
    context = min(corpus.root_tokens + config.search.max_turns * corpus.turn_tokens, length)
    stage = config.dpo if is_dpo else config.sft
    trained = training_flops(
        learning_config(model, stage),
        work.trained,
        length,
        scored=share * work.trained,
        remat=stage.remat,
    )
    # Contexts are extended turn by turn; the head is applied to the last token of each turn.
    scored = share * work.read if is_dpo else work.read / corpus.turn_tokens
    read = forward_flops(model, work.read, length if is_dpo else context, scored=scored)
    sampled = decode_flops(model, work.sampled, context)
    peak, seconds = settings.figure("peak_tflops"), None
    if peak is not None:
        rate = mesh.size * peak * 1e12 * settings.utilisation
        seconds = (trained + read) / rate
        if work.sampled:
            bound = _decode_seconds(work, config, settings, model, meshes[1], context)
            seconds = None if bound is None else seconds + max(bound, sampled / rate)
    return Estimate(work, trained + read + sampled, seconds)


def _decode_seconds(
    work: Work,
    config: RunConfig,
    settings: PlanConfig,
    model: ModelConfig,
    mesh: AnyMesh,
    context: float,
) -> float | None:
    """Return the time to decode: a step reads a device's weights, keys and values."""
    bandwidth = settings.figure("bandwidth_gb")
    if bandwidth is None:
        return None
    search = config.search if work.stage == "search" else _ahead(config)
    rows = min(config.engine.rows, search.trees * search.most_rollouts)
    steps = work.sampled / config.processes.count / (rows * OCCUPANCY)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    keys = rows / parts * context * kv_bytes(device_share(model, mesh))
    # Weights that `fsdp` has split are gathered, and then read.
    weights = describe_sharding(model, mesh).weight_bytes * mesh.shape["fsdp"]
    return steps * (weights + keys) / (bandwidth * GB * settings.bandwidth_utilisation)


def _warnings(
    settings: PlanConfig, training: dict[str, StepMemory], play: dict[str, PlayMemory]
) -> list[str]:
    """Return the stages that do not fit with remedies, the largest part first."""
    memory = settings.figure("memory_gb")
    if memory is None:
        return []
    found = []
    for stage, need in {**training, **play}.items():
        if need.peak <= USABLE * memory * GB:
            continue
        remedies = _TRAINING_REMEDIES if isinstance(need, StepMemory) else _PLAY_REMEDIES
        parts = sorted(remedies, key=lambda name: -getattr(need, name))
        rows = _ROWS.get(stage, "")
        ways = dict.fromkeys(remedies[name].format(stage=stage, rows=rows) for name in parts[:2])
        found.append(
            f"{stage} needs {need.peak / GB:.1f} GB on a device of {memory:g} GB "
            f"({USABLE:.0%} usable), most of it {parts[0].replace('_', ' ')} "
            f"({getattr(need, parts[0]) / GB:.1f} GB): {'; or '.join(ways)}"
        )
    return found


_MORE_SHARDS = "more devices along --mesh.fsdp (or --mesh.tensor)"
_TRAINING_REMEDIES = {
    "weights": _MORE_SHARDS,
    "copies": _MORE_SHARDS,
    "moments": _MORE_SHARDS,
    "gradients": _MORE_SHARDS,
    "gathered": "--mesh.tensor",
    "sums": _MORE_SHARDS,
    "activations": "--{stage}.remat dots or full, or --{stage}.micro-batches",
    "working": "--{stage}.micro-batches, or --mesh.tensor",
    "logits": "--{stage}.micro-batches, or --mesh.tensor",
}
_ROWS = {
    "search": "--search.trees, --search.contexts",
    "evaluate": "--evaluation.batch, --evaluation.think",
}
_PLAY_REMEDIES = {
    "weights": f"{_MORE_SHARDS}, or --model.param-dtype bfloat16",
    "copies": f"{_MORE_SHARDS}, or --engine.attention xla",
    "cache": "smaller {rows}, --engine.pool-tokens or --model.max-length",
    "batches": "smaller --engine.rows",
    "reading": "smaller --engine.prefill-tokens",
}


def _assumptions(config: RunConfig, settings: PlanConfig, corpus: Corpus) -> list[str]:
    """Return the assumptions of the numbers, for people."""
    return [
        *corpus.assumed,
        f"turns of {corpus.turn_tokens:.0f} tokens; no dialogue ends and no tree stops before its "
        "limit, no training before its last step",
        f"rows of {config.model.max_length} tokens in SFT, and of {pair_tokens(config)} for a pair "
        "in DPO, the most that there can be",
        f"{settings.utilisation:.0%} of the peak, {settings.bandwidth_utilisation:.0%} of the "
        f"bandwidth, decode batches {OCCUPANCY:.0%} full; no time for the host, compilation, files",
    ]
