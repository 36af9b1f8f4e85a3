"""`lntune-jax compare`: what it prints, and what it refuses."""

import numpy as np
import pytest

import lntune_jax as lnt
from tests.support.checkpoints import REFERENCE
from tests.support.gguf_files import checkpoint, write
from tests.support.outcomes import refused

CONFIG = lnt.LNTuningConfig()
UPPER = lnt.LNTuningConfig(target_modules=[r".*layer\.1\..*LayerNorm"])


@pytest.fixture(scope="module")
def adapters(model_directory, tmp_path_factory):
    """Adapters of ours and PEFT's: one is another's opposite, one tunes half of the norms."""
    place = tmp_path_factory.mktemp("adapters")
    params = lnt.models.from_pretrained(model_directory).params
    trainable, _ = lnt.partition_params(params, CONFIG)
    moved = {path: np.asarray(value) + 0.25 for path, value in trainable.items()}
    back = {path: np.asarray(value) - 0.25 for path, value in trainable.items()}
    upper = {p: np.asarray(v) + 1 for p, v in lnt.partition_params(params, UPPER).trainable.items()}
    lnt.save_adapter(place / "french", moved, CONFIG, base=params)
    lnt.save_adapter(place / "german", back, CONFIG, base=params)
    lnt.export_peft(place / "upper", upper, UPPER)
    return place


def cells(printed, first):
    """The rows of tables whose first cell is this."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines()]
    return [row[1:] for row in rows if row and row[0] == first]


def test_ours_and_peft_s_in_one_comparison(run, adapters, model_directory, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # tables are never cut
    figure, names = tmp_path / "new" / "figure.png", ("french", "german", "upper")
    words = [adapters / name for name in names]
    code, printed, complaint = run(
        "compare", *words, "--model", model_directory, "--figure", figure
    )
    assert (code, complaint) == (0, "")
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert f"figure: {figure}" in printed
    summary, cosine, distance = cells(printed, "upper")
    assert summary == ["PEFT", "1.000", "1.000", "layer 1 attention output", "0"]
    assert cells(printed, "french")[0][:3] == ["lntune_jax", "0.250", "0.250"]
    assert cells(printed, "embeddings") == [["0.250 / 0.250", "0.250 / 0.250", "- / -"]]
    assert cells(printed, "layer 1 output")[0][2] == "1.000 / 1.000"
    # 5 norms 16 wide, scales and biases, each moved by 0.25; two of them by 1.
    assert cells(printed, "german")[1:] == [
        ["-1.000", "1.000", "-0.632"],
        [f"{0.5 * 160**0.5:.3f}", "0", f"{(64 * 1.25**2 + 96 * 0.25**2) ** 0.5:.3f}"],
    ]
    assert cosine == ["0.632", "-0.632", "1.000"]
    assert distance[2] == "0"


def test_a_run_stands_for_its_adapter_and_its_head_is_counted(
    run, make_run, adapters, model_directory, tmp_path
):
    trained = make_run("default")
    words = (trained, adapters / "french", "--model", model_directory)
    code, printed, complaint = run("compare", *words, "--figure", tmp_path / "figure.svg")
    assert (code, complaint) == (0, "")
    assert "<svg" in (tmp_path / "figure.svg").read_text()
    # A classifier of 16 x 2 + 2, and a pooler of 16 x 16 + 16 that the base lacks.
    assert cells(printed, trained.name)[0][-1] == str(34 + 272)


def test_a_decoder_has_no_biases_and_many_adapters_go_to_the_figure(run, tmp_path):
    base = REFERENCE / "decoders" / "llama"
    params = lnt.models.from_pretrained(base, "CAUSAL_LM").params
    config = lnt.LNTuningConfig(task_type="CAUSAL_LM")
    trainable, _ = lnt.partition_params(params, config)
    paths = []
    for number in range(13):
        tuned = {path: np.asarray(value) + number for path, value in trainable.items()}
        paths.append(tmp_path / f"tenant {number}")
        lnt.export_peft(paths[-1], tuned, config)
    figure = ("--figure", tmp_path / "figure.pdf")
    code, printed, complaint = run("compare", *paths, "--model", base, *figure)
    assert (code, complaint) == (0, "")
    assert "the tables of 13 adapters would be wide: see the figure" in printed
    assert cells(printed, "tenant 0")[0][1:4] == ["0", "-", "none moved"]
    code, printed, _ = run("compare", *paths, "--model", base)
    assert code == 0
    assert "--figure FILE.png draws them" in printed
    code, printed, _ = run("compare", paths[3], "--model", base, *figure)
    assert code == 0
    assert "How far each norm moved (scale, RMS change)" in printed
    assert "Cosine" not in printed


def test_no_file_is_written_unasked(run, adapters, model_directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (adapters / "french", adapters / "german", "--model", model_directory)
    code, printed, complaint = run("compare", *words)
    assert (code, complaint) == (0, "")
    assert "figure" not in printed
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(run, adapters, model_directory, tmp_path):
    french, model = adapters / "french", ("--model", model_directory)
    refused(run("compare", *model), "missing ADAPTER")
    refused(run("compare", french), "--model")
    refused(run("compare", french, tmp_path, *model), "holds no adapter: expected lntune.json")
    refused(run("compare", french, french, *model), "is given twice: leave one out")
    refused(run("compare", french, "--model", tmp_path), "is not a model directory")
    figure = ("--figure", tmp_path / "figure.txt")
    refused(run("compare", french, *model, *figure), "must end in one of .png, .svg, .pdf")
    other = ("--model", REFERENCE / "bert")
    refused(run("compare", french, *other, "--figure", tmp_path / "x.png"), "french")
    assert not (tmp_path / "x.png").exists()


def test_a_gguf_base_of_each_kind_and_a_head_with_biases(run, tmp_path, monkeypatch):
    base = tmp_path / "model.gguf"
    write(base, *checkpoint("gpt2"))
    head = lnt.LNTuningConfig(modules_to_save=["c_attn"])
    loads, read = [], lnt.models.from_pretrained
    for name, quantize, config in (("full", None, head), ("few", "int8", CONFIG)):
        params = read(base, "CAUSAL_LM", quantize=quantize).params
        trainable, _ = lnt.partition_params(params, config)
        moved = {path: value + 0.5 for path, value in trainable.items()}
        lnt.save_adapter(tmp_path / name, moved, config, base=params)
        saved = sum(leaf.size for path, leaf in trainable.items() if "c_attn" in path)
        assert bool(saved) == (config is head)
        others = f"{saved:,}" if saved else "0"
        lnt.save_adapter(tmp_path / f"{name} again", moved, config, base=params)
        paths = (tmp_path / name, tmp_path / f"{name} again")
        monkeypatch.setattr(
            lnt.models, "from_pretrained", lambda *a, **k: loads.append(k) or read(*a, **k)
        )
        code, printed, _ = run(
            "compare", *paths, "--model", base, "--figure", tmp_path / "figure.png"
        )
        assert code == 0
        assert cells(printed, name)[0][-1] == others
        assert "c_attn" not in printed
    assert [each["quantize"] for each in loads] == [None, "int8"]


@pytest.mark.parametrize("name", ["file/figure.png", "folder.png"])
def test_a_figure_that_cannot_be_written_is_one_line(
    run, adapters, model_directory, tmp_path, name
):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    flags = ("--model", model_directory, "--figure", tmp_path / name)
    code, _, complaint = run("compare", adapters / "french", *flags)
    assert code == 2
    assert f"--figure {tmp_path / name} cannot be written" in complaint
