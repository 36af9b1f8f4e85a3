"""What can be checked of figures: their size, and that nothing is cut, covered or out of range."""

import itertools
import struct

import numpy as np
import pytest
from matplotlib.figure import Figure

from lntune_jax.cli.figures import Curves, draw_comparison, draw_figure, draw_sweep
from lntune_jax.cli.movement import Movement
from lntune_jax.tasks import LOSS, causal_lm, text_classification

KINDS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm")
KINDS += ("post_feedforward_layernorm", "self_attn.q_norm", "self_attn.k_norm")
BERT = ("attention.output.LayerNorm", "output.LayerNorm")

SHOWN = {each.name: each for each in (*text_classification.METRICS, *causal_lm.METRICS, LOSS)}


def bert(layers):
    norms = [f"bert.encoder.layer.{number}.{kind}" for number in range(layers) for kind in BERT]
    return ["bert.embeddings.LayerNorm", *norms]


def decoder(layers, *others):
    norms = [f"model.layers.{number}.{kind}" for number in range(layers) for kind in KINDS]
    return [*norms, "model.norm", *others]


OTHERS = ("model.embed_norm", "model.projector.pre_norm", "model.projector.post_norm")
MODELS = {
    "BERT, 2 layers": (bert(2), True),
    "MiniLM, 6 layers": (bert(6), True),
    "Gemma, 18 layers": (decoder(18), False),
    "60 layers": (decoder(60, *OTHERS), False),
    "no layers": (["norm"], True),
}


def moved(modules, with_bias):
    random = np.random.default_rng(0)
    return [Movement(m, random.random(), random.random() if with_bias else None) for m in modules]


def lines(steps, every, **metrics):
    """A falling loss with noise, and evaluations; `metrics` are (first, last)."""
    random = np.random.default_rng(1)
    for step in range(1, steps + 1):
        loss = 2.0 - step / steps
        yield {"split": "train", "step": step, "loss": loss + 0.1 * random.normal()}
        if step % every == 0:
            share = step / steps
            own = {name: a + (b - a) * share for name, (a, b) in metrics.items()}
            yield {"split": "eval", "step": step, "loss": loss, **own}


@pytest.fixture
def look_at(tmp_path, monkeypatch):
    """Draw, check what holds of every figure, and give it."""
    kept, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (kept.append(self), save(self, path)))

    def draw(function, *arguments):
        path = tmp_path / "figure.png"
        function(path, *arguments)
        assert struct.unpack(">II", path.read_bytes()[16:24]) == (1365, 650)
        figure = kept.pop()
        figure.draw_without_rendering()
        check(figure)
        return figure

    return draw


def check(figure):
    whole = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert whole.x0 >= -1
    assert whole.y0 >= -1
    assert whole.x1 <= figure.bbox.x1 + 1
    assert whole.y1 <= figure.bbox.y1 + 1
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [
                tick.label1
                for tick in axis.get_major_ticks()
                if tick.label1.get_text()
                and tick.label1.get_visible()
                and low <= tick.get_loc() <= high
            ]
            assert not overlapping(labels), (axes.get_title(), [each.get_text() for each in labels])
        for line in axes.get_lines():
            points = np.array([line.get_xdata(), line.get_ydata()], float)
            points = points[:, np.isfinite(points).all(axis=0)]
            for values, limits in zip(points, (axes.get_xlim(), axes.get_ylim()), strict=True):
                assert (values >= min(limits) - 1e-9).all()
                assert (values <= max(limits) + 1e-9).all()
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    legends += [each for part in figure.subfigs for each in part.legends]
    for legend, axes in itertools.product(legends, figure.axes):
        assert not legend.get_window_extent().padded(-1).overlaps(axes.get_window_extent())


def overlapping(labels):
    """Labels that touch: by their boxes, or by the distance between two turned lines."""
    for one, other in itertools.pairwise(labels):
        if one.get_rotation():
            (x, _), (y, _) = (
                each.get_transform().transform(each.get_position()) for each in (one, other)
            )
            if (
                abs(y - x) * np.sin(np.radians(one.get_rotation()))
                < 0.9 * one.get_fontsize() * 130 / 72
            ):
                return True
        elif one.get_window_extent().overlaps(other.get_window_extent()):
            return True
    return False


@pytest.mark.parametrize("model", MODELS)
def test_a_run_of_any_depth_fits_on_one_screen(look_at, model):
    modules, with_bias = MODELS[model]
    run = Curves("LN tuning", list(lines(400, 40, perplexity=(60.0, 3.0))), 400)
    title = f"LayerNorm tuning: {model}"
    figure = look_at(draw_figure, title, [run], moved(modules, with_bias), SHOWN["perplexity"])
    loss, score, *movement = figure.axes
    assert len(movement) == (1 if model == "no layers" else 2)
    assert score.get_ylim()[0] >= 0
    assert score.get_ylabel() == "evaluation perplexity"
    assert [text.get_text() for text in score.get_legend().get_texts()] == ["kept: 3 (step 400)"]
    smooth = loss.get_lines()[1].get_ydata()
    losses = [line["loss"] for line in run.lines if line["split"] == "train"]
    assert (smooth[0], smooth[-1]) == pytest.approx((np.mean(losses[:20]), np.mean(losses[-20:])))
    lines_of = {line.get_label() for line in movement[0].get_lines()}
    if model == "60 layers":
        assert lines_of >= {kind.removeprefix("self_attn.") for kind in KINDS}
        drawn = [line for line in movement[0].get_lines() if len(line.get_xdata()) == 60]
        assert len(drawn) == len(KINDS)
    styles = {line.get_linestyle() for line in movement[0].get_lines() if len(line.get_xdata())}
    assert ("--" in styles) == (with_bias and model != "no layers")


def test_shares_are_written_in_per_cent_and_end_at_100(look_at):
    runs = [Curves(name, list(lines(96, 32, accuracy=(0.5, 1.0))), 96) for name in ("a", "b", "c")]
    figure = look_at(draw_figure, "a demo", runs, moved(bert(6), True), SHOWN["accuracy"])
    score = figure.axes[1]
    assert score.get_ylim()[1] == 100
    assert score.get_legend().get_texts()[2].get_text() == "c, kept: 100.0 %"


def test_the_loss_as_metric_is_drawn_once(look_at):
    run = Curves("LN tuning", list(lines(30, 10)), 20)
    figure = look_at(draw_figure, "a run", [run], moved(bert(2), True), SHOWN["loss"])
    assert len(figure.axes) == 3


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_runs_of_few_steps_without_evaluations_or_norms(look_at, steps):
    run = Curves("LN tuning", list(lines(steps, 9, accuracy=(0, 1))), 2)
    look_at(draw_figure, "a run", [run], [], SHOWN["accuracy"])


def test_a_loss_that_is_no_number_leaves_a_gap(look_at):
    run = list(lines(40, 10, perplexity=(9.0, 5.0)))
    run[3]["loss"] = run[-1]["loss"] = run[-1]["perplexity"] = None
    look_at(draw_figure, "a run", [Curves("LN", run, 30)], [], SHOWN["perplexity"])


RATES = [float(f"{rate:.3g}") for rate in np.geomspace(1e-5, 1e-1, 30)]
TABLES = ["de-train-reviews", "fr-train-reviews", "italian-train-reviews", "english"]


@pytest.mark.parametrize(
    ("name", "values", "seeds"),
    [("learning_rate", RATES[::6], 3), ("learning_rate", RATES, 1), ("data", TABLES, 2)],
)
def test_a_sweep(look_at, name, values, seeds):
    trials = {
        f"{value} {seed}": {name: value} | ({"seed": seed} if seeds > 1 else {})
        for value in values
        for seed in range(seeds)
    }
    metrics = [
        {**line, "trial": trial}
        for trial in trials
        for line in lines(40, 10, perplexity=(5.0, 3.0))
    ]
    left, right = look_at(draw_sweep, "MiniLM", trials, metrics, SHOWN["perplexity"]).axes
    assert len([line for line in left.get_lines() if len(line.get_xdata())]) == len(trials)
    assert {float(line.get_ydata()[0]) for line in right.get_lines()} == {3.0}
    assert ("differ in seed" in right.get_xlabel()) == (seeds > 1)


def test_a_sweep_of_seeds_and_one_whose_adapters_have_no_number(look_at):
    metrics = [{"split": "eval", "step": 1, "trial": "a", "loss": None, "accuracy": 0.5}]
    for trials in ({"a": {"seed": 0}, "b": {"seed": 1}}, {"a": {}}):
        look_at(draw_sweep, "MiniLM", trials, metrics, SHOWN["accuracy"])
        look_at(draw_sweep, "MiniLM", trials, metrics, SHOWN["loss"])


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("BERT, 2 layers", 1),
        ("BERT, 2 layers", 3),
        ("MiniLM, 6 layers", 12),
        ("MiniLM, 6 layers", 40),
        ("Gemma, 18 layers", 1),
        ("Gemma, 18 layers", 40),
        ("60 layers", 12),
        ("no layers", 3),
    ],
)
def test_a_comparison(look_at, model, count):
    modules, with_bias = MODELS[model]
    random = np.random.default_rng(2)
    scales = random.random((count, len(modules)))
    biases = random.random(scales.shape) if with_bias else np.full(scales.shape, np.nan)
    names = [f"tenant {number}" for number in range(count - 1)]
    names.append("runs/a/long/path/to/italian-reviews")
    cosine = random.random((count, count))
    if count > 1:
        scales[0], cosine[0] = np.nan, np.nan
    figure = look_at(
        draw_comparison, names, modules, scales, biases, cosine, 1 - random.random((count, count))
    )
    maps = [axes for axes in figure.axes if axes.images]
    panels = {"BERT": 3, "MiniLM": 3, "Gemma": 7, "60": 7, "no": 1}[
        model.replace(",", "").split()[0]
    ]
    assert len(maps) == (0 if count == 1 else panels * (1 + with_bias) + 2)
