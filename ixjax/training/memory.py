"""What a training step holds in a device's memory, from shapes alone: nothing is compiled.

Weights, moments and gradients follow from the sharding rules. What the backward pass needs of the
forward pass is found by tracing `jax.vjp` of the very loss that is trained, on the share of one
device. How much of it is stored depends on how the blocks are compiled:

- scanned, every such array is an output of the loop, stacked over the layers;
- unrolled, the compiler sees both passes at once: views are free, and an elementwise function that
  the forward pass has no use for is computed in the backward pass;
- with rematerialisation a block's input is stored (and, for `dots`, its products with weights), and
  one block's arrays exist at a time. (Where blocks are unrolled XLA's CPU backend computes them
  again, but early: little is saved there.)

`tests/training/test_memory.py` and `benchmarks/memory.py` hold this against what XLA allocates.
docs/scaling.md has the account in words.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ixjax.models import FULL_UNROLL_LAYERS, ModelConfig, Remat
from ixjax.models.placement import MOMENTS, Placement, describe_sharding, device_share
from ixjax.models.sharding import model_of
from ixjax.models.transformer import weight_specs
from ixjax.parallel import AnyMesh
from ixjax.training.steps import Objective, trained_paths

# (shape, dtype) -> how many such arrays
Arrays = collections.Counter

VIEWS = {"reshape", "transpose", "squeeze", "expand_dims", "slice", "copy", "stop_gradient"}
# Results of these are stored whoever uses them; what is none of them is fused into its users.
STORED = {
    *("dot_general", "gather", "scatter", "scatter-add", "concatenate", "sort", "cumsum"),
    *("reduce_sum", "reduce_max", "reduce_min", "argmax", "scan", "while", "custom_vjp_call"),
}
# Computed again by every user: cheaper than reading it from memory.
FREE = {"broadcast_in_dim", "iota", "convert_element_type", "and", "or", "eq", "lt", "ge", "gt"}


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes on one device while a step runs."""

    weights: int
    """Parameters, frozen ones included."""
    copies: int
    """Other values of what learns, beside it."""
    moments: int
    """AdamW's moments of what learns."""
    batch: int
    """The step's token arrays."""
    gradients: int
    """Of what learns, in float32."""
    sums: int
    """Of the gradients of parts of a batch, where it is taken in several."""
    activations: int
    """What the backward pass is given of the blocks."""
    working: int
    """One block in the backward pass: its arrays, computed again, or its largest gradient."""
    logits: int
    """What it is given of the embedding and the LM head: scored logits above all."""
    logits_gradient: int
    """Of the scored logits."""
    gathered: int
    """Weights of other devices that are there while they are multiplied with."""

    @property
    def resident(self) -> int:
        """What is there between two steps."""
        return self.weights + self.copies + self.moments + self.batch

    @property
    def temporary(self) -> int:
        """What a step adds to that at its peak.

        The backward pass begins with the gradient of the logits, and goes on with those of the
        weights, block by block; the update holds gradients and what they become.
        """
        backward = self.sums + self.activations + self.logits + self.gathered
        backward += max(self.logits_gradient, self.gradients + self.working)
        return max(backward, 2 * self.gradients)

    @property
    def peak(self) -> int:
        """All that a device must hold."""
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
    """Bytes that a training step takes on one device.

    Args:
        config: of the model.
        mesh: real or abstract.
        objective: what is minimised, itself without rematerialisation.
        batch: of a step, as arrays or shapes; rows lead.
        remat: what of a block is computed again in the backward pass.
        trained: see `ixjax.training.steps.make_steps`.
        micro_batches: parts that the batch is taken in.
        moments: numbers that the optimiser keeps for each that learns: 2 of AdamW, 0 of SGD.
        copies: of what learns, beside it: where training began, the best yet.
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
    """What the backward pass is given, by the two ways in which blocks are compiled.

    looped: bytes, where a loop stores each array.
    fused: arrays, where both passes are compiled together.
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
        with jax.disable_jit():  # loops and calls are written out
            flat = _Program(jax.make_jaxpr(needed)(*arguments).jaxpr)
        return cls(looped, flat.stored(), flat.weight_products())


class _Program:
    """A straight-line jaxpr, and what of its results a compiler would store."""

    def __init__(self, jaxpr: Any):
        self._jaxpr = jaxpr
        self._maker = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
        users = [eqn for eqn in jaxpr.eqns if eqn.primitive.name not in VIEWS]
        self._used = {self._whole(v) for eqn in users for v in _variables(eqn.invars)}
        dots = [eqn for eqn in users if eqn.primitive.name == "dot_general"]
        self._operands = {self._whole(v) for eqn in dots for v in _variables(eqn.invars)}

    def stored(self) -> Arrays:
        """The arrays that its results are, or are fused from."""
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
        """Products without batch axes, of which one factor is a weight."""
        return _arrays(
            eqn.outvars[0].aval
            for eqn in self._jaxpr.eqns
            if eqn.primitive.name == "dot_general" and not any(eqn.params["dimension_numbers"][1])
        )

    def _whole(self, var: Any) -> Any:
        """The array that a view is of."""
        while var in self._maker and self._maker[var].primitive.name in VIEWS:
            var = self._maker[var].invars[0]
        return var


def _variables(atoms: Iterable[Any]) -> list[Any]:
    """Without literals."""
    return [atom for atom in atoms if not hasattr(atom, "val")]


def _arrays(arrays: Iterable[Any]) -> Arrays:
    return collections.Counter((x.shape, jnp.dtype(x.dtype)) for x in arrays)


def _bytes(arrays: Mapping[tuple[tuple[int, ...], Any], int]) -> int:
    return sum(
        count * math.prod(shape) * dtype.itemsize for (shape, dtype), count in arrays.items()
    )


def _shallow(config: ModelConfig, depth: int) -> ModelConfig:
    """The same blocks, fewer of them."""
    return dataclasses.replace(config, num_layers=depth, local_layers=config.local_layers[:depth])


def _batch_share(batch: Any, mesh: AnyMesh, *, parts: int) -> Any:
    """A device's rows of a part of a batch, as shapes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"] * parts
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((-(-x.shape[0] // shards), *x.shape[1:]), x.dtype), batch
    )


def _tokens(batch: Any) -> int:
    """Places for tokens in a batch: its largest arrays hold one number for each."""
    return max(math.prod(leaf.shape) for leaf in jax.tree.leaves(batch))


def _working(layer: Arrays, dots: Arrays, *, unrolled: bool, remat: Remat) -> int:
    """Of one block, while its backward pass goes on."""
    if remat == "none":
        # In a loop the gradients of all weights are there already; else they come when arrays go.
        return 0 if unrolled else max(_bytes({array: 1}) for array in layer)
    # Gradients take the places of arrays that are used up.
    return _bytes(layer) - (_bytes(dots) if remat == "dots" else 0)


def _gathered(config: ModelConfig, placement: Placement, mesh: AnyMesh, *, unrolled: bool) -> int:
    """Weights that `fsdp` has split, whole: of all layers at once where they are unrolled."""
    parts = mesh.shape["fsdp"]
    if parts == 1:
        return 0
    split = [w for w in placement.weights if "fsdp" in w.mesh_axes]
    blocks = parts * sum(w.device_bytes for w in split if w.name.startswith("layers."))
    others = parts * sum(w.device_bytes for w in split if not w.name.startswith("layers."))
    return others + (blocks if unrolled else blocks // config.num_layers)
