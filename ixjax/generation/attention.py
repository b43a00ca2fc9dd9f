"""The engine's attention: plain XLA, cuDNN's flash attention, or a Pallas kernel.

A token attends to keys and values in several pieces: the cache, the turn buffer, the new tokens.
Each piece gives the softmax over its own keys and its log-sum-exp, from which the whole softmax
follows exactly (Dao et al. 2023, "Flash-Decoding"), so no piece is copied and each is read by the
fastest implementation. Queries that share a KV head are rows of one matrix, so a kernel sees plain
multi-head attention and reads each key once for all of them.

Axes: B sequences, H/K query/KV heads, T positions, Q = (H/K) * T query rows of one KV head,
n keys of a piece, D head size.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ixjax.io import InputError
from ixjax.models import ModelConfig, attend_pieces
from ixjax.models.attention import MASKED, soften

AttentionName = Literal["auto", "xla", "cudnn", "pallas"]
Implementation = Literal["xla", "cudnn", "pallas"]

Piece = tuple[jax.Array, jax.Array, jax.Array]  # keys, values, visible: see `attend_pieces`
# Softmax over the keys of one piece `[B, K, Q, D]`, its log-sum-exp `[B, K, Q, 1]` float32.
Part = tuple[jax.Array, jax.Array]
# (q [B, K, Q, D], keys and values [B, K, n, D], visible [B or 1, Q or 1, n]) to a part.
Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Part]

# XLA reads pieces with fewer keys than this: a kernel saves little there, and merging has a cost.
LONG = 256
KEY_BLOCK = 64  # a kernel reads whole blocks of keys; the engine's spans are multiples of it
GPUS = ("gpu", "cuda")  # JAX names a device "gpu" and a compilation target "cuda"
CUDNN_CAPABILITY = 8  # needed by flash attention, and by bfloat16 in hardware
VMEM_BYTES = 8 << 20  # for keys and values, half of what the smallest TPU core has
PREFERRED: dict[str, Implementation] = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "pallas"}


def choose(
    name: AttentionName, *, device: Any, config: ModelConfig, devices: int
) -> Implementation:
    """Return the implementation for a setting on these devices.

    `auto` is cuDNN on an NVIDIA GPU (Ampere or newer) and Pallas on a TPU if they support this
    model, else XLA. Pallas also runs on a CPU, for tests: it is interpreted there, and slow.

    Args:
        name: the setting.
        device: the `jax.Device` that holds the model, or one of them.
        config: of the model.
        devices: number of devices that hold the model.

    Raises:
        InputError: the named implementation cannot run here.
    """
    if name not in get_args(AttentionName):
        raise InputError(f"attention is {name!r}; expected one of {get_args(AttentionName)}")
    here = (device, config, devices)
    if name == "auto":
        best = PREFERRED.get(device.platform, "xla")
        # Before Hopper, cuDNN supports heads up to 128; larger ones must be asked for by name.
        return "xla" if _obstacle(best, *here, largest_head=128) else best
    found = _obstacle(name, *here)
    if found:
        possible = [other for other in get_args(Implementation) if not _obstacle(other, *here)]
        raise InputError(f"attention {name!r} {found}; possible here: auto, {', '.join(possible)}")
    return name


def _obstacle(
    name: Implementation,
    device: Any,
    config: ModelConfig,
    devices: int,
    largest_head: int = 256,
) -> str | None:
    """Return why an implementation cannot run, as the end of a sentence; None if it can."""
    head, dtype, platform = config.head_dim, config.compute_dtype, device.platform
    if name == "xla":
        return None
    if devices > 1:
        return f"reads on one device, and the model is on {devices}"
    if name == "pallas":
        if platform not in ("cpu", "tpu", *GPUS):
            return f"runs on a TPU, an NVIDIA GPU or (slowly) a CPU, and the platform is {platform}"
        if platform == "tpu" and dtype == "float16":
            return "takes float32 or bfloat16 on a TPU, and compute_dtype is float16"
        if platform in GPUS and (head < 16 or head.bit_count() > 1):
            return f"takes a power of two from 16 on as head_dim on a GPU, and it is {head}"
        # VMEM holds keys and values of one head and row, and those of the next while it is fetched.
        row = 4 * config.max_length * max(head, 128) * jnp.dtype(dtype).itemsize
        if platform == "tpu" and row > VMEM_BYTES:
            return f"holds a row of {VMEM_BYTES} bytes on a TPU, and max_length tokens need {row}"
        return None
    if platform not in GPUS:
        return f"runs on an NVIDIA GPU, and the platform is {platform}"
    # A string such as "9.0"; AMD's are such as "gfx90a"; devices of other platforms have none.
    capability = str(getattr(device, "compute_capability", None))
    number = re.fullmatch(r"(\d+)\.\d+", capability)
    if not number or int(number[1]) < CUDNN_CAPABILITY:
        return f"needs compute capability {CUDNN_CAPABILITY}.0 (Ampere), and it is {capability}"
    if dtype == "float32":
        return "takes bfloat16 or float16, and compute_dtype is float32"
    if config.attention_softcap is not None:
        return f"has no soft-capping, and attention_softcap is {config.attention_softcap}"
    if head % 8 or head > largest_head:
        return f"takes a multiple of 8 up to {largest_head} as head_dim, and it is {head}"
    return None


def attend(
    implementation: Implementation, q: jax.Array, pieces: list[Piece], *, softcap: float | None
) -> jax.Array:
    """Attend to keys in several pieces by one of the implementations; see `attend_pieces`.

    Args:
        implementation: from `choose`.
        q: `[B, H, T, D]` queries, scaled.
        pieces: (keys `[B, K, D, n]` or in blocks `[B, K, J, D, m]`, values `[B, K, n, D]`,
            visible `[B or 1, T or 1, n]` bool).
        softcap: see `ModelConfig.attention_softcap`; cuDNN has none.

    Returns:
        `[B, H, T, D]` in q's dtype; finite garbage where a query sees nothing in any piece.
    """
    if implementation == "xla" or not any(_is_long(values) for _, values, _ in pieces):
        return attend_pieces(q, pieces, softcap=softcap)
    kernel = cudnn if implementation == "cudnn" else functools.partial(pallas, softcap=softcap)
    return attend_by(kernel, q, pieces, softcap=softcap)


def attend_by(
    kernel: Kernel, q: jax.Array, pieces: list[Piece], *, softcap: float | None
) -> jax.Array:
    """Attend as `attend` does: `kernel` reads the long pieces, XLA the short ones."""
    batch, _, length, size = q.shape
    rows = q.reshape(batch, pieces[0][0].shape[1], -1, size)
    parts = []
    for piece_keys, values, visible in pieces:
        # XLA hoists this out of the loop over tokens, which leaves the cache unchanged.
        keys = _columns_in_front(piece_keys)
        # A row holds all positions, head by head, so the mask of the positions is repeated.
        heads = rows.shape[2] // length if visible.shape[1] > 1 else 1
        by_row = jnp.tile(visible, (1, heads, 1))
        if _is_long(values):
            out, lse = kernel(rows, keys, values, by_row)
            # A kernel's result for a row without visible keys is undefined: it may be NaN, and
            # a weight of 0 would not remove it.
            seen = by_row.any(-1)[:, None, :, None]
            parts.append((jnp.where(seen, out, 0), jnp.where(seen, lse, MASKED)))
        else:
            parts.append(plain(rows, keys, values, by_row, softcap=softcap))
    return merge(parts).astype(q.dtype).reshape(q.shape)


def merge(parts: list[Part]) -> jax.Array:
    """Return the softmax over all pieces, float32 `[B, K, Q, D]`, weighted by their sums."""
    top = functools.reduce(jnp.maximum, [lse for _, lse in parts])
    weights = [jnp.exp(lse - top) for _, lse in parts]
    outs = [w * out.astype(jnp.float32) for w, (out, _) in zip(weights, parts, strict=True)]
    return functools.reduce(jnp.add, outs) / functools.reduce(jnp.add, weights)


def plain(
    q: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array, *, softcap: float | None
) -> Part:
    """Attend to one piece by XLA's own operations; a `Kernel` that also takes `softcap`."""
    scores = jnp.einsum("bkqd,bknd->bkqn", q, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None], soften(scores, softcap), MASKED)
    top = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(values.dtype)
    out = jnp.einsum("bkqn,bknd->bkqd", weights, values, preferred_element_type=jnp.float32)
    return out / total, top + jnp.log(total)


def cudnn(q: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array) -> Part:
    """Attend to one piece by cuDNN's flash attention (an NVIDIA GPU, 16 bits); a `Kernel`."""
    # jax.nn.dot_product_attention rounds the log-sum-exp to 16 bits (an error of up to 3% in the
    # weights) and takes [B, n, K, D] only, which would copy the cache in every layer of every step.
    # The function that it calls returns float32 and takes our layout.
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention

    shape = (visible.shape[0], 1, q.shape[2], values.shape[2])
    mask = jnp.broadcast_to(visible[:, None], shape)
    found = dot_product_attention(
        q, keys, values, mask=mask, scale=1.0, qkv_layout="BNTH", return_residual=True
    )
    out, lse = cast(Part, found)
    return out, lse[..., None]


def pallas(
    q: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array, *, softcap: float | None
) -> Part:
    """Attend to one piece by the Pallas kernel (Mosaic on TPU, Triton on GPU); see `plain`."""
    call = functools.partial(_call, softcap=softcap)
    warps = triton.CompilerParams(num_warps=4, num_stages=2)
    on = {
        "cpu": functools.partial(call, most_rows=128, most_keys=512, interpret=True),
        "tpu": functools.partial(call, most_rows=128, most_keys=512),
        # Smaller tiles on a GPU: scores, sums and keys are held in the registers of four warps.
        "cuda": functools.partial(call, most_rows=64, most_keys=64, params=warps),
    }
    return jax.lax.platform_dependent(q, keys, values, visible, **on)


def _call(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    *,
    softcap: float | None,
    most_rows: int,
    most_keys: int,
    interpret: bool = False,
    params: Any = None,
) -> Part:
    batch, heads, rows, size = q.shape
    count = keys.shape[2]
    block = math.gcd(count, most_keys)
    # Triton multiplies 16 rows or more, and only powers of two.
    tile = min(most_rows, max(16, 1 << (rows - 1).bit_length()))
    padding = -rows % tile
    q = jnp.pad(q, ((0, 0), (0, 0), (0, padding), (0, 0)))
    masks, one_mask = visible.shape[0], visible.shape[1] == 1  # one for all rows of a sequence
    visible = jnp.pad(visible, ((0, 0), (0, 0 if one_mask else padding), (0, 0)))
    # Blocks get an axis: a TPU cannot slice lanes at an offset that varies.
    visible = visible.reshape(masks, visible.shape[1], -1, block).swapaxes(1, 2)
    mask_tile = (None, count // block, 1 if one_mask else tile, block)
    by_tile = lambda b, k, i: (b, k, i, 0)
    by_head = lambda b, k, i: (b, k, 0, 0)
    by_mask = lambda b, k, i: (0 if masks == 1 else b, 0, 0 if one_mask else i, 0)
    out, lse = pl.pallas_call(
        functools.partial(_read_tile, softcap=softcap),
        grid=(batch, heads, (rows + padding) // tile),
        in_specs=[
            pl.BlockSpec((None, None, tile, size), by_tile),
            pl.BlockSpec((None, None, count, size), by_head),
            pl.BlockSpec((None, None, count, size), by_head),
            pl.BlockSpec(mask_tile, by_mask),
        ],
        out_specs=[
            pl.BlockSpec((None, None, tile, size), by_tile),
            pl.BlockSpec((None, None, tile, 1), by_tile),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            jax.ShapeDtypeStruct((*q.shape[:3], 1), jnp.float32),
        ],
        interpret=interpret,
        compiler_params=params,
        name="attend",  # in profiles
    )(q, keys, values, visible.astype(jnp.int8))
    return out[:, :, :rows], lse[:, :, :rows]


def _read_tile(q_ref, keys_ref, values_ref, visible_ref, out_ref, lse_ref, *, softcap):
    """Attend with a tile of query rows `[q, D]` to all keys `[n, D]`, block by block.

    The softmax is online (Milakov and Gimelshein 2018): the sums under a lower maximum are scaled
    down when a higher one is found. `visible_ref` is `[n / block, q or 1, block]`.
    """
    q = q_ref[...]
    number, _, block = visible_ref.shape

    def read(i, state):
        out, top, total = state
        here = pl.ds(pl.multiple_of(i * block, block), block)
        visible = visible_ref[i].astype(jnp.int32) != 0  # a TPU v4 cannot compare int8
        scores = jnp.dot(q, keys_ref[here, :].T, preferred_element_type=jnp.float32)
        scores = jnp.where(visible, soften(scores, softcap), MASKED)
        higher = jnp.maximum(top, scores.max(-1, keepdims=True))
        kept, weights = jnp.exp(top - higher), jnp.exp(scores - higher)
        values = values_ref[here, :]
        more = jnp.dot(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return out * kept + more, higher, total * kept + weights.sum(-1, keepdims=True)

    column = jnp.zeros((q.shape[0], 1), jnp.float32)
    start = (jnp.zeros(q.shape, jnp.float32), column + MASKED, column)
    out, top, total = jax.lax.fori_loop(0, number, read, start)
    out_ref[...] = out / total
    lse_ref[...] = top + jnp.log(total)


def _columns_in_front(keys: jax.Array) -> jax.Array:
    """Return keys `[B, K, n, D]` from `[B, K, D, n]` or `[B, K, J, D, m]`."""
    if keys.ndim == 5:
        return keys.swapaxes(3, 4).reshape(*keys.shape[:2], -1, keys.shape[3])
    return keys.swapaxes(2, 3)


def _is_long(values: jax.Array) -> bool:
    return values.shape[2] >= LONG and values.shape[2] % KEY_BLOCK == 0
