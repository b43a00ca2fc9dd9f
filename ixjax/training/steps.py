"""Jitted training steps of an objective, an optimiser, a mesh and the weights that learn.

Parameters and optimiser state have the same sharding, and a step donates its state. A batch may be
taken in micro-batches whose gradients are added before the optimiser's update. An objective returns
shares of the mean over the whole batch, so that micro-batches change rounding only. Trainings of
equal shape share one compilation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ixjax.distributed import to_devices
from ixjax.io import InputError
from ixjax.models import ModelConfig, Transformer, mesh_of
from ixjax.models.transformer import weight_specs
from ixjax.parallel import BATCH_AXES, batch_sharding, on, replicated
from ixjax.training.batching import pad_rows
from ixjax.training.saved_models import abstract_tree, split

Weight = Mapping[str, jax.Array]


class Objective(Protocol):
    """The loss of a training: a mean, or a sum of means, over the members of a batch.

    Objectives of equal settings must be equal and have equal hashes: they key compiled steps.
    """

    def weight(self, batch: Any, /) -> Weight:
        """Return the divisors of the sums over a batch; they add up over its parts."""
        ...

    def __call__(
        self, model: Transformer, batch: Any, weight: Weight, /
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the share of a part of a batch in the loss and metrics of the whole.

        Args:
            model: the decoder.
            batch: a part, or all, of a batch.
            weight: of the whole batch.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Steps:
    """The jitted functions of one objective on one mesh.

    abstract_state: (trained parameters, optimiser state) as shapes with their shardings.
    init: trained parameters -> optimiser state.
    train: (state, frozen parameters, batch, learning rate) -> (state, metrics); the state is
        donated.
    """

    abstract_state: Any
    init: Callable[..., Any]
    train: Callable[..., Any]


def trained_paths(config: ModelConfig, frozen: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the paths of the weights that learn: those of the adapters, or else all.

    Args:
        config: of the model.
        frozen: weights that do not learn: a path (`embedding`), or the beginning of several
            (`layers.query` with its bias and norm).

    Raises:
        InputError: no weight has such a name, or none is left to learn.
    """
    paths = list(weight_specs(config))
    for name in frozen:
        if not any(_begins_with(path, name) for path in paths):
            raise InputError(f"frozen is {name!r}; expected a weight of {', '.join(paths)}")
    chosen = [p for p in paths if "_lora_" in p] if config.lora is not None else paths
    left = tuple(p for p in chosen if not any(_begins_with(p, name) for name in frozen))
    if not left:
        raise InputError(f"frozen is {tuple(frozen)}; expected a weight that is left to train")
    return left


def _begins_with(path: str, name: str) -> bool:
    return path == name or path.startswith((f"{name}.", f"{name}_"))


def join(some: Any, others: Any) -> Any:
    """Join the two results of `split`."""
    flat = [nnx.traversals.flatten_mapping(part, sep=".") for part in (some, others)]
    return nnx.traversals.unflatten_mapping(flat[0] | flat[1], sep=".")


@functools.lru_cache(maxsize=16)
def make_steps(
    config: ModelConfig,
    mesh: Mesh,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    trained: tuple[str, ...] | None = None,
    micro_batches: int = 1,
) -> Steps:
    """Return the functions of a training; equal arguments give the same, so one compilation.

    Args:
        config: of the model.
        mesh: the devices.
        objective: the loss.
        optimizer: gradients -> updates, to be multiplied by minus the learning rate.
        trained: paths of the weights that learn; None: `trained_paths(config)`.
        micro_batches: parts that a batch is taken in, one after the other.
    """
    graph = nnx.graphdef(Transformer(config))
    trained = trained_paths(config) if trained is None else trained
    learning, frozen = split(abstract_tree(config, mesh), trained)

    def init(params: Any) -> Any:
        # Moments are float32 for parameters of any type: 16 bits would lose small ones.
        return optimizer.init(jax.tree.map(lambda p: p.astype(jnp.float32), params))

    abstract = (learning, _abstract_moments(init, learning, mesh, optimizer))
    shardings, frozen_shardings = jax.tree.map(lambda leaf: leaf.sharding, (abstract, frozen))

    def gradients(params: Any, frozen: Any, batch: Any) -> tuple[Any, Any]:
        weight = jax.tree.map(lambda w: jnp.maximum(w, 1.0), objective.weight(batch))

        def share(params: Any, part: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            with on(mesh):
                return objective(nnx.merge(graph, join(params, frozen)), part, weight)

        def of_part(part: Any) -> tuple[Any, Any]:
            (loss, metrics), grads = jax.value_and_grad(share, has_aux=True)(params, part)
            # Sums over parts are float32 for parameters of any type.
            return metrics | {"loss": loss}, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

        if micro_batches == 1:
            return of_part(batch)
        parts = _in_parts(batch, micro_batches, mesh)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts)),
        )
        add = functools.partial(jax.tree.map, jnp.add)
        return jax.lax.scan(lambda sums, part: (add(sums, of_part(part)), None), zeros, parts)[0]

    def train_step(
        state: Any, frozen: Any, batch: Any, learning_rate: jax.Array
    ) -> tuple[Any, Any]:
        params, opt_state = state
        metrics, grads = gradients(params, frozen, batch)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, u: p - (learning_rate * u).astype(p.dtype), params, updates)
        return (params, opt_state), metrics

    return Steps(
        abstract_state=abstract,
        init=jax.jit(init, in_shardings=shardings[:1], out_shardings=shardings[1]),
        train=jax.jit(
            train_step,
            in_shardings=(shardings, frozen_shardings, batch_sharding(mesh), replicated(mesh)),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
        ),
    )


def _in_parts(batch: Any, count: int, mesh: Mesh) -> Any:
    """Reshape `[R, ...]` to `[count, R / count, ...]`; no row leaves its device."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def part(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(part, batch)


def _abstract_moments(
    init: Callable[..., Any], params: Any, mesh: Mesh, optimizer: optax.GradientTransformation
) -> Any:
    """Return the optimiser state as shapes: moments sharded as parameters, counters replicated."""
    return optax.tree_map_params(
        optimizer,
        lambda leaf, param: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=param.sharding),
        jax.eval_shape(init, params),
        params,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=replicated(mesh)
        ),
    )


@functools.lru_cache(maxsize=16)
def make_eval_step(config: ModelConfig, mesh: Mesh, function: Callable[..., Any]) -> Any:
    """Jit `function(model, batch)` as (params, batch) -> result, replicated on all devices."""
    graph, shardings = nnx.graphdef(Transformer(config)), _shardings(config, mesh)

    def evaluate(params: Any, batch: Any) -> Any:
        with on(mesh):
            return function(nnx.merge(graph, params), batch)

    return jax.jit(
        evaluate,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


@functools.lru_cache(maxsize=16)
def make_loss_step(config: ModelConfig, mesh: Mesh, objective: Objective) -> Any:
    """Jit (params, batch, weight of all batches) -> share of the batch in their loss."""
    graph, shardings = nnx.graphdef(Transformer(config)), _shardings(config, mesh)

    def share(params: Any, batch: Any, weight: Any) -> jax.Array:
        with on(mesh):
            return objective(nnx.merge(graph, params), batch, weight)[0]

    return jax.jit(
        share,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )


def _shardings(config: ModelConfig, mesh: Mesh) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_tree(config, mesh))


def mean_loss(model: Transformer, objective: Objective, batches: Sequence[Any]) -> float:
    """Return the loss of all batches (host arrays) as if they were one."""
    mesh, weight = mesh_of(model), total_weight(objective, batches)
    params = place_params(model, mesh)
    return loss_of(params, objective, batches, weight, config=model.config, mesh=mesh)


def total_weight(objective: Objective, batches: Sequence[Any]) -> dict[str, np.float32]:
    """Return the divisors of sums over all batches (host arrays); empty without batches."""
    weights = [jax.device_get(objective.weight(batch)) for batch in batches]
    names = weights[0] if weights else ()
    return {name: np.float32(max(sum(float(w[name]) for w in weights), 1.0)) for name in names}


def loss_of(
    params: Any,
    objective: Objective,
    batches: Sequence[Any],
    weight: Mapping[str, np.float32],
    *,
    config: ModelConfig,
    mesh: Mesh,
) -> float:
    """Return `mean_loss` of placed parameters and batches of known weight."""
    evaluate = make_loss_step(config, mesh, objective)
    shares = [evaluate(params, place_batch(batch, mesh), weight) for batch in batches]
    return float(np.array(jax.device_get(shares), np.float64).sum())


def place_params(model: Transformer, mesh: Mesh) -> Any:
    """Return the parameters with the shardings of a training on `mesh`."""
    abstract = abstract_tree(model.config, mesh)
    return jax.device_put(
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
        jax.tree.map(lambda leaf: leaf.sharding, abstract),
    )


def place_batch(batch: Any, mesh: Mesh, *, parts: int = 1) -> Any:
    """Place host arrays on the devices, padded with rows without weight to equal shares.

    Every process makes the whole batch, a few megabytes of integers, and places the rows of its
    devices; the batch does not depend on the number of processes.

    Args:
        batch: leading axis R.
        mesh: the devices.
        parts: micro-batches.
    """
    multiple = mesh.shape["data"] * mesh.shape["fsdp"] * parts
    return to_devices(pad_rows(batch, multiple=multiple), batch_sharding(mesh))
