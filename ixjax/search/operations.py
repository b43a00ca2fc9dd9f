"""Shape checks, compilation and memory reuse for operations on trees.

An operation is a plain function `(tree, ...) -> (tree, result)`. `jitted` compiles it in two forms.
The first leaves its tree unchanged and returns only the fields that change: outputs of a jitted
function are copies, and the children of large trees are most of their memory. The second donates
the tree and writes into its arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ixjax.search.tree import Tree


def jitted(
    operation: Callable[..., tuple[Tree, Any]],
    *,
    changes: tuple[str, ...],
    static: tuple[str, ...] = (),
) -> Callable[..., tuple[Tree, Any]]:
    """Compile `operation`; the result has one more keyword, `donate`.

    Args:
        operation: from a tree and other arguments to a tree and a result.
        changes: the fields of the tree that it changes.
        static: its static arguments.
    """

    @partial(jax.jit, static_argnames=static)
    def keep(tree: Tree, *args: Any, **options: Any) -> tuple[dict[str, jax.Array], Any]:
        new, result = operation(tree, *args, **options)
        return {name: getattr(new, name) for name in changes}, result

    replace = jax.jit(operation, static_argnames=static, donate_argnums=0)

    def call(tree: Tree, *args: Any, donate: bool, **options: Any) -> tuple[Tree, Any]:
        if donate:
            return replace(tree, *args, **options)
        changed, result = keep(tree, *args, **options)
        return dataclasses.replace(tree, **changed), result

    return call


def or_nowhere(node: jax.Array, table: jax.Array, *, when: ArrayLike = True) -> jax.Array:
    """Return `node`, or for `NO_NODE` and where `when` is false, an index that scatters drop.

    That index is past the end of `table[N]`.
    """
    return jnp.where((node == Tree.NO_NODE) | jnp.logical_not(when), table.shape[-1], node)


def require_per_tree(tree: Tree, *, ndim: int = 2, **arrays: ArrayLike) -> None:
    """Refuse arrays that are not `[B, K]` (or `[B]`), which would broadcast silently.

    Raises:
        ValueError: an array has another shape.
    """
    trees = tree.parent.shape[0]
    expected = f"[{trees}, K]" if ndim == 2 else f"[{trees}]"
    for name, array in arrays.items():
        if jnp.ndim(array) != ndim or jnp.shape(array)[0] != trees:
            raise ValueError(
                f"{name} has shape {jnp.shape(array)}; expected {expected}: one "
                f"{'row' if ndim == 2 else 'entry'} for each of the {trees} trees"
            )


def require_same_shape(**arrays: ArrayLike) -> None:
    """Refuse arrays that differ in shape.

    Raises:
        ValueError: shows the shapes.
    """
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes are {shapes}; expected one shape for all")
