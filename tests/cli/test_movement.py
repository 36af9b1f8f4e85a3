import numpy as np

from lntune_jax.cli.movement import Movement, group_by_layer, measure_movement, readable_names


def test_movement_is_the_rms_change_of_scale_and_bias_in_model_order():
    start = {
        "bert.encoder.layer.10.output.LayerNorm.scale": np.ones(4),
        "bert.encoder.layer.2.output.LayerNorm.bias": np.zeros(4),
        "bert.encoder.layer.2.output.LayerNorm.scale": np.ones(4),
    }
    end = {**start, "bert.encoder.layer.2.output.LayerNorm.scale": np.array([1.0, 1, 1, 3])}
    assert measure_movement(start, end) == [
        Movement("bert.encoder.layer.2.output.LayerNorm", 1.0, 0.0),
        Movement("bert.encoder.layer.10.output.LayerNorm", 0.0, None),
    ]


def test_names_stay_apart_when_they_are_shortened():
    assert readable_names(["model.layers.0.input_layernorm", "model.norm"]) == [
        "layer 0 input_layernorm",
        "norm",
    ]
    assert readable_names(["model.encoder.norm", "model.layer.norm"]) == ["encoder", "layer"]
    assert readable_names(["a.norm"]) == ["a norm"]


def test_kinds_of_norms_are_told_apart_and_what_one_layer_has_is_outside():
    bert = [f"bert.encoder.layer.{n}.{k}.LayerNorm" for n in (0, 2) for k in ("a.output", "output")]
    found = group_by_layer(["bert.embeddings.LayerNorm", *bert])
    assert {kind: list(layers) for kind, layers in found.kinds.items()} == {
        "a.output": [0, 2],
        "output": [0, 2],
    }
    assert found.others == {"embeddings": "bert.embeddings.LayerNorm"}
    alone = group_by_layer(["layers.0.norm", "layers.3.norm", "head.1.norm", "norm"])
    assert list(alone.kinds) == ["norm"]
    assert list(alone.others.values()) == ["head.1.norm", "norm"]
    assert group_by_layer([]) == ({}, {})
    assert list(group_by_layer(["0", "2"]).kinds) == ["norm"]
    towers = [
        f"{s}.block.{n}.layer.{k}.norm" for s in ("enc", "dec") for n in (0, 1) for k in (0, 1)
    ]
    assert len(group_by_layer(towers).kinds) == 4
