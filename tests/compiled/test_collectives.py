"""Collectives of programs with known ones, compiled for eight CPU devices, and of saved texts."""

# ruff: noqa: E501  (the texts of compiled programs have long lines)

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import jsel
from jsel.compiled.collectives import Total, collectives, share_of, summarize
from jsel.compiled.hlo import parse, size_in_bytes

ROWS, SAME = P("data"), P()


def compiled(body, *shapes, in_specs=ROWS, out_specs=ROWS, devices=8):
  mesh = jsel.make_mesh(jax.devices()[:devices])
  mapped = jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  text = jax.jit(mapped).lower(*shapes).compile().as_text()
  return collectives(text, devices=devices)


# Each on [8, 256] float32, 1,024 bytes a device.
ONE = {
  "all-reduce": (lambda x: jax.lax.psum(x, "data"), 1024, 2 * 1024 * 7 / 8),
  "all-gather": (lambda x: jax.lax.all_gather(x, "data").sum(0), 1024, 1024 * 7),
  "reduce-scatter": (
    lambda x: jax.lax.psum_scatter(x.reshape(8, 32), "data"),
    1024,
    1024 * 7 / 8,
  ),
  "all-to-all": (
    lambda x: jax.lax.all_to_all(x.reshape(8, 32), "data", 0, 0),
    1024,
    1024 * 7 / 8,
  ),
  "collective-permute": (
    lambda x: jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]),
    1024,
    1024,
  ),
}


@pytest.mark.parametrize("kind", ONE)
def test_bytes_of_one_collective_of_each_kind(kind):
  body, operand_bytes, wire_bytes = ONE[kind]
  (found,) = compiled(body, (8, 256))
  assert found.kind == kind
  assert found.operand_bytes == operand_bytes
  assert found.wire_bytes == pytest.approx(wire_bytes)
  assert (found.group, found.times, found.in_loop, found.conditional) == (8, 1, False, False)


def test_one_device_sends_nothing():
  assert sum(c.wire_bytes for c in compiled(ONE["all-reduce"][0], (8, 256), devices=1)) == 0


def test_groups_are_those_of_the_mesh_axis():
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  body = lambda x: (jax.lax.psum(x, "a"), jax.lax.psum(2 * x, "b"))
  spec = P(("a", "b"))
  mapped = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  text = jax.jit(mapped).lower(jnp.zeros((8, 256))).compile().as_text()
  found = collectives(text, devices=8)
  assert sorted(c.group for c in found) == [2, 4]
  assert sorted(c.wire_bytes for c in found) == [1024, 1536]


def test_a_loop_counts_as_often_as_it_runs():
  def body(x):
    def again(x, _):
      return jax.lax.psum(x * x, "data") / 8, None

    return jax.lax.scan(again, x, length=5)[0]

  (found,) = compiled(body, (8, 256))
  assert (found.times, found.counted, found.in_loop) == (5, True, True)
  assert summarize([found])["all-reduce"] == Total(5, 5 * 1024, 5 * 1792)


def test_a_loop_of_unknown_length_counts_once_and_says_so():
  def body(x):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: jax.lax.psum(x * x, "data"), x)

  found = [c for c in compiled(body, (8, 256)) if c.operand_bytes == 1024]
  assert [(c.times, c.counted, c.in_loop) for c in found] == [(1, False, True)]


def test_a_branch_is_marked_and_may_be_left_out():
  def body(x, go):
    y = jax.lax.cond(go[0] > 0, lambda x: jax.lax.psum(x, "data"), lambda x: x, x)
    return jax.lax.all_gather(y[:, :2], "data").sum(0)

  found = compiled(body, (8, 256), (1,), in_specs=(ROWS, SAME))
  by_kind = {c.kind: c.conditional for c in found}
  assert by_kind == {"all-reduce": True, "all-gather": False}
  assert set(summarize(found, branches=False)) == {"all-gather"}


def test_bytes_go_to_the_scope_that_they_were_made_under():
  def body(x):
    with jax.named_scope("choose"):
      chosen = jax.lax.psum(x[:, :64], "data")
    # Nothing orders the two, so that a compiler combines them.
    rest = jax.lax.psum(jnp.sin(x), "data")
    return chosen, rest

  found = compiled(body, (8, 256), out_specs=SAME)
  total, own = summarize(found)["all-reduce"], summarize(found, "choose")["all-reduce"]
  assert total.operand_bytes == 1024 + 256
  assert own.operand_bytes == 256
  assert not summarize(found, "chosen")


def test_op_names_and_scopes():
  assert share_of("jit(f)/while/body/choose/psum", "choose") == 1
  assert share_of("jit(f)/jvp(choose)/mul", "choose") == 1
  assert share_of("jit(f)/choose_again/mul", "choose") == 0
  assert share_of("jit(f)/(choose/shard_map/psum:transpose(jvp())/dot_general)", "choose") == 0.5
  assert share_of("", "choose") == 0


# What a TPU's compiler makes of an all-gather that it overlaps with a product inside of a loop: the
# same collective in three fusions. Cut down from a text of libtpu for v5e.
TPU = """HloModule jit_f, is_scheduled=true
%start (p: f32[4,8]) -> (f32[4,8], f32[16,8], u32[]) {
  %p = f32[4,8]{1,0:T(8,128)S(1)} parameter(0)
  %g.1 = f32[16,8]{1,0:T(8,128)} all-gather(%p), channel_id=1, replica_groups=mesh['data'=4] {'data'}, dimensions={0}, frontend_attributes={chain_id="0"}, metadata={op_name="jit(f)/choose/all_gather"}
  ROOT %s = (f32[4,8]{1,0:T(8,128)S(1)}, f32[16,8]{1,0}, u32[]{:S(2)}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}
%along (q: f32[4,8]) -> (f32[4,8], f32[16,8]) {
  %q = f32[4,8]{1,0:T(8,128)S(1)} parameter(0)
  %g.2 = f32[16,8]{1,0:T(8,128)} all-gather(%q), channel_id=1, replica_groups=mesh['data'=4] {'data'}, dimensions={0}, frontend_attributes={chain_id="0"}, metadata={op_name="jit(f)/choose/all_gather"}
  ROOT %t = (f32[4,8]{1,0}, f32[16,8]{1,0}) tuple(%q, %g.2)
}
%body (c: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %c = (s32[]{:T(128)}, f32[4,8]{1,0}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %x.1 = f32[4,8]{1,0} get-tuple-element(%c), index=1
  %f.2 = (f32[4,8]{1,0}, f32[16,8]{1,0}) fusion(%x.1), kind=kOutput, calls=%along
  %x.2 = f32[4,8]{1,0} get-tuple-element(%f.2), index=0
  %next = s32[]{:T(128)} add(%i, %one), metadata={op_name="jit(f)/while/body/add"}
  ROOT %r = (s32[]{:T(128)}, f32[4,8]{1,0}) tuple(%next, %x.2)
}
%condition (d: (s32[], f32[4,8])) -> pred[] {
  %seven = s32[]{:T(128)} constant(7)
  %d = (s32[]{:T(128)}, f32[4,8]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%d), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %seven), direction=LT
}
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %ab = f32[] add(%a, %b)
}
ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0:T(8,128)} parameter(0)
  %f.1 = (f32[4,8]{1,0:T(8,128)S(1)}, /*index=1*/f32[16,8]{1,0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start
  %zero = s32[]{:T(128)} constant(0)
  %zero.copy = s32[]{:T(128)} copy(%zero)
  %in = (s32[]{:T(128)}, f32[4,8]{1,0}) tuple(%zero.copy, %x)
  %loop = (s32[]{:T(128)}, f32[4,8]{1,0}) while(%in), condition=%condition, body=%body
  %done = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  %g = (bf16[4,8]{1,0}, f32[8]{0}) all-reduce(%done.b, %mean), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%sum, metadata={op_name="jit(f)/mean/psum"}
  %done.b = bf16[4,8]{1,0} convert(%done), metadata={op_name="jit(f)/transpose(jvp())/dot_general"}
  %mean = f32[8]{0} constant({...})
  %g.m = f32[8]{0} get-tuple-element(%g), index=1, metadata={op_name="jit(f)/choose/psum"}
  ROOT %out = f32[4,8]{1,0} copy(%done)
}
"""

# A pair of start and done, and an all-reduce of what was laid side by side, as for a GPU.
GPU = """HloModule jit_f, is_scheduled=true, num_partitions=8
%side (a: f32[64], b: f32[2048]) -> f32[2112] {
  %a = f32[64]{0} parameter(0)
  %b = f32[2048]{0} parameter(1)
  ROOT %ab = f32[2112]{0} concatenate(%a, %b), dimensions={0}
}
ENTRY %main (x: f32[64], w: f32[2048]) -> f32[2112] {
  %x = f32[64]{0} parameter(0)
  %w = f32[2048]{0} parameter(1)
  %own = f32[64]{0} negate(%x), metadata={op_name="jit(f)/choose/reduce_sum"}
  %grad = f32[2048]{0} negate(%w), metadata={op_name="jit(f)/transpose(jvp())/dot_general"}
  %both = f32[2112]{0} fusion(%own, %grad), kind=kLoop, calls=%side
  %begun = ((f32[2112]{0}), f32[2112]{0}) all-reduce-start(%both), channel_id=1, replica_groups={}, to_apply=%sum, metadata={op_name="jit(f)/(choose/psum:transpose(jvp())/dot_general)"}
  ROOT %ended = f32[2112]{0} all-reduce-done(%begun), metadata={op_name="jit(f)/choose/psum"}
}
"""


def test_a_collective_cut_over_fusions_counts_once_and_where_it_starts():
  found = {c.kind: c for c in collectives(TPU, devices=4)}
  assert len(collectives(TPU, devices=4)) == 2
  gather = found["all-gather"]
  assert (gather.operand_bytes, gather.wire_bytes, gather.times, gather.in_loop) == (
    128,
    384,
    1,
    False,
  )


def test_parts_of_a_combined_collective_are_told_by_readers_and_else_by_makers():
  reduce = next(c for c in collectives(TPU, devices=4) if c.kind == "all-reduce")
  assert reduce.group == 2
  # The maker of the first is the loop, behind a convert; the second is read under "choose".
  assert [size for _, size in reduce.parts] == [64, 32]
  assert summarize([reduce], "choose")["all-reduce"].operand_bytes == 32


def test_the_length_of_a_loop_that_the_compiler_did_not_note_is_found():
  text = TPU.replace(', frontend_attributes={chain_id="0"}', "")
  times = {c.name: c.times for c in collectives(text, devices=4)}
  assert times == {"g.1": 1, "g.2": 7, "g": 1}
  by_two = text.replace("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(2)")
  assert {c.name: c.times for c in collectives(by_two, devices=4)}["g.2"] == 4
  unknown = text.replace("direction=LT", "direction=NE")
  assert {c.name: (c.times, c.counted) for c in collectives(unknown, devices=4)}["g.2"] == (
    1,
    False,
  )


def test_start_and_done_are_one_and_pieces_side_by_side_are_told_apart():
  (found,) = collectives(GPU, devices=8)
  assert (found.kind, found.operand_bytes, found.group) == ("all-reduce", 4 * 2112, 8)
  assert summarize([found], "choose")["all-reduce"].operand_bytes == pytest.approx(256)


def test_the_fused_names_of_an_instruction_with_tuples_and_layouts():
  main = parse(TPU).computations["main"]
  assert main.instructions["f.1"].operands == ("x",)
  assert size_in_bytes(main.instructions["f.1"].shape) == 128 + 512 + 4
  assert main.root == "out"
  assert size_in_bytes("(s4[3], f8e4m3fn[5], pred[], token[])") == 2 + 5 + 1


def test_another_text_is_refused():
  with pytest.raises(ValueError, match="no ENTRY computation"):
    collectives("module @jit_f {\n}\n", devices=8)
