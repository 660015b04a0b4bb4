"""Texts of compiled programs: what runs how often."""

import jax
import jax.numpy as jnp

from drifting_jax.compiler import hlo

SMALL = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %y = f32[4,8]{1,0} negate(%x)
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%i, %y)
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], /*index=1*/f32[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%bodyNOTE
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_with_its_passes():
    module = hlo.parse(SMALL.replace("NOTE", ""))
    assert module.entry == "main"
    assert module.times == {"main": 1, "body": 7}  # the number of its condition
    noted = hlo.parse(SMALL.replace("NOTE", ', backend_config={"known_trip_count":{"n":"5"}}'))
    assert noted.times["body"] == 5


def test_shapes_operands_and_attributes():
    body = hlo.parse(SMALL).computations["body"]
    assert list(body) == ["p", "i", "x", "y", "t"]
    assert body["x"].results == (hlo.Shape("f32", (4, 8)),)  # with a layout of TPUs
    assert body["t"].operands == ("i", "y") and body["t"].is_root
    assert body["t"].result_bytes == 4 + 4 * 8 * 4
    dot = hlo.parse(
        "ENTRY %m (a: bf16[2,3]) -> f32[] {\n"
        "  ROOT %d = f32[] dot(%a, %b), lhs_contracting_dims={0,1}, rhs_contracting_dims={1,2}\n}"
    )
    one = dot.computations["m"]["d"]
    assert one.numbers("lhs_contracting_dims") == (0, 1)
    assert one.numbers("rhs_contracting_dims") == (1, 2)


def test_a_program_of_this_machine():
    def f(x):
        return jax.lax.scan(lambda a, _: (jnp.sin(a @ x), None), x, None, length=6)[0]

    module = hlo.parse(jax.jit(f).lower(jnp.ones((32, 32))).compile().as_text())
    assert 6 in module.times.values()
    names = [one.opcode for _, one, times in module.executed() if times == 6]
    assert any(name in ("dot", "fusion", "custom-call", "call") for name in names)
