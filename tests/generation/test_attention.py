"""Every way to read pieces gives what `attend_pieces` gives; a wrong choice is refused by name.

cuDNN needs a GPU. Elsewhere jax's own XLA attention takes its place behind the same signature, with
the worst answer to rows that see nothing; what is merged, and how, is then tested all the same.
"""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo

from ixjax.generation.attention import attend, choose
from ixjax.io import InputError
from ixjax.models import ModelConfig, attend_pieces

PLATFORM = jax.default_backend()
# An accelerator multiplies float32 in fewer bits.
TOLERANCE = {"float32": 1e-5 if PLATFORM == "cpu" else 2e-2, "bfloat16": 2e-2}

# (H, K, T, keys of the pieces)
DECODE = (6, 2, 1, (320, 8, 1))  # grouped queries; the last piece is the new token
EXTEND = (2, 2, 4, (256, 4))  # no groups
CHUNK = (3, 1, 64, (256, 64))  # 192 rows: two tiles, the second padded


def stand_in(query, key, value, *, mask, scale, qkv_layout, return_residual):
    """cuDNN's function in XLA: 16-bit output, float32 log-sum-exp `[B, N, T]`."""
    assert (qkv_layout, return_residual) == ("BNTH", True)
    assert mask.shape[2:] == (query.shape[2], key.shape[2])  # cuDNN broadcasts neither
    q, k, v = (x.astype(jnp.float32).swapaxes(1, 2) for x in (query, key, value))
    out, total = jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=scale, implementation="xla", return_residual=True
    )
    seen = mask.any(-1)
    out = jnp.where(seen[..., None], out.swapaxes(1, 2), jnp.nan).astype(query.dtype)
    return out, jnp.where(seen, total.swapaxes(1, 2), jnp.nan)


@pytest.fixture
def cudnn(monkeypatch):
    if PLATFORM != "gpu":
        monkeypatch.setattr(fused_attention_stablehlo, "dot_product_attention", stand_in)


def problem(shape, dtype="float32", *, seed=0, by_position=True):
    heads, kv_heads, length, counts = shape
    rng = np.random.default_rng(seed)
    normal = lambda *dims: jnp.asarray(rng.standard_normal((2, *dims, 16)), dtype)
    pieces = [
        (
            normal(kv_heads, count).swapaxes(2, 3),
            normal(kv_heads, count),
            jnp.asarray(rng.random((2, length if by_position else 1, count)) < 0.6),
        )
        for count in counts
    ]
    return normal(heads, length), pieces


def check(implementation, q, pieces, *, softcap=None):
    read = jax.jit(functools.partial(attend, implementation, softcap=softcap))
    with jax.numpy_dtype_promotion("strict"):
        out = read(q, pieces)
    expected = attend_pieces(q, pieces, softcap=softcap)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    tolerance = TOLERANCE[str(q.dtype)]
    np.testing.assert_allclose(
        *(np.asarray(x, np.float32) for x in (out, expected)), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [DECODE, EXTEND, CHUNK], ids=["decode", "extend", "chunk"])
@pytest.mark.parametrize("implementation", ["pallas", "cudnn"])
def test_an_implementation_equals_attention_over_all_pieces(implementation, shape, dtype, cudnn):
    if (implementation, dtype, PLATFORM) == ("cudnn", "float32", "gpu"):
        pytest.skip("cuDNN takes 16 bits")
    check(implementation, *problem(shape, dtype))


@pytest.mark.parametrize("shape", [DECODE, EXTEND], ids=["decode", "extend"])
def test_pallas_caps_scores(shape):
    check("pallas", *problem(shape), softcap=0.7)


@pytest.mark.parametrize("implementation", ["pallas", "cudnn"])
def test_a_mask_for_all_positions_and_rows_is_broadcast(implementation, cudnn):
    q, pieces = problem(EXTEND, "bfloat16", by_position=False)
    check(implementation, q, [(k, v, visible[:1]) for k, v, visible in pieces])


@pytest.mark.parametrize("implementation", ["pallas", "cudnn"])
def test_a_piece_that_a_row_does_not_see_has_no_weight(implementation, cudnn):
    q, [(*long, visible), new] = problem(EXTEND, "bfloat16")
    check(implementation, q, [(*long, visible.at[0].set(False)), new])


@pytest.mark.parametrize("implementation", ["pallas", "cudnn"])
def test_a_row_that_sees_nothing_at_all_stays_finite(implementation, cudnn):
    # Padding does: what it computes goes through all layers, and NaN would stay in the cache.
    q, pieces = problem(EXTEND, "bfloat16")
    blind = [(k, v, visible.at[0].set(False)) for k, v, visible in pieces]
    run = jax.jit(functools.partial(attend, implementation, softcap=None))
    assert np.all(np.isfinite(np.asarray(run(q, blind), np.float32)))


pallas = jax.jit(functools.partial(attend, "pallas", softcap=None))


@settings(max_examples=15)
@given(st.integers(0, 1000), st.lists(st.integers(0, 320), min_size=2, max_size=2))
def test_pallas_reads_a_cache_of_any_lengths(seed, lengths):
    q, [(*cache, _), side, (k, v, _)] = problem(DECODE, seed=seed)
    held = jnp.arange(320)[None, None] < jnp.asarray(lengths)[:, None, None]
    pieces = [(*cache, held), side, (k, v, jnp.ones((2, 1, 1), bool))]
    tolerance = TOLERANCE["float32"]
    np.testing.assert_allclose(
        pallas(q, pieces), attend_pieces(q, pieces), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize(
    ("implementation", "counts"), [("xla", (320, 8)), ("pallas", (64, 8)), ("pallas", (300, 8))]
)
def test_xla_and_what_no_kernel_reads_are_the_plain_path_to_the_bit(implementation, counts):
    q, pieces = problem((*DECODE[:3], counts))
    out = attend(implementation, q, pieces, softcap=None)
    np.testing.assert_array_equal(out, attend_pieces(q, pieces))


def lowered(implementation, platform, shape, dtype, *, size, softcap=None) -> str:
    heads, kv_heads, length, counts = shape
    array = jax.ShapeDtypeStruct
    q = array((2, heads, length, size), dtype)
    pieces = [
        (
            array((2, kv_heads, size, count), dtype),
            array((2, kv_heads, count, size), dtype),
            array((2, length, count), bool),
        )
        for count in counts
    ]
    read = jax.jit(functools.partial(attend, implementation, softcap=softcap))
    return read.trace(q, pieces).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [DECODE, CHUNK], ids=["decode", "chunk"])
@pytest.mark.parametrize(("platform", "call"), [("tpu", "tpu_custom_call"), ("cuda", "triton")])
def test_the_kernel_lowers_for_accelerators(platform, call, shape, dtype):
    assert call in lowered("pallas", platform, shape, dtype, size=64, softcap=30.0)


@pytest.mark.parametrize("shape", [DECODE, CHUNK], ids=["decode", "chunk"])
def test_cudnn_is_given_values_as_they_lie_and_gives_float32(monkeypatch, shape):
    # What asks the GPU for its age is told of a Hopper.
    answers = {
        "check_cudnn_version": lambda: 91300,
        "check_compute_capability": lambda capability: True,
        "is_cuda_compute_capability_equal": lambda capability: False,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(fused_attention_stablehlo, name, answer)
    text = lowered("cudnn", "cuda", shape, "bfloat16", size=64)
    [call] = [line for line in text.splitlines() if "@__cudnn$fmhaScaleBiasSoftmax" in line]
    heads, kv_heads, length, counts = shape
    rows = heads // kv_heads * length
    keys = f"tensor<2x{kv_heads}x{counts[0]}x64xbf16>"
    assert f"{keys}, {keys}, tensor<2x1x{rows}x{counts[0]}xbf16>" in call
    assert ", %arg2, " in call  # the argument itself: nothing in between
    assert f"tensor<2x{kv_heads}x{rows}xf32>" in call


def fake_device(platform: str, capability: str | None = "9.0"):
    """What `choose` asks of a device; jax's of other platforms have no compute capability."""
    known = {} if capability is None else {"compute_capability": capability}
    return types.SimpleNamespace(platform=platform, **known)


def config(**fields) -> ModelConfig:
    defaults = {"vocab_size": 7, "hidden_size": 128, "num_layers": 2, "num_heads": 2}
    defaults |= {"num_kv_heads": 1, "head_dim": 64, "intermediate_size": 8}
    return ModelConfig(**{**defaults, "compute_dtype": "bfloat16", **fields})


@pytest.mark.parametrize(
    ("name", "platform", "devices", "fields", "chosen"),
    [
        ("auto", "cpu", 1, {}, "xla"),
        ("auto", "cpu", 8, {}, "xla"),
        ("auto", "gpu", 1, {}, "cudnn"),
        ("auto", "cuda", 1, {"compute_dtype": "float16"}, "cudnn"),
        ("auto", "gpu", 1, {"compute_dtype": "float32"}, "xla"),
        ("auto", "gpu", 1, {"attention_softcap": 50.0}, "xla"),
        ("auto", "gpu", 1, {"head_dim": 36}, "xla"),
        ("auto", "gpu", 1, {"head_dim": 256}, "xla"),
        ("auto", "gpu", 4, {}, "xla"),
        ("auto", "rocm", 1, {}, "xla"),
        ("auto", "tpu", 1, {}, "pallas"),
        ("auto", "tpu", 1, {"attention_softcap": 50.0}, "pallas"),
        ("auto", "tpu", 1, {"max_length": 1 << 17}, "xla"),
        ("auto", "tpu", 4, {}, "xla"),
        ("xla", "tpu", 4, {}, "xla"),
        ("cudnn", "gpu", 1, {"head_dim": 256}, "cudnn"),
        ("pallas", "cpu", 1, {"compute_dtype": "float32"}, "pallas"),
        ("pallas", "gpu", 1, {"attention_softcap": 50.0}, "pallas"),
    ],
)
def test_a_name_stands_for_what_can_read_this_model_here(name, platform, devices, fields, chosen):
    device = fake_device(platform)
    assert choose(name, device=device, devices=devices, config=config(**fields)) == chosen


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [("7.5", "xla"), ("gfx90a", "xla"), (None, "xla"), ("8.0", "cudnn"), ("12.0", "cudnn")],
)
def test_cudnn_is_for_gpus_from_ampere_on(capability, chosen):
    device = fake_device("gpu", capability)
    assert choose("auto", device=device, devices=1, config=config()) == chosen
    if chosen == "xla":
        message = (
            rf"needs compute capability 8.0 \(Ampere\), and it is {capability}; .* xla, pallas$"
        )
        with pytest.raises(InputError, match=message):
            choose("cudnn", device=device, devices=1, config=config())


@pytest.mark.parametrize(
    ("name", "platform", "devices", "fields", "message"),
    [
        ("cudnn", "cpu", 1, {}, r"'cudnn' runs on an NVIDIA GPU, and the platform is cpu; possible "
         r"here: auto, xla, pallas$"),
        ("cudnn", "gpu", 1, {"compute_dtype": "float32"}, "compute_dtype is float32; .* pallas$"),
        ("cudnn", "gpu", 1, {"attention_softcap": 50.0}, "attention_softcap is 50.0; .* pallas$"),
        ("cudnn", "gpu", 1, {"head_dim": 36}, "multiple of 8 up to 256 as head_dim, and it is 36"),
        ("cudnn", "gpu", 4, {}, "reads on one device, and the model is on 4; .*: auto, xla$"),
        ("pallas", "tpu", 4, {}, "reads on one device, and the model is on 4; .*: auto, xla$"),
        ("pallas", "tpu", 1, {"compute_dtype": "float16"}, "compute_dtype is float16"),
        ("pallas", "tpu", 1, {"max_length": 1 << 17}, "max_length tokens need 134217728"),
        ("pallas", "gpu", 1, {"head_dim": 80}, "a power of two .*, and it is 80; .* xla, cudnn$"),
        ("pallas", "rocm", 1, {}, "a TPU, an NVIDIA GPU or .*, and the platform is rocm"),
        ("flash", "gpu", 1, {}, r"attention is 'flash'; expected one of \('auto', 'xla'"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_work_is_refused_with_what_can(name, platform, devices, fields, message):
    with pytest.raises(InputError, match=message):
        choose(name, device=fake_device(platform), devices=devices, config=config(**fields))
