import json

from lntune_jax.trainer.metrics import MetricsWriter, read_metrics


def test_lines_after_the_restored_step_are_written_again_once(tmp_path):
    path, board = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with MetricsWriter(path, board, after_step=0) as writer:
        for step in (1, 2, 3):
            writer.write("train", step, {"loss": 1.0 / step})
        writer.write("eval", 2, {"accuracy": 0.5})
    with path.open("a") as file:
        file.write('{"split": "train", "st')  # What a killed run leaves.
    with MetricsWriter(path, board, after_step=2) as writer:
        writer.write("train", 3, {"loss": 0.1})
    lines = map(json.loads, path.read_text().splitlines())
    steps = [(line["split"], line["step"]) for line in lines]
    assert steps == [("train", 1), ("train", 2), ("eval", 2), ("train", 3)]
    assert read_metrics(path)[-1]["loss"] == 0.1
    assert list(board.glob("events.out.tfevents.*"))


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
