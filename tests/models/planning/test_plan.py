"""`plan` without its compilers: what it refuses, what it tries, and what it says."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import ConfigError, ModelError
from lntune_jax.models.planning import compiled as compiling
from lntune_jax.models.planning.compiled import Compiled, Request, Sent, read_answer
from lntune_jax.models.planning.plan import find_fitting
from tests.support.devices import run_on_devices
from tests.support.paths import REFERENCE
from tests.support.planning import TINY

SENT = {"all-gather": Sent(4, 8_000_000, 7_000_000)}
FITS = Compiled(1000, 900, 400, 500, 10**9, SENT, ("f32[4,128,128]", 2**18))
LARGE = Compiled(1000, 4000)


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that answers what it is told, and keeps what it was asked."""
    asked, answers = [], []

    def compile_apart(request):
        asked.append(request)
        return answers.pop(0) if answers else FITS

    monkeypatch.setattr(sys.modules[lnt.models.plan.__module__], "compile_apart", compile_apart)
    monkeypatch.setattr(sys.modules[lnt.models.plan.__module__], "check_compiler", lambda _: None)
    return SimpleNamespace(requests=asked, answers=answers)


def test_defaults(compiler):
    found = lnt.models.plan(TINY, chips="v5e-8", length=128)
    (asked,) = compiler.requests
    assert (asked.mesh, asked.batch, asked.length, asked.method) == ({"fsdp": 8}, 8, 128, "ln")
    assert asked.options["dtype"] == "bfloat16"
    assert asked.options["scan_layers"]
    assert asked.options["task"] == "CAUSAL_LM"
    json.dumps(asked.config)
    assert found.fits
    assert found.fitting.batch == 8
    norms = (2 * 2 + 1) * 64
    assert found.trainable == norms
    layer = 4 * 64 * 64 + 3 * 64 * 128
    assert found.products == 2 * layer + 64 * 512
    assert found.estimates["ln"] > 0
    assert found.passes(FITS) == 10**9 * 8 / (2 * found.products * 8 * 128)


def test_a_mesh_that_says_no_sizes_and_an_option_that_there_is_not():
    devices = jax.make_mesh((1,), ("fsdp",))
    for mesh in (["fsdp", 8], devices):
        with pytest.raises(ConfigError, match=r"expected sizes of axes, such as \{'fsdp': 8\}"):
            lnt.models.plan(TINY, chips="v5e-8", mesh=mesh)
        with pytest.raises(ConfigError, match="expected sizes of axes"):
            lnt.models.estimate_memory(TINY, mesh=mesh)
    with pytest.raises(TypeError, match=r"plan has no argument 'remta' \(did you mean 'remat'"):
        lnt.models.plan(TINY, chips="v5e-8", remta="full")


def test_the_report(compiler):
    found = lnt.models.plan(TINY, chips="v5p-8", mesh={"fsdp": 4, "tensor": 2}, length=128)
    text = str(found)
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "a v5p-16 in the names of clouds",
        "mesh fsdp=4,tensor=2",
        "4 x 128 tokens in all, bfloat16, remat none",
        "LN tuning",
        "4 x, 7.00 MB",
        "f32[4,128,128]",
    ):
        assert words in text, words
    assert "does not fit" not in text
    said = json.loads(json.dumps(found.to_dict()))
    assert said["steps"]["ln"]["fits"] is True
    assert said["chips"]["devices"] == 8


def test_what_the_compiler_does_not_say_is_not_made_up(compiler):
    compiler.answers += [Compiled(1000, 900, 400, 500, notes=("it does not say",))]
    text = str(lnt.models.plan(TINY, chips="v5e-8", length=128))
    assert "LN tuning: it does not say" in text
    assert not {"operations", "sent", "length x"} & set(text.split("estimate_memory")[1].split())
    compiler.answers += [replace(FITS, sent={}, square=None, has_no_square=True)]
    text = str(lnt.models.plan(TINY, chips="v5e-8", length=128))
    assert [line.split()[-1] for line in text.splitlines()[-2:]] == ["nothing", "none"]


def test_other_methods_stand_beside(compiler):
    found = lnt.models.plan(TINY, chips="v5e-8", length=128, method="lora", compare=True)
    assert [asked.method for asked in compiler.requests] == ["lora", "ln", "full"]
    assert list(found.steps) == ["lora", "ln", "full"]
    assert "LoRA, rank 8" in str(found)


def test_what_fits_is_looked_for(compiler):
    compiler.answers += [LARGE, replace(LARGE, needed=2000), FITS]
    lines = []
    found = lnt.models.plan(TINY, chips="v5e-8", batch=16, length=128, progress=lines.append)
    assert not found.fits
    assert found.fitting.remat == "full"
    assert len(lines) == 6
    text = str(found)
    assert "does not fit: it needs" in text.replace("It does", "does")
    assert "This fits: --remat full" in text


def test_what_fits_is_not_looked_for_when_that_is_not_wanted(compiler):
    compiler.answers += [LARGE]
    found = lnt.models.plan(TINY, chips="v5e-8", length=128, search=False)
    assert (found.fits, found.fitting, len(compiler.requests)) == (False, None, 1)
    assert "does not fit" in str(found)


def _search(needs, batch=64, remat="none"):
    asked = Request({}, {"remat": remat}, "ln", "v5e", 8, {"fsdp": 8}, batch, 2048)

    def compile_one(request):
        needed = needs(request)
        return Compiled(1000, needed, 1, 1) if needed <= 1000 else Compiled(1000, needed)

    found = find_fitting(asked, compile_one(asked), 8, compile_one)
    return [(each.remat, each.batch, each.length) for each in found]


def test_more_is_computed_again_first_then_rows_then_length():
    assert _search(lambda r: 900 if r.options["remat"] == "full" else 1500) == [
        ("dots_with_no_batch_dims_saveable", 64, 2048),
        ("full", 64, 2048),
    ]
    # Four times too large: 32 rows are not even tried.
    assert _search(lambda r: 4000 * r.batch // 64, remat="full") == [("full", 16, 2048)]
    assert _search(lambda r: 3000 * r.length // 2048, batch=8, remat="full") == [("full", 8, 512)]


def test_the_search_ends():
    assert len(_search(lambda r: 1100)) == 5
    assert _search(lambda r: 10**9, remat="full") == []
    shortest = _search(lambda r: 1001 if r.length > 128 else 1000, batch=8, remat="full")
    assert shortest[-1] == ("full", 8, 128)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"chips": "v5f-8"}, "did you mean 'v5p'"),
        ({"mesh": {"fsdp": 4}}, "mesh has fsdp=4, which is 4 devices, but v5e-8 has 8"),
        ({"mesh": {"fdsp": 8}}, "'fdsp'.*data, fsdp, tensor"),
        ({"batch": 12}, "batch is 12, which the 8 places .* do not divide; pass 8"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": True}, "batch is True"),
        ({"length": 0}, "length is 0"),
        ({"length": 1.5}, "length is 1.5"),
        ({"length": 8192}, "has positions for 4096"),
        ({"method": "LN"}, "method is 'LN'"),
        ({"method": "full", "quantize": "int8"}, "quantize is 'int8'"),
        ({"remat": "all"}, "remat"),
        ({"dtype": "float16"}, "float16"),
        ({"attention": "cudnn"}, "attention is 'cudnn', which is of GPUs, but chips is v5e-8"),
    ],
)
def test_what_is_refused(compiler, given, words):
    with pytest.raises((ConfigError, ModelError), match=words):
        lnt.models.plan(TINY, **({"chips": "v5e-8"} | given))
    assert not compiler.requests


def test_a_mesh_of_chips_with_two_devices_each(compiler):
    with pytest.raises(ConfigError, match="is 4 devices, but 7x-4 has 8, 2 on a chip"):
        lnt.models.plan(TINY, chips="7x-4", mesh={"fsdp": 4})


def test_models_of_all_kinds(compiler, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TINY))
    model = lnt.models.from_config(TINY, "CAUSAL_LM", remat="full", dtype="float32")
    for given in (tmp_path, str(file), file, model.config, model):
        lnt.models.plan(given, chips="v5e-4", length=128)
    asked = compiler.requests
    assert all(each.config["hidden_size"] == 64 for each in asked)
    assert (asked[-1].options["remat"], asked[-1].options["dtype"]) == ("full", "float32")
    lnt.models.plan(REFERENCE / "bert", chips="v5e-4", length=16)
    assert asked[-1].options["task"] == "SEQ_CLS"
    assert "scan_layers" not in asked[-1].options
    with pytest.raises(ModelError, match="neither a directory nor an id"):
        lnt.models.plan("./nowhere", chips="v5e-4")
    with pytest.raises(ModelError, match="'model_type' is 'mamba'"):
        lnt.models.plan({"model_type": "mamba"}, chips="v5e-4")
    with pytest.raises(ModelError, match="a plan is of a config"):
        lnt.models.plan(3, chips="v5e-4")
    file.write_text("{")
    with pytest.raises(ModelError, match="not a JSON file"):
        lnt.models.plan(file, chips="v5e-4")


@pytest.mark.parametrize(
    ("chips", "words"),
    [("v5e-8", r"pip install 'lntune-jax\[plan\]'"), ("h200", r"pip install 'jax\[cuda13\]'")],
)
def test_without_a_compiler(monkeypatch, chips, words):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=words):
        compiling.check_compiler(lnt.models.planning.chips.read_slice(chips))


def test_a_process_that_ends_without_an_answer(monkeypatch):
    monkeypatch.setattr(compiling, "check_compiler", lambda _: None)
    monkeypatch.setattr(compiling.sys, "executable", "/bin/false")
    request = Request(TINY, {}, "ln", "v5e", 8, {"fsdp": 8}, 8, 128)
    with pytest.raises(ModelError, match="for v5e-8 ended without an answer: exit code 1"):
        compiling.compile_apart(request)


_MEASURE = """
import dataclasses, json
import jax
from lntune_jax.models import from_config
from lntune_jax.models.planning.compiled import list_sizes, measure, read_answer
from lntune_jax.models.planning.steps import count_products
from tests.support.planning import TINY

mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
model = from_config(TINY, "CAUSAL_LM", scan_layers=True, remat="full")
quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
sizes = {"batch": 8, "length": 96, "memory": 2**30, "options": quick}
found = {each: measure(model, each, mesh, **sizes) for each in ("ln", "lora", "full")}
token_passes = 2 * count_products(model) * 8 * 96
passes = {name: each.flops * 8 / token_passes for name, each in found.items()}
assert 2 < passes["ln"] < passes["full"], passes
assert 2 < passes["lora"] < passes["full"], passes
assert all(each.fits and not each.notes for each in found.values())
assert found["ln"].arguments < found["lora"].arguments < found["full"].arguments
assert found["ln"].square[0].endswith("96,96]"), found["ln"].square
norms = 4 * 5 * 64
assert found["ln"].sent["all-gather"].count > 4
gradients = found["full"].sent["all-reduce"].result - found["ln"].sent["all-reduce"].result
assert gradients > 10 * norms, gradients
again = json.loads(json.dumps(dataclasses.asdict(found["ln"])))
assert read_answer(again) == found["ln"]
assert 64 in list_sizes(model) and 96 not in list_sizes(model)
print("done")
"""


def test_steps_compiled_for_simulated_devices():
    run_on_devices(_MEASURE, 8)


def test_answers_are_read_back():
    said = {
        "memory": 10,
        "needed": 20,
        "arguments": None,
        "temporaries": None,
        "flops": None,
        "sent": None,
        "square": None,
        "has_no_square": False,
        "seconds": 1.0,
        "notes": [],
    }
    assert not read_answer(said).fits
