import numpy as np

from lntune_jax.cli.figures import Curves, draw_figure
from lntune_jax.cli.movement import Movement, measure_movement, readable_names


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
        "layer 0 input layernorm",
        "norm",
    ]
    assert readable_names(["model.encoder.norm", "model.layer.norm"]) == ["encoder", "layer"]
    assert readable_names(["a.norm"]) == ["a norm"]


def test_a_figure_is_written_with_and_without_movements(tmp_path):
    lines = [{"split": "train", "step": step, "loss": 1 / step} for step in range(1, 9)]
    lines.append({"split": "eval", "step": 8, "loss": 0.3, "accuracy": 0.75})
    for movements in ([], [Movement("bert.embeddings.LayerNorm", 0.1, None)]):
        path = tmp_path / f"{len(movements)}.png"
        draw_figure(path, "a title", [Curves("LN tuning", lines, 8)], movements)
        assert path.read_bytes().startswith(b"\x89PNG")
