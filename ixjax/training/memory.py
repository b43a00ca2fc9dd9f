"""Device memory of a training step, computed from shapes without compilation.

Weights, moments and gradients follow from the sharding rules. The arrays that the forward pass
saves for the backward pass are found by tracing `jax.vjp` of the training loss on one device's
share. How many of them are stored depends on how the blocks are compiled:

- scanned: every such array is an output of the loop, stacked over the layers;
- unrolled: the compiler sees both passes. Views are free, and elementwise functions that only the
  backward pass needs are computed there;
- with rematerialisation: a block's input is stored (and, for `dots`, its products with weights),
  and one block's arrays exist at a time. (XLA's CPU backend recomputes unrolled blocks early, which
  saves little memory.)

`tests/training/test_memory.py` and `benchmarks/memory.py` compare this with XLA's allocations.
docs/scaling.md explains it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ixjax.models import ModelConfig, Remat
from ixjax.models.placement import MOMENTS, Placement, describe_sharding, device_share
from ixjax.models.sharding import model_of
from ixjax.models.transformer import FULL_UNROLL_LAYERS, weight_specs
from ixjax.parallel import AnyMesh
from ixjax.training.steps import Objective, trained_paths

# (shape, dtype) -> number of such arrays
Arrays = collections.Counter

VIEWS = {"reshape", "transpose", "squeeze", "expand_dims", "slice", "copy", "stop_gradient"}
# Results of these primitives are stored; other primitives are fused into their users.
STORED = {
    *("dot_general", "gather", "scatter", "scatter-add", "concatenate", "sort", "cumsum"),
    *("reduce_sum", "reduce_max", "reduce_min", "argmax", "scan", "while", "custom_vjp_call"),
}
# Recomputed by every user, which is cheaper than reading from memory.
FREE = {"broadcast_in_dim", "iota", "convert_element_type", "and", "or", "eq", "lt", "ge", "gt"}


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes on one device while a step runs."""

    weights: int
    """Parameters, including frozen ones."""
    copies: int
    """Copies of the learning weights: the initial ones, the best so far."""
    moments: int
    """AdamW's moments of the learning weights."""
    batch: int
    """The step's token arrays."""
    gradients: int
    """Of the learning weights, in float32."""
    sums: int
    """Of the gradients of micro-batches, if there are several."""
    activations: int
    """Arrays of the blocks that are saved for the backward pass."""
    working: int
    """One block in the backward pass: its recomputed arrays, or its largest gradient."""
    logits: int
    """Arrays of the embedding and LM head that are saved: mostly the scored logits."""
    logits_gradient: int
    """Of the scored logits."""
    gathered: int
    """Weights gathered from other devices for their products."""

    @property
    def resident(self) -> int:
        """Bytes held between two steps."""
        return self.weights + self.copies + self.moments + self.batch

    @property
    def temporary(self) -> int:
        """Bytes that a step adds at its peak.

        The backward pass starts with the gradient of the logits and continues with those of the
        weights, block by block; the update holds gradients and updates.
        """
        backward = self.sums + self.activations + self.logits + self.gathered
        backward += max(self.logits_gradient, self.gradients + self.working)
        return max(backward, 2 * self.gradients)

    @property
    def peak(self) -> int:
        """Largest number of bytes that a device holds."""
        return self.resident + self.temporary


def step_memory(
    config: ModelConfig,
    mesh: AnyMesh,
    objective: Objective,
    batch: Any,
    *,
    remat: Remat = "none",
    trained: tuple[str, ...] | None = None,
    micro_batches: int = 1,
    moments: int = MOMENTS,
    copies: int = 0,
) -> StepMemory:
    """Return the bytes that a training step takes on one device.

    Args:
        config: of the model.
        mesh: real or abstract.
        objective: the loss, without rematerialisation.
        batch: of a step, as arrays or shapes; rows lead.
        remat: what a block recomputes in the backward pass.
        trained: see `ixjax.training.steps.make_steps`.
        micro_batches: parts that the batch is taken in.
        moments: numbers that the optimiser keeps per learning weight: AdamW 2, SGD 0.
        copies: of the learning weights: the initial ones, the best so far.
    """
    trained = trained_paths(config) if trained is None else trained
    placement, share = describe_sharding(config, mesh, trained=trained), device_share(config, mesh)
    part = _batch_share(batch, mesh, parts=micro_batches)
    one, two = (_Trace.of(objective, _shallow(share, n), part, trained) for n in (1, 2))
    layer, head = two.fused - one.fused, one.fused - (two.fused - one.fused)
    dots = two.dots - one.dots
    scored = [array for array in head if array[0][-1:] == (share.vocab_size,)]
    unrolled = config.num_layers <= FULL_UNROLL_LAYERS
    width = share.hidden_size * jnp.dtype(config.compute_dtype).itemsize
    kept = {
        "none": _bytes(layer) if unrolled else two.looped - one.looped,
        "dots": _tokens(part) * width + _bytes(dots),
        "full": _tokens(part) * width,
    }[remat]
    return StepMemory(
        weights=placement.weight_bytes,
        copies=copies * placement.trained_bytes,
        moments=moments * placement.gradient_bytes,
        batch=micro_batches * _bytes(_arrays(jax.tree.leaves(part))),
        gradients=placement.gradient_bytes,
        sums=placement.gradient_bytes if micro_batches > 1 else 0,
        activations=kept * config.num_layers,
        working=_working(layer, dots, unrolled=unrolled, remat=remat),
        logits=_bytes(head),
        logits_gradient=max((_bytes({array: 1}) for array in scored), default=0),
        gathered=_gathered(config, placement, mesh, unrolled=unrolled),
    )


@dataclasses.dataclass(frozen=True)
class _Trace:
    """Arrays saved for the backward pass, for the two ways in which blocks are compiled.

    looped: bytes, if a loop stores each array.
    fused: arrays, if both passes are compiled together.
    dots: products with weights, which rematerialisation may store.
    """

    looped: int
    fused: Arrays
    dots: Arrays

    @classmethod
    def of(
        cls, objective: Objective, config: ModelConfig, batch: Any, trained: Collection[str]
    ) -> _Trace:
        size = jnp.dtype(config.param_dtype)
        weights = {
            name: jax.ShapeDtypeStruct(spec.shape, size)
            for name, spec in weight_specs(config).items()
        }
        learning = {name: weights[name] for name in trained}

        def needed(learning: Any, weights: Any, batch: Any) -> list[jax.Array]:
            weight = jax.tree.map(lambda w: jnp.maximum(w, 1.0), objective.weight(batch))

            def loss(learning: Any) -> jax.Array:
                return objective(model_of(config, weights | learning), batch, weight)[0]

            return jax.tree.leaves(jax.vjp(loss, learning)[1])

        def made(*arguments: Any) -> list[jax.Array]:
            given = {id(x) for x in jax.tree.leaves(arguments)}
            return [x for x in needed(*arguments) if id(x) not in given]

        arguments = (learning, weights, batch)
        looped = _bytes(_arrays(jax.eval_shape(made, *arguments)))
        with jax.disable_jit():  # loops and calls become straight lines
            flat = _Program(jax.make_jaxpr(needed)(*arguments).jaxpr)
        return cls(looped, flat.stored(), flat.weight_products())


class _Program:
    """A straight-line jaxpr, and the results that a compiler would store."""

    def __init__(self, jaxpr: Any):
        self._jaxpr = jaxpr
        self._maker = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
        users = [eqn for eqn in jaxpr.eqns if eqn.primitive.name not in VIEWS]
        self._used = {self._whole(v) for eqn in users for v in _variables(eqn.invars)}
        dots = [eqn for eqn in users if eqn.primitive.name == "dot_general"]
        self._operands = {self._whole(v) for eqn in dots for v in _variables(eqn.invars)}

    def stored(self) -> Arrays:
        """Return the stored arrays that its results are or are fused from."""
        found, seen = [], set()
        left = _variables(self._jaxpr.outvars)
        while left:
            var = self._whole(left.pop())
            if var in seen or var not in self._maker:
                continue
            seen.add(var)
            name = self._maker[var].primitive.name
            if var in self._operands or name in STORED or (var in self._used and name not in FREE):
                found.append(var.aval)
            else:
                left += _variables(self._maker[var].invars)
        return _arrays(found)

    def weight_products(self) -> Arrays:
        """Return products without batch axes: one factor is a weight."""
        return _arrays(
            eqn.outvars[0].aval
            for eqn in self._jaxpr.eqns
            if eqn.primitive.name == "dot_general" and not any(eqn.params["dimension_numbers"][1])
        )

    def _whole(self, var: Any) -> Any:
        """Return the array under a view."""
        while var in self._maker and self._maker[var].primitive.name in VIEWS:
            var = self._maker[var].invars[0]
        return var


def _variables(atoms: Iterable[Any]) -> list[Any]:
    """Return the atoms that are no literals."""
    return [atom for atom in atoms if not hasattr(atom, "val")]


def _arrays(arrays: Iterable[Any]) -> Arrays:
    return collections.Counter((x.shape, jnp.dtype(x.dtype)) for x in arrays)


def _bytes(arrays: Mapping[tuple[tuple[int, ...], Any], int]) -> int:
    return sum(
        count * math.prod(shape) * dtype.itemsize for (shape, dtype), count in arrays.items()
    )


def _shallow(config: ModelConfig, depth: int) -> ModelConfig:
    """Return the same model with fewer blocks."""
    return dataclasses.replace(config, num_layers=depth, local_layers=config.local_layers[:depth])


def _batch_share(batch: Any, mesh: AnyMesh, *, parts: int) -> Any:
    """Return a device's rows of a part of a batch, as shapes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"] * parts
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((-(-x.shape[0] // shards), *x.shape[1:]), x.dtype), batch
    )


def _tokens(batch: Any) -> int:
    """Return the token positions of a batch: its largest arrays have one number for each."""
    return max(math.prod(leaf.shape) for leaf in jax.tree.leaves(batch))


def _working(layer: Arrays, dots: Arrays, *, unrolled: bool, remat: Remat) -> int:
    """Return the bytes of one block during its backward pass."""
    if remat == "none":
        # A loop allocates the gradients of all weights first; unrolled, they replace used arrays.
        return 0 if unrolled else max(_bytes({array: 1}) for array in layer)
    # Gradients reuse the memory of arrays that are no longer needed.
    return _bytes(layer) - (_bytes(dots) if remat == "dots" else 0)


def _gathered(config: ModelConfig, placement: Placement, mesh: AnyMesh, *, unrolled: bool) -> int:
    """Return the bytes of weights gathered over `fsdp`: of all layers at once if unrolled."""
    parts = mesh.shape["fsdp"]
    if parts == 1:
        return 0
    split = [w for w in placement.weights if "fsdp" in w.mesh_axes]
    blocks = parts * sum(w.device_bytes for w in split if w.name.startswith("layers."))
    others = parts * sum(w.device_bytes for w in split if not w.name.startswith("layers."))
    return others + (blocks if unrolled else blocks // config.num_layers)
