import json

from lntune_jax.trainer import JsonLines, RunInfo, TensorBoard, read_metrics
from lntune_jax.trainer.callbacks import begun


def info(done, resumed):
    return RunInfo("training", 9, done, resumed, [None], (), {})


def test_lines_after_the_restored_step_are_written_again_once(tmp_path):
    path, board = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    callbacks = [JsonLines(path), TensorBoard(board)]
    with begun(callbacks, info(0, resumed=False)):
        for each in callbacks:
            for step in (1, 2, 3):
                each.stepped(step, {"loss": 1.0 / step})
            each.evaluated(2, {"accuracy": 0.5})
    with path.open("a") as file:
        file.write('{"split": "train", "st')  # What a killed run leaves.
    callbacks = [JsonLines(path), TensorBoard(board)]
    with begun(callbacks, info(2, resumed=True)):
        for each in callbacks:
            each.stepped(3, {"loss": 0.1})
    lines = map(json.loads, path.read_text().splitlines())
    steps = [(line["split"], line["step"]) for line in lines]
    assert steps == [("train", 1), ("train", 2), ("eval", 2), ("train", 3)]
    assert read_metrics(path)[-1]["loss"] == 0.1
    assert list(board.glob("events.out.tfevents.*"))


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
