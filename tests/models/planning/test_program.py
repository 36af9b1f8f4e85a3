"""What is read from a program's text: as a TPU's compiler writes it, and as a CPU's does."""

import jax
import jax.numpy as jnp
import pytest

from lntune_jax.models.planning.collectives import list_collectives, total
from lntune_jax.models.planning.program import count_flops, find_square, walk

# A loop over four layers, which counts itself; in it a loop that gathers a kernel as it multiplies,
# two turns for each, and a product that batches 4 heads by padding.
TPU = """
%fused.1 (p0: bf16[64,4096], p1: bf16[4096,512]) -> bf16[64,512] {
  %p0 = bf16[64,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[4096,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[64,512]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf
}
%fused.2 (q: bf16[4,64,32], k: bf16[4,64,32]) -> f32[4,64,64] {
  %q = bf16[4,64,32]{2,1,0} parameter(0)
  %k = bf16[4,64,32]{2,1,0} parameter(1)
  ROOT %convolution.2 = f32[4,64,64]{1,2,0:T(8,128)} convolution(%q, %k), \
window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf
}
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
}
%inner_cond (t: (bf16[64,4096], u32[], u32[])) -> pred[] {
  %four = u32[]{:T(128)} constant(4)
  %t = (bf16[64,4096]{1,0}, u32[], u32[]) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%t), index=1
  ROOT %less = pred[]{:T(512)} compare(%i, %four), direction=LT, metadata={op_name="lt"}
}
%inner (t: (bf16[64,4096], u32[], u32[])) -> (bf16[64,4096], u32[], u32[]) {
  %t = (bf16[64,4096]{1,0}, u32[], u32[]) parameter(0)
  %x = bf16[64,4096]{1,0} get-tuple-element(%t), index=0
  %i = u32[]{:T(128)} get-tuple-element(%t), index=1
  %two = u32[]{:T(128)} get-tuple-element(%t), index=2
  %send = (bf16[8,16]{1,0:T(8,128)S(1)}, bf16[8,16]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), channel_id=9, source_target_pairs={{0,1},{1,0}}
  %sent = bf16[8,16]{1,0} collective-permute-done(%send)
  %y = bf16[64,512]{1,0} fusion(%x, %x), kind=kOutput, calls=%fused.1
  %same = u32[]{:T(128)S(6)} copy(%i)
  %next = u32[]{:T(128)} add(%same, %two)
  ROOT %out = (bf16[64,4096]{1,0}, u32[], /*index=2*/u32[]) tuple(%x, %next, /*index=2*/%two)
}
%layer_cond (t: (s32[], bf16[64,4096])) -> pred[] {
  %end = s32[]{:T(128)} constant(4)
  %t = (s32[], bf16[64,4096]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %end), direction=LT
}
%gather_start (p: bf16[512,8]) -> bf16[4096,8] {
  %p = bf16[512,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[4096,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8]
}
%gather_done (p: bf16[512,8]) -> bf16[4096,8] {
  %p = bf16[512,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[4096,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8]
}
%all-reduce-scatter.1 (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  %all-reduce.1 = f32[64]{0} all-reduce(%p), channel_id=8, replica_groups=[1,8]<=[8], to_apply=%add
}
%layer (t: (s32[], bf16[64,4096])) -> (s32[], bf16[64,4096]) {
  %t = (s32[], bf16[64,4096]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %x = bf16[64,4096]{1,0} get-tuple-element(%t), index=1
  %zero = u32[]{:T(128)} constant(0)
  %start = u32[]{:T(128)} copy(%zero)
  %two = u32[]{:T(128)} constant(2)
  %given = (bf16[64,4096]{1,0}, u32[], u32[]) tuple(%x, %start, %two)
  %loop = (bf16[64,4096]{1,0}, u32[], u32[]) while(%given), condition=%inner_cond, body=%inner
  %g = bf16[4096,8]{1,0} fusion(%x), kind=kCustom, calls=%gather_start
  %h = bf16[4096,8]{1,0} fusion(%g), kind=kCustom, calls=%gather_done
  %r = f32[8]{0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  %scores = f32[4,64,64]{1,2,0:T(8,128)} fusion(%x, %x), kind=kOutput, calls=%fused.2
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %out = (s32[], bf16[64,4096]{1,0}) tuple(%next, %x)
}
ENTRY %main (x: bf16[64,4096]) -> bf16[64,4096] {
  %x = bf16[64,4096]{1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %given = (s32[], bf16[64,4096]{1,0}) tuple(%zero, %x)
  %layers = (s32[], bf16[64,4096]{1,0}) while(%given), condition=%layer_cond, body=%layer
  ROOT %y = bf16[64,4096]{1,0} get-tuple-element(%layers), index=1
}
"""
LAYERS, TURNS = 4, 2


def test_products_that_are_convolutions_in_loops_that_count_themselves():
    product = 2 * 64 * 4096 * 512
    scores = 4 * 2 * 64 * 64 * 32
    assert count_flops(TPU) == LAYERS * (TURNS * product + scores)


def test_what_a_tpu_sends():
    found = {each.kind: each for each in list_collectives(TPU, 8)}
    assert len(list_collectives(TPU, 8)) == len(found) == 3
    gather = found["all-gather"]  # shown by two fusions, sent once
    assert (gather.turns, gather.bytes) == (LAYERS, LAYERS * 4096 * 8 * 2)
    permute = found["collective-permute"]
    assert (permute.turns, permute.bytes) == (LAYERS * TURNS, LAYERS * TURNS * 8 * 16 * 2)
    assert permute.sent == permute.bytes
    scatter = found["reduce-scatter"]
    assert (scatter.bytes, scatter.sent) == (LAYERS * 32, LAYERS * 32 * 7)
    assert total(list(found.values()), "all-gather") == gather.bytes


def test_what_a_core_of_its_own_sends():
    old = "fusion(%x), kind=kCustom, calls=%gather_start"
    new = "custom-call-start(), called_computations={%gather_start}"
    assert old in TPU
    found = list_collectives(TPU.replace(old, new).replace("calls=%gather_done", "kind=k"), 8)
    assert sorted(found) == sorted(list_collectives(TPU, 8))


def test_scores_are_found_where_they_are_in_memory():
    assert find_square(TPU, 64) == ("f32[4,64,64]", 4 * 4 * 64 * 64)
    assert find_square(TPU, 512) is None
    inside = "%scores = f32[4,64,64]{1,2,0:T(8,128)} fusion"
    assert find_square(TPU.replace(inside, "%scores = f32[4,64] fusion"), 64) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("%end = s32[]{:T(128)} constant(4)", "%end = s32[]{:T(128)} custom-call()"),
        ("(%i, %end), direction=LT", "(%i, %end), direction=NE"),
        ("%next = s32[]{:T(128)} add(%i, %one)", "%next = s32[]{:T(128)} multiply(%i, %one)"),
        ("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(0)"),
    ],
)
def test_a_loop_that_does_not_tell_its_length_is_not_guessed(old, new):
    assert old in TPU
    text = TPU.replace(old, new)
    with pytest.raises(ValueError, match="loop of unknown length"):
        count_flops(text)
    with pytest.raises(ValueError, match="loop of unknown length"):
        list_collectives(text, 8)
    assert find_square(text, 64)  # how often is of no matter


def test_a_length_that_the_compiler_says_comes_first():
    said = 'body=%layer, backend_config={"known_trip_count":{"n":"3"}}'
    text = TPU.replace("body=%layer\n", f"{said}\n")
    assert count_flops(text) * 4 == count_flops(TPU) * 3


def test_loops_and_products_of_this_computer_s_compiler():
    def run(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((16, 32), (5, 32, 32))]
    text = jax.jit(run).lower(*shapes).compile().as_text()
    assert count_flops(text) == 5 * 2 * 16 * 32 * 32
    assert {1, 5} <= {step.turns for step in walk(text)}


def test_a_convolution_as_networks_have_them():
    images = jax.ShapeDtypeStruct((2, 10, 10, 3), "float32")
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 8), "float32")

    def run(images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "VALID", dimension_numbers=numbers
        )

    text = jax.jit(run).lower(images, kernel).compile().as_text()
    assert count_flops(text) in (0, 2 * 2 * 4 * 4 * 8 * 3 * 3 * 3)  # 0: a call of a library
