"""Rules by path, made to fit the leaves and the mesh; what a compiled step sends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

import lntune_jax as lnt
from lntune_jax.errors import ShardingError, ShardingWarning, UnmatchedPatternWarning
from lntune_jax.models import base_specs, from_config, model_specs
from tests.support.devices import run_on_devices

MESH = jax.sharding.AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))
LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}


def specs_of(config, task, **options):
    model = from_config(config, task, **options)
    specs = lnt.make_specs(model.params, MESH, base_specs)
    leaves = jax.tree_util.tree_flatten_with_path(specs, is_leaf=lambda x: isinstance(x, P))[0]
    return {".".join(key.key for key in path): spec for path, spec in leaves}


def test_kernels_of_the_llama_family_are_divided_twice():
    found = specs_of(LLAMA, "CAUSAL_LM")
    layer = "model.layers.1."
    for name in ("q_proj", "k_proj", "v_proj"):
        assert found[f"{layer}self_attn.{name}.kernel"] == P("fsdp", "tensor")
    assert found[layer + "self_attn.o_proj.kernel"] == P("tensor", "fsdp")
    assert found[layer + "mlp.gate_proj.kernel"] == P("fsdp", "tensor")
    assert found[layer + "mlp.down_proj.kernel"] == P("tensor", "fsdp")
    assert found["model.embed_tokens.embedding"] == P("tensor", "fsdp")
    assert found["lm_head.kernel"] == P("fsdp", "tensor")
    norms = [path for path in found if path.endswith(".scale")]
    assert len(norms) == 5
    assert all(found[path] == P() for path in norms)


def test_stacked_layers_have_a_whole_first_axis():
    found = specs_of(LLAMA, "CAUSAL_LM", scan_layers=True)
    assert found["model.layers.self_attn.q_proj.kernel"] == P(None, "fsdp", "tensor")
    assert found["model.layers.input_layernorm.scale"] == P()


def test_bert_by_the_places_of_its_dense_layers():
    found = specs_of(BERT, "SEQ_CLS", num_labels=4)
    layer = "bert.encoder.layer.0."
    assert found[layer + "attention.self.query.kernel"] == P("fsdp", "tensor")
    assert found[layer + "attention.self.query.bias"] == P("tensor")
    assert found[layer + "attention.output.dense.kernel"] == P("tensor", "fsdp")
    assert found[layer + "attention.output.dense.bias"] == P()
    assert found[layer + "attention.output.LayerNorm.bias"] == P()
    assert found[layer + "intermediate.dense.kernel"] == P("fsdp", "tensor")
    assert found[layer + "intermediate.dense.bias"] == P("tensor")
    assert found[layer + "output.dense.kernel"] == P("tensor", "fsdp")
    for path in found:
        if path.startswith(("classifier", "bert.pooler", "bert.embeddings.position")):
            assert found[path] == P(), path


def test_gpt2_and_heads_of_masked_models():
    found = specs_of(GPT2, "CAUSAL_LM")
    assert found["transformer.h.0.attn.c_attn.kernel"] == P("fsdp", "tensor")
    assert found["transformer.h.0.mlp.c_proj.kernel"] == P("tensor", "fsdp")
    assert found["transformer.wpe.embedding"] == P()
    found = specs_of(BERT | {"tie_word_embeddings": False}, "MASKED_LM")
    assert found["cls.predictions.decoder.kernel"] == P("fsdp", "tensor")
    assert found["cls.predictions.transform.dense.kernel"] == P("fsdp", None)


def test_parts_of_quantised_kernels_lie_as_the_kernel():
    value, scale = jnp.ones((8, 16), jnp.int8), jnp.ones((1, 16))
    path = "model.layers.0.mlp.up_proj.kernel.array."
    tree = {path + "qvalue": value, path + "scale": scale}
    with pytest.warns(ShardingWarning, match="array.scale"):
        specs = lnt.make_specs(tree, MESH, base_specs)
    assert list(specs.values()) == [P("fsdp", "tensor"), P(None, "tensor")]


def test_axes_that_the_mesh_lacks_are_left_out_in_silence():
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    model = from_config(LLAMA, "CAUSAL_LM")
    specs = lnt.make_specs(model.params, mesh, base_specs)
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    assert all(spec == P() for spec in leaves)


def test_an_axis_that_does_not_divide_is_whole_and_named():
    mesh = jax.sharding.AbstractMesh((5, 2), ("fsdp", "tensor"))
    tree = {"up_proj": {"kernel": jnp.ones((8, 6))}}
    with pytest.warns(ShardingWarning, match=r"axis 0 of up_proj.kernel \(8 over fsdp = 5\)"):
        specs = lnt.make_specs(tree, mesh, base_specs)
    assert specs["up_proj"]["kernel"] == P(None, "tensor")


@pytest.mark.parametrize("scanned", [False, True])
def test_the_rule_of_a_model_cuts_no_head(scanned):
    """Where `base_specs`, which knows no model, does without a word."""
    mesh = jax.sharding.AbstractMesh((2, 2), ("fsdp", "tensor"))
    config = LLAMA | {"num_key_value_heads": 1}
    model = from_config(config, "CAUSAL_LM", scan_layers=scanned)
    with pytest.warns(ShardingWarning, match=r"k_proj\.kernel in heads \(1 over tensor = 2\)"):
        rule = model_specs(model, mesh)
    specs, cut = (lnt.make_specs(model.params, mesh, rules) for rules in (rule, base_specs))
    found, other = (
        {".".join(key.key for key in path): spec for path, spec in leaves}
        for leaves in (
            jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, P))[0]
            for tree in (specs, cut)
        )
    )
    first = (None,) if scanned else ()
    for path, spec in found.items():
        if "k_proj" in path or "v_proj" in path:
            assert (spec, other[path]) == (P(*first, "fsdp", None), P(*first, "fsdp", "tensor"))
        else:
            assert spec == other[path]
    # The halves of a tree are named as the tree.
    trainable, frozen = lnt.partition_params(
        model.params, lnt.LNTuningConfig(), name_map=model.name_map
    )
    halves = lnt.make_specs((trainable, frozen), mesh, lambda path, leaf: rule(path[2:], leaf))
    assert set(jax.tree.leaves(halves[1], is_leaf=lambda x: isinstance(x, P))) <= set(
        found.values()
    )


_HEADS = """
import warnings
import jax
import lntune_jax as lnt
from lntune_jax.models import base_specs, from_config, model_specs
from lntune_jax.models.planning.collectives import list_collectives
from tests.support.collectives import LLAMA, make_mesh

mesh = make_mesh({"tensor": 2})
model = from_config(LLAMA | {"num_key_value_heads": 1}, "CAUSAL_LM")
tokens = jax.ShapeDtypeStruct((4, 64), "int32")
warnings.simplefilter("ignore", lnt.errors.ShardingWarning)


def look(rules):
    params = lnt.shard_params(model.params, mesh, rules)
    program = jax.jit(lambda p, x: model.apply(p, x).last_hidden_state).lower(params, tokens)
    return list_collectives(program.compile().as_text(), 2)


whole, cut = look(model_specs(model, mesh)), look(base_specs)
# An attention and an MLP a layer, and the embeddings: hidden states are gathered before and added
# up after each, and nothing else is sent.
layers = LLAMA["num_hidden_layers"]
expected = ["all-reduce"] + ["all-gather", "all-reduce"] * (2 * layers)
assert [each.kind for each in whole] == expected, whole
assert {each.shapes for each in whole} == {((4, 64, 256),)}
# With a head in two, each layer also sends halves of its keys, its values or its scores.
assert len(cut) >= len(whole) + layers, cut
print("done")
"""


def test_a_head_in_two_is_sent_in_every_layer():
    run_on_devices(_HEADS, 2)


def test_any_tree_by_patterns_and_by_its_largest_axes():
    tree = {"blocks": [{"wi": np.ones((4, 8)), "wo": np.ones((8, 4)), "norm": {"w": np.ones(4)}}]}
    rules = [("blocks.0.wi", P(None, "fsdp")), (r".*\.wo", P("fsdp")), ("blocks.0", P("tensor"))]
    specs = lnt.make_specs(tree, MESH, rules)
    assert specs["blocks"][0]["wi"] == P(None, "fsdp")
    assert specs["blocks"][0]["wo"] == P("fsdp")
    assert specs["blocks"][0]["norm"]["w"] == P()
    plain = lnt.make_specs(tree, MESH)["blocks"][0]
    assert plain["wi"] == P(None, "fsdp")
    assert plain["wo"] == P("fsdp", None)
    with pytest.warns(UnmatchedPatternWarning, match="'nowhere' of rules matches nothing"):
        lnt.make_specs(tree, MESH, [("nowhere", P("fsdp"))])


def test_rules_that_make_no_spec_are_refused():
    tree = {"norm": {"scale": jnp.ones(4)}}
    with pytest.raises(ShardingError, match=r"for 'norm\.scale', which has the shape"):
        lnt.make_specs(tree, MESH, lambda path, leaf: P("fsdp", None))
    with pytest.raises(ShardingError, match=r"gives None for 'norm\.scale'"):
        lnt.make_specs(tree, MESH, lambda path, leaf: None)


def test_shapes_get_their_sharding_and_arrays_their_place():
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    tree = {"a": np.ones((4, 2)), "b": jax.ShapeDtypeStruct((2, 4), "float32"), "c": jnp.ones(3)}
    placed = lnt.shard_params(tree, mesh)
    assert isinstance(placed["a"], jax.Array)
    assert placed["a"].sharding.spec == P("fsdp", None)
    assert placed["b"].sharding.spec == P(None, "fsdp")
    assert placed["c"].sharding.is_fully_replicated
    assert isinstance(tree["a"], np.ndarray)


_COLLECTIVES = """
import lntune_jax as lnt
from tests.support.collectives import LLAMA, measure
from lntune_jax.models.planning.collectives import total
from lntune_jax.models import from_config

LLAMA |= {"num_hidden_layers": 1, "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96}
model = from_config(LLAMA, "CAUSAL_LM", dtype="float32")
report = lnt.report_params(model.params, lnt.LNTuningConfig())
norms, base, scalars = 4 * report.trainable, 4 * report.total, 64

def kinds(found):
    return {each.kind for each in found}

# Copies of the base: norm gradients and the loss, nothing else; against every gradient.
found = measure({"data": 8}, "ln")
assert kinds(found) == {"all-reduce"}
assert norms <= total(found) <= norms + scalars, total(found)
found = measure({"data": 8}, "full")
assert base <= total(found) <= base + scalars, total(found)

# A divided base: weights are gathered, gradients of norms alone are added up.
found = measure({"fsdp": 8}, "ln")
assert norms <= total(found, "all-reduce") <= norms + scalars, total(found, "all-reduce")
assert total(found, "reduce-scatter") == 0
table = LLAMA["vocab_size"] * LLAMA["hidden_size"] * 4
assert total(found, "all-gather") >= base - norms - table
full = measure({"fsdp": 8}, "full")
added = total(full, "all-reduce") + 8 * total(full, "reduce-scatter")
assert added >= base - table, added

# Divided heads: activations alone, no weight or gradient of one.
found, full = measure({"tensor": 8}, "ln"), measure({"tensor": 8}, "full")
assert kinds(found) <= {"all-gather", "all-reduce", "reduce-scatter"}, kinds(found)
assert sum(each.sent for each in found) < sum(each.sent for each in full)
weights = {(64, 64), (64, 96), (96, 64), (256, 64), (64, 256), (64, 8), (64, 12), (12, 64), (8, 64)}
for each in found:
    assert not weights & set(each.shapes), each
print("done")
"""


def test_no_gradient_of_a_weight_is_sent():
    run_on_devices(_COLLECTIVES, 8)


def test_collectives_are_read_from_a_program_s_text():
    from lntune_jax.models.planning.collectives import list_collectives

    text = """
%body (p: f32[8]) -> f32[8] {
  %ar = f32[4,2]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], metadata={op_name="a/b"}
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %ag = (bf16[8,2]{1,0}, bf16[16,2]{1,0}) all-gather-start(%p), replica_groups={{0,1},{2,3}}
}
"""
    reduce, gather = list_collectives(text, 8)
    assert (reduce.kind, reduce.bytes, reduce.turns, reduce.group) == ("all-reduce", 96, 3, 4)
    assert reduce.source == "a/b"
    assert reduce.sent == 2 * 96 * 3 // 4
    assert (gather.kind, gather.bytes, gather.group) == ("all-gather", 64, 2)
    assert gather.sent == 32
    groups = ("mesh['a'=4,'b'=2] {'a'}", "mesh['a'=4,'b'=2] {'a':(2)2,'b'}", "{}", "[4,2]<=[8]")
    for spelling, size in zip(groups, (4, 4, 8, 2), strict=True):
        line = f"  %x = f32[4]{{0}} all-reduce(%y), replica_groups={spelling}, to_apply=%add"
        (found,) = list_collectives(f"ENTRY %main () -> f32[4] {{\n{line}\n}}", 8)
        assert found.group == size, spelling


def test_arguments_that_are_none():
    tree = {"fc": {"kernel": jnp.ones((8, 4))}}
    for mesh in ("fsdp", None, 8):
        with pytest.raises(ShardingError, match=r"mesh must be a jax\.sharding\.Mesh"):
            lnt.make_specs(tree, mesh)
    for rules in ("fsdp", {"fc": P("fsdp")}, [P("fsdp")], 3):
        with pytest.raises(ShardingError, match="rules must be a function"):
            lnt.make_specs(tree, MESH, rules)
