"""Reading compiled programs: collectives in every notation, loops, and what crosses the memory of a chip."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.planning.hlo import KINDS, by_kind, device_groups, read_program

# Lines as XLA's TPU compiler writes them, cut to what matters.
LOOP = """HloModule jit_step, is_scheduled=true

%add.clone (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %add.1 = bf16[] add(%x, %y)
}

%all-reduce-scatter.2 (input.11: bf16[192,384]) -> bf16[96,384] {
  %input.11 = bf16[192,384]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.697 = bf16[192,384]{1,0:T(8,128)(2,1)} all-reduce(%input.11), channel_id=103, replica_groups={{0,2},{1,3}}, use_global_device_ids=true, to_apply=%add.clone, metadata={op_name="jit(step)/dot_general"}
  ROOT %dynamic-slice.1 = bf16[96,384]{1,0:T(8,128)(2,1)} slice(%all-reduce.697), slice={[0:96], [0:384]}
}

%condition (state: (s32[], bf16[192,384])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %state = (s32[]{:T(128)}, bf16[192,384]{1,0:T(8,128)(2,1)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%count, %limit), direction=LT, metadata={op_name="jit(step)/while/cond/lt"}
}

%body (state.1: (s32[], bf16[192,384])) -> (s32[], bf16[192,384]) {
  %state.1 = (s32[]{:T(128)}, bf16[192,384]{1,0:T(8,128)(2,1)}) parameter(0)
  %count.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %array = bf16[192,384]{1,0:T(8,128)(2,1)} get-tuple-element(%state.1), index=1
  %fusion.2151 = bf16[96,384]{1,0:T(8,128)(2,1)} fusion(%array), kind=kCustom, calls=%all-reduce-scatter.2, metadata={op_name="x"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %all-gather.62 = bf16[192,384]{1,0:T(8,128)(2,1)} all-gather(%fusion.2151), channel_id=95, replica_groups=[2,2]<=[4], dimensions={0}, use_global_device_ids=true
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[192,384]{1,0:T(8,128)(2,1)}) tuple(%count.1, %all-gather.62)
}

ENTRY %main (p.1: bf16[192,384]) -> (bf16[192,384], f32[8]) {
  %p.1 = bf16[192,384]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %tuple.2 = (s32[]{:T(128)}, bf16[192,384]{1,0:T(8,128)(2,1)}) tuple(%zero, %p.1)
  %while.1 = (s32[]{:T(128)}, bf16[192,384]{1,0:T(8,128)(2,1)}) while(%tuple.2), condition=%condition, body=%body
  %done = bf16[192,384]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
  %collective-permute-start = (bf16[192,384]{1,0:T(8,128)(2,1)}, bf16[192,384]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%done), channel_id=139, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  %collective-permute-done = bf16[192,384]{1,0:T(8,128)(2,1)} collective-permute-done(%collective-permute-start)
  %all-to-all.1 = bf16[192,384]{1,0:T(8,128)(2,1)} all-to-all(%collective-permute-done), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %out = (bf16[192,384]{1,0:T(8,128)(2,1)}) tuple(%all-to-all.1)
}
"""  # noqa: E501 - the compiler's lines

ARRAY = 192 * 384 * 2


def test_collectives_of_a_loop_count_as_often_as_it_runs():
    cost = read_program(LOOP)
    found = by_kind(cost.collectives)
    # A ring of two sends half of what is reduced and scattered, or gathered; one of four 3/4 of what is exchanged.
    assert found == {
        "reduce-scatter": (3, 3 * ARRAY, 3 * ARRAY / 2),
        "all-gather": (3, 3 * ARRAY, 3 * ARRAY / 2),
        "all-to-all": (1, ARRAY, ARRAY * 3 / 4),
        "collective-permute": (1, ARRAY, ARRAY),
    }
    assert cost.cycles == 3 * 1000
    assert cost.loops_of_unknown_length == 0
    assert list(found) == [kind for kind in KINDS if kind in found]


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    cost = read_program(LOOP.replace("constant(3)", "parameter(1)"))
    assert cost.loops_of_unknown_length == 1
    assert by_kind(cost.collectives)["all-gather"][0] == 1
    counted = read_program(
        LOOP.replace("constant(3)", "parameter(1)").replace(
            "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
        )
    )
    assert by_kind(counted.collectives)["all-gather"][0] == 5


def test_an_all_reduce_of_many_arrays_is_one_and_sends_twice():
    line = (
        "  %all-reduce.1 = (f32[96]{0:T(128)}, /*index=1*/bf16[4,192]{1,0:T(4,128)(2,1)}) all-reduce(%a, %b), "
        "channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, to_apply=%add.clone"
    )
    text = (
        "ENTRY %main (a: f32[96], b: bf16[4,192]) -> f32[] {\n  %a = f32[96]{0:T(128)} parameter(0)\n"
        f"  %b = bf16[4,192]{{1,0:T(4,128)(2,1)}} parameter(1)\n{line}\n}}\n"
    )
    size = 96 * 4 + 4 * 192 * 2
    assert by_kind(read_program(text).collectives) == {"all-reduce": (1, size, 2 * size * 3 / 4)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{4,6}}, x", [[0, 2], [4, 6]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
    ],
)
def test_groups_of_devices_in_every_notation(text, expected):
    assert device_groups(text).tolist() == expected


def test_a_notation_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="not known: replica_groups=mesh"):
        device_groups("replica_groups=mesh['a'=8] {'a':(1)4}, x")
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("HloModule jit_step")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_every_device_is_in_one_group_of_named_axes(sizes, data):
    together = data.draw(st.lists(st.sampled_from(range(len(sizes))), unique=True, min_size=1))
    axes = ",".join(f"'x{i}'={size}" for i, size in enumerate(sizes))
    named = ",".join(f"'x{i}'" for i in together)
    groups = device_groups(f"replica_groups=mesh[{axes}] {{{named}}}")
    assert sorted(groups.reshape(-1).tolist()) == list(range(int(np.prod(sizes))))
    assert groups.shape[1] == np.prod([sizes[i] for i in together])
    # Members of a group differ along its axes alone.
    places = np.stack(np.unravel_index(groups, sizes))
    apart = [i for i in range(len(sizes)) if i not in together]
    assert (places[apart] == places[apart][:, :, :1]).all()


def traffic(*lines):
    return read_program("ENTRY %main (a: f32[8]) -> f32[8] {\n" + "\n".join(f"  {line}" for line in lines) + "\n}\n")


BIG, SCRATCH = "f32[256,256]{1,0:T(8,128)}", "f32[256,256]{1,0:T(8,128)S(1)}"


def test_only_what_crosses_the_main_memory_counts():
    size = 256 * 256 * 4
    cost = traffic(
        f"%a = {BIG} parameter(0)",
        # Read into scratch memory, used there twice, written back once.
        f"%copy-start.1 = ({SCRATCH}, {BIG}, u32[]{{:S(2)}}) copy-start(%a)",
        f"%copy-done.1 = {SCRATCH} copy-done(%copy-start.1)",
        f"%b = {SCRATCH} add(%copy-done.1, %copy-done.1)",
        f"%c = {BIG} multiply(%b, %b)",
        f"%slice-start.1 = (({BIG}), f32[64,256]{{1,0:T(8,128)S(1)}}, s32[]{{:S(2)}}) slice-start(%a), slice={{}}",
        f"ROOT %d = {BIG} bitcast(%c)",
    )
    assert cost.hbm_bytes == size + size + size // 4


def test_what_moves_the_bytes_is_known_with_its_scope():
    moving = [(each.instruction, each.scope, each.times) for each in read_program(LOOP).traffic]
    assert moving[:2] == [("fusion.2151", "x", 3), ("all-gather.62", "x", 3)]
    assert sum(each.bytes * each.times for each in read_program(LOOP).traffic) == read_program(LOOP).hbm_bytes


def test_a_copy_is_counted_to_who_reads_it_else_to_who_made_it():
    cost = traffic(
        f"%a = {BIG} parameter(0)",
        f"%copy-start.1 = ({SCRATCH}, {BIG}, u32[]{{:S(2)}}) copy-start(%a)",
        f"%copy-done.1 = {SCRATCH} copy-done(%copy-start.1)",
        f'%b = {SCRATCH} add(%copy-done.1, %copy-done.1), metadata={{op_name="mlp/add"}}',
        f"%copy-start.2 = ({BIG}, {SCRATCH}, u32[]{{:S(2)}}) copy-start(%b)",
        f"ROOT %copy-done.2 = {BIG} copy-done(%copy-start.2)",
    )
    assert [each.scope for each in cost.traffic] == ["mlp/add", "mlp/add"]


def test_a_kernel_reads_the_parts_of_an_array_once():
    call = f'ROOT %b = {BIG} custom-call(%a, %a, %a), custom_call_target="tpu_custom_call"'
    assert traffic(f"%a = {BIG} parameter(0)", call).hbm_bytes == 2 * 256 * 256 * 4


def test_memory_is_taken_in_tiles():
    cost = traffic(
        "%a = bf16[3,5]{1,0:T(8,128)(2,1)} parameter(0)", "ROOT %b = bf16[3,5]{1,0:T(8,128)(2,1)} negate(%a)"
    )
    assert cost.hbm_bytes == 2 * 8 * 128 * 2


def test_a_fusion_reads_the_slices_it_uses_and_writes_updates_in_place():
    text = """%sliced (p: f32[64,128]) -> f32[8,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %s = f32[8,128]{1,0:T(8,128)} slice(%p), slice={[0:8], [0:128]}
}

%updated (q: f32[64,128], u: f32[8,128], i: s32[]) -> f32[64,128] {
  %q = f32[64,128]{1,0:T(8,128)} parameter(0)
  %u = f32[8,128]{1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)S(2)} parameter(2)
  ROOT %w = f32[64,128]{1,0:T(8,128)} dynamic-update-slice(%q, %u, %i)
}

ENTRY %main (a: f32[64,128]) -> f32[64,128] {
  %a = f32[64,128]{1,0:T(8,128)} parameter(0)
  %i.1 = s32[]{:T(128)S(2)} parameter(1)
  %f = f32[8,128]{1,0:T(8,128)} fusion(%a), kind=kLoop, calls=%sliced
  ROOT %g = f32[64,128]{1,0:T(8,128)} fusion(%a, %f, %i.1), kind=kLoop, calls=%updated
}
"""
    part = 8 * 128 * 4
    assert read_program(text).hbm_bytes == (part + part) + (part + part)


def test_slices_count_behind_views_and_in_fusions_inside_of_fusions():
    text = """%inner (p: f32[4,8,128], i: s32[]) -> f32[8,128] {
  %p = f32[4,8,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)S(2)} parameter(1)
  %v = f32[4,8,128]{2,1,0:T(8,128)} bitcast(%p)
  %s = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%v, %i), dynamic_slice_sizes={1,8,128}
  ROOT %r = f32[8,128]{1,0:T(8,128)} bitcast(%s)
}

%whole (p.1: f32[8,128]) -> f32[1024] {
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %r.1 = f32[1024]{0:T(1024)} bitcast(%p.1)
}

%outer (q: f32[4,8,128], i.1: s32[], u: f32[8,128]) -> (f32[8,128], f32[4,8,128]) {
  %q = f32[4,8,128]{2,1,0:T(8,128)} parameter(0)
  %i.1 = s32[]{:T(128)S(2)} parameter(1)
  %u = f32[8,128]{1,0:T(8,128)} parameter(2)
  %f = f32[8,128]{1,0:T(8,128)} fusion(%q, %i.1), kind=kLoop, calls=%inner
  %g = f32[1024]{0:T(1024)} fusion(%u), kind=kLoop, calls=%whole
  %d = f32[8,128]{1,0:T(8,128)} add(%f, %g)
  %n = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%d)
  %w = f32[4,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%q, %n, %i.1)
  %b = f32[4,8,128]{2,1,0:T(8,128)} bitcast(%w)
  ROOT %t = (f32[8,128]{1,0:T(8,128)}, f32[4,8,128]{2,1,0:T(8,128)}) tuple(%d, %b)
}

ENTRY %main (a: f32[4,8,128]) -> (f32[8,128], f32[4,8,128]) {
  %a = f32[4,8,128]{2,1,0:T(8,128)} parameter(0)
  %i.2 = s32[]{:T(128)S(2)} parameter(1)
  %c = f32[8,128]{1,0:T(8,128)} parameter(2)
  ROOT %h = (f32[8,128]{1,0:T(8,128)}, f32[4,8,128]{2,1,0:T(8,128)}) fusion(%a, %i.2, %c), kind=kLoop, calls=%outer
}
"""
    part = 8 * 128 * 4
    # Read: a slice, and the other operand. Written: the sum, and the same in place.
    assert read_program(text).hbm_bytes == 2 * part + 2 * part


def test_an_estimate_that_xla_does_not_have_is_none():
    line = (
        "ROOT %b = f32[8]{0:T(128)} negate(%a), backend_config="
        '{"window_config":{"estimated_cycles":"9223372036854775807"}}'
    )
    assert traffic("%a = f32[8]{0:T(128)} parameter(0)", line).cycles is None
