import jax
import jax.numpy as jnp
import pytest

from bellmax.experiments import collectives

MODULE = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
BODY
ENTRY %main.7_spmd (param.4: f32[2,16], param.5: f32[8,8]) -> (f32[2,8], f32[]) {
  %param.4 = f32[2,16]{1,0} parameter(0)
LINES
}
"""


def found(*lines, body=""):
    lines = "\n".join(f"  {line}" for line in lines)
    return collectives.in_text(MODULE.replace("BODY", body).replace("LINES", lines))


@pytest.mark.parametrize(
    ("line", "kind", "group", "size", "moved"),
    [
        # Each group notation once; of [4,2] groups every one has 2 devices.
        (
            "%g = f32[16,8]{1,0} all-gather(%p), channel_id=4, "
            "replica_groups={{0,2},{4,6},{1,3},{5,7}}, dimensions={0}",
            "all-gather",
            2,
            512,
            256,
        ),
        (
            "%g = bf16[64]{0:T(1024)} all-gather(%p), replica_groups=[2,4]<=[4,2]T(1,0), dim",
            "all-gather",
            4,
            128,
            96,
        ),
        (
            "%g = f32[8]{0} reduce-scatter(%p), "
            "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, to_apply=%add",
            "reduce-scatter",
            2,
            32,
            32,
        ),
        (
            "%g = f32[] all-reduce(%p), replica_groups=mesh['x'=8,'y'=2] {'x':(2)4,'y'}, "
            "to_apply=%add",
            "all-reduce",
            8,
            4,
            7,
        ),
        # Everyone.
        ("%g = s8[16]{0} all-to-all(%p), replica_groups={}", "all-to-all", 8, 16, 14),
        # Two arrays in one, as the combiner leaves them.
        (
            "ROOT %g = (f32[16]{0}, f32[3,5]{1,0}) all-reduce(%p, %q), channel_id=1, "
            "replica_groups={{0,1,4,5},{2,3,6,7}}, to_apply=%add",
            "all-reduce",
            4,
            124,
            186,
        ),
        (
            "%g = f32[8,4]{1,0} collective-permute(%p), source_target_pairs={{0,1},{1,0},{2,3}}",
            "collective-permute",
            3,
            128,
            128,
        ),
        # Started: operands stand before the result.
        (
            "%g = (f32[4]{0}, f32[8]{0}) all-gather-start(%p), replica_groups={{0,1}}",
            "all-gather",
            2,
            32,
            16,
        ),
        (
            "%g = ((f32[4]{0}, s32[2]{0}), (f32[8]{0}, s32[4]{0})) all-gather-start(%p, %q), "
            "replica_groups={{0,1}}",
            "all-gather",
            2,
            48,
            24,
        ),
        (
            "%g = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%p), "
            "source_target_pairs={{0,1}}",
            "collective-permute",
            1,
            24,
            24,
        ),
        (
            "%g = (f32[6]{0}, f32[6]{0}) all-reduce-start(%p, %q), replica_groups={{0,1}}",
            "all-reduce",
            2,
            48,
            48,
        ),
    ],
)
def test_an_instruction_is_read(line, kind, group, size, moved):
    assert found(line) == [collectives.Collective(kind, group, size, moved, 1)]


def test_what_ends_a_collective_is_not_counted_again():
    assert not found("%d = f32[8]{0} all-gather-done(%g)", "%n = f32[8]{0} negate(%all-gather.3)")


def loop(name, line):
    return f"""
%{name} (arg: (s32[], f32[8])) -> (s32[], f32[8]) {{
  {line}
}}
"""


GATHER = "%g = f32[8]{0} all-gather(%p), replica_groups={{0,1}}"
REDUCE = "%r = pred[] all-reduce(%p), replica_groups={{0,1}}, to_apply=%add"


def while_loop(body, trips):
    known = f', backend_config={{"known_trip_count":{{"n":"{trips}"}}}}' if trips else ""
    return f"%w = (s32[], f32[8]{{0}}) while(%t), condition=%cond, body=%{body}{known}"


def test_a_loop_multiplies():
    inner = loop("inner", GATHER) + loop("cond", REDUCE)
    body = inner + loop("outer", while_loop("inner", 5))
    executed = [(one.kind, one.executions) for one in found(while_loop("outer", 3), body=body)]
    # The outer condition, then in each turn the inner one, once more than the inner body.
    assert executed == [("all-reduce", 4), ("all-reduce", 18), ("all-gather", 15)]


def test_a_loop_of_unknown_length_says_so():
    body = loop("inner", GATHER) + loop("cond", REDUCE) + loop("outer", while_loop("inner", 5))
    executed = [one.executions for one in found(while_loop("outer", None), GATHER, body=body)]
    assert executed == [None, None, None, 1]


def test_called_computations_are_entered():
    body = loop("one", GATHER) + loop("two", REDUCE)
    lines = (
        "%a = f32[8]{0} call(%p), to_apply=%one",
        "%b = ((f32[8]), f32[8]) async-start(%p), calls=%one",
        "%c = f32[8]{0} conditional(%i, %p, %p), branch_computations={%one, %two}",
    )
    assert [one.kind for one in found(*lines, body=body)] == ["all-gather"] * 3 + ["all-reduce"]
    assert not found(body=body)


def test_what_it_cannot_read_is_refused():
    with pytest.raises(ValueError, match="unknown cost"):
        found("%g = f32[8]{0} collective-broadcast(%p), replica_groups={{0,1}}")
    with pytest.raises(ValueError, match="device groups"):
        found("%g = f32[8]{0} all-gather(%p), replica_groups=somehow")
    with pytest.raises(ValueError, match="ENTRY"):
        collectives.in_text("")


def test_one_device_sends_nothing():
    compiled = jax.jit(lambda x: jnp.sum(x @ x)).lower(jnp.ones((4, 4))).compile()
    assert collectives.collectives(compiled) == []
