"""Operations, bytes and times of kernels, counted by hand."""

import dataclasses

import pytest

from drifting_jax.compiler import hlo, roofline
from drifting_jax.compiler.gpus import GPUS

PROGRAM = """HloModule jit_f

%fused_slice (p: f32[10,64], i: s32[]) -> f32[1,64] {
  %p = f32[10,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %s = f32[1,64]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,64}
}

%fused_dot (a: f32[4,8], b: f32[8,2]) -> f32[4,2] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,2]{1,0} parameter(1)
  ROOT %d = f32[4,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}, PRECISION
}

%body (p: (s32[], f32[10,64])) -> (s32[], f32[10,64]) {
  %p = (s32[], f32[10,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[10,64]{1,0} get-tuple-element(%p), index=1
  %row = f32[1,64]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused_slice
  ROOT %t = (s32[], f32[10,64]{1,0}) tuple(%i, %x)
}

%condition (p: (s32[], f32[10,64])) -> pred[] {
  %p = (s32[], f32[10,64]{1,0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (a: f32[4,8], b: f32[8,2], l: bf16[16,32], r: bf16[32,8]) -> f32[4,2] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,2]{1,0} parameter(1)
  %l = bf16[16,32]{1,0} parameter(2)
  %r = bf16[32,8]{1,0} parameter(3)
  %start = (s32[], f32[10,64]{1,0}) tuple(%a, %b)
  %w = (s32[], f32[10,64]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %g = (bf16[16,8]{1,0}, s8[4096]{0}) custom-call(%l, %r), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]},"precision_config":{"operand_precision":["DEFAULT","DEFAULT"]}}}
  ROOT %f = f32[4,2]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused_dot
}
"""  # noqa: E501

CONVOLUTION = """ENTRY %main (x: bf16[2,8,8,16], k: bf16[32,3,3,16]) -> bf16[2,8,8,32] {
  %x = bf16[2,8,8,16]{3,2,1,0} parameter(0)
  %k = bf16[32,3,3,16]{3,2,1,0} parameter(1)
  %c = (bf16[2,8,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  ROOT %o = bf16[2,8,8,32]{3,2,1,0} get-tuple-element(%c), index=0
}
"""  # noqa: E501

ATTENTION = """ENTRY %main (q: f32[2,64,3,32], g: f32[2,3,64]) -> f32[2,64,3,32] {
  %q = f32[2,64,3,32]{3,2,1,0} parameter(0)
  %g = f32[2,3,64]{2,1,0} parameter(1)
  %y = (f32[2,64,3,32]{3,2,1,0}, f32[2,3,64]{2,1,0}) custom-call(%q, %q, %q), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/jit(mha)/mha_forward/pallas_call"}
  %d = (f32[2,64,3,32]{3,2,1,0}, f32[2,64,3,32]{3,2,1,0}, f32[2,64,3,32]{3,2,1,0}) custom-call(%q, %q, %q, %q, %g), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/mha_backward/pallas_call"}
  ROOT %o = f32[2,64,3,32]{3,2,1,0} get-tuple-element(%d), index=0
}
"""  # noqa: E501

H100 = GPUS["h100"]


def kernels(text):
    return list(roofline.kernels(hlo.parse(text)))


def test_operations_and_bytes_of_each_kernel():
    by_kind = {(one.kind, one.times): one for one in kernels(PROGRAM.replace("PRECISION", ""))}
    assert len(by_kind) == 3
    sliced = by_kind["fusion", 10]
    assert (sliced.flops, sliced.num_bytes) == (0, 2 * 64 * 4 + 4)  # the row alone, and the index
    product = by_kind["__cublas$lt$matmul", 1]
    assert product.flops == 2 * 16 * 32 * 8 and product.dtype == "bf16"
    assert product.num_bytes == 2 * (16 * 32 + 32 * 8 + 16 * 8)  # without the workspace
    fused = by_kind["fusion", 1]
    assert fused.flops == 2 * 4 * 8 * 2 and not fused.is_exact
    assert fused.num_bytes == 4 * (32 + 16 + 8)


def test_true_float32_has_the_lower_peak():
    limits = dataclasses.replace(H100, bandwidth=1e30)
    seconds = []
    for precision in ("operand_precision={highest,highest}", ""):
        found = kernels(PROGRAM.replace("PRECISION", precision))
        seconds.append(next(one.seconds(limits) for one in found if one.dtype == "f32"))
    assert seconds[0] / seconds[1] == pytest.approx(H100.tf32 / H100.f32)


def test_a_convolution():
    (one,) = kernels(CONVOLUTION)
    assert one.flops == 2 * (2 * 8 * 8 * 32) * (3 * 3 * 16)
    assert one.num_bytes == 2 * (2 * 8 * 8 * 16 + 32 * 3 * 3 * 16 + 2 * 8 * 8 * 32)


def test_an_attention():
    forward, backward = kernels(ATTENTION)
    product, tokens, sums = 2 * 2 * 3 * 64 * 64 * 32, 4 * 2 * 64 * 3 * 32, 4 * 2 * 3 * 64
    assert (forward.flops, forward.num_bytes) == (2 * product, 4 * tokens + sums)
    assert (backward.flops, backward.num_bytes) == (7 * product, 7 * tokens + sums)


def test_the_sums():
    found = roofline.roofline(hlo.parse(PROGRAM.replace("PRECISION", "")), H100)
    assert found.kernels == 12
    assert found.flops == 2 * 16 * 32 * 8 + 2 * 4 * 8 * 2
    assert found.num_bytes == 10 * 516 + 1792 + 224
    assert found.bound == pytest.approx(found.num_bytes / H100.bandwidth)  # all wait for memory
    assert found.plausible == pytest.approx(found.bound / 0.8 + 12 * 3e-6)


def test_the_estimate_for_a_tpu_counts_its_loops():
    text = PROGRAM.replace("calls=%fused_slice", 'calls=%fused_slice, x={"estimated_cycles":"50"}')
    text = text.replace("calls=%fused_dot", 'calls=%fused_dot, x={"estimated_cycles":"100"}')
    assert roofline.tpu_seconds(hlo.parse(text), 0.3) == pytest.approx(0.3 * 600 / 150)
    assert roofline.tpu_seconds(hlo.parse(PROGRAM), 0.3) == 0.3


def test_kernels_have_the_names_of_their_operations():
    named = CONVOLUTION.replace(
        ", dim_labels", ', metadata={op_name="jit(f)/stem/conv"}, dim_labels'
    )
    for text, name in ((named, "jit(f)/stem/conv"), (CONVOLUTION, "")):
        ((found, kernel),) = roofline.kernels_by_name(hlo.parse(text))
        assert (found, kernel.kind) == (name, "__cudnn$convForward")
