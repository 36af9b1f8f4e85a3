"""Which files of a model on the hub are fetched; the hub is tests/support/hub_server.py."""

from __future__ import annotations

import pytest

from tests.support.hub_processes import make_env, run_python
from tests.support.hub_server import serve
from tests.support.paths import REFERENCE

# What a repository holds for other programs; none of it may be fetched.
OTHERS = (
    "consolidated.safetensors",
    "model.fp16.safetensors",
    "original/consolidated.00.safetensors",
    "original/params.json",
    "onnx/config.json",
    "onnx/model.safetensors",
    "pytorch_model.bin",
)
LOAD = "from lntune_jax.models import from_pretrained\n"


@pytest.fixture
def hub():
    with serve() as hub:
        yield hub


def publish(hub, name, model, extra=()):
    files = {
        file.name: file.read_bytes()
        for file in (REFERENCE / model).iterdir()
        if file.suffix != ".npz"
    }
    # Two files of one content would be fetched once.
    hub.commit(name, "main", files | {path: path.encode() for path in (*OTHERS, *extra)})
    return files


def ask(hub, home, program, *, offline=False):
    home.mkdir(exist_ok=True)
    env = make_env(home, hub.endpoint, offline=offline)
    return run_python(["-c", program], home, env)


def test_of_the_weights_only_what_the_index_names(tmp_path, hub):
    files = publish(hub, "owner/sharded", "bert_seq_cls_sharded")
    load = LOAD + "print(from_pretrained('owner/sharded', 'SEQ_CLS').fresh)"
    assert ask(hub, tmp_path, load) == ["()"]
    assert {path for _, path in hub.fetched} == set(files)
    hub.fetched.clear()
    assert ask(hub, tmp_path, load, offline=True) == ["()"]
    assert not hub.fetched


def test_a_branch_is_fetched_at_one_commit(tmp_path, hub):
    publish(hub, "owner/name", "bert_seq_cls_sharded")
    files = hub.files("owner/name")
    hub.commit("owner/name", "old", files)
    hub.commit("owner/name", "main", {".gitattributes": b""})
    load = LOAD + "print(from_pretrained('owner/name', 'SEQ_CLS', revision='old').fresh)"
    assert ask(hub, tmp_path, load) == ["()"]


def test_an_id_without_an_owner(tmp_path, hub):
    extra = ("1_Pooling/config.json", "modules.json", "README.md")
    files = publish(hub, "bert", "bert", extra)
    program = (
        LOAD + "from lntune_jax.models import from_config\n"
        "print(from_config('bert').config.model_type)\n"
        "print(from_pretrained('bert').config.model_type)\n"
        "from lntune_jax.cli import main\n"
        "raise SystemExit(main(['inspect', 'bert']))"
    )
    assert ask(hub, tmp_path, program)[:2] == ["bert", "bert"]
    paths = [path for _, path in hub.fetched]
    assert paths[0] == "config.json"
    assert sorted(paths) == sorted([*files, "1_Pooling/config.json", "modules.json"])


def test_merging_fetches_what_a_checkpoint_keeps(tmp_path, hub):
    extra = ("README.md", "additional_chat_templates/rag.jinja", "1_Pooling/config.json")
    files = publish(hub, "owner/name", "bert_seq_cls", (*extra, "modules.json"))
    program = (
        "import lntune_jax as lnt\n"
        "model = lnt.models.from_pretrained('owner/name', 'SEQ_CLS')\n"
        "trainable, _ = lnt.partition_params(model.params, lnt.LNTuningConfig())\n"
        "lnt.save_adapter('adapter', trainable, lnt.LNTuningConfig(), base=model.params)\n"
        "merged = lnt.models.merge_checkpoint('owner/name', 'adapter', 'merged')\n"
        "print(merged.skipped)"
    )
    assert ask(hub, tmp_path, program) == ["()"]
    assert {path for _, path in hub.fetched} == {*files, *extra, "modules.json"}
    merged = tmp_path / "merged"
    found = {p.relative_to(merged).as_posix() for p in merged.rglob("*") if p.is_file()}
    assert found == {*files, *extra, "modules.json", "lntune_merge.json"}


def test_an_index_that_leads_elsewhere_is_refused_before_its_files_are_fetched(tmp_path, hub):
    files = publish(hub, "owner/name", "bert_seq_cls_sharded")
    index = b'{"weight_map": {"a": "onnx/model.safetensors"}}'
    hub.commit("owner/name", "main", files | {"model.safetensors.index.json": index})
    program = (
        LOAD + "from lntune_jax.errors import ModelError\n"
        "try:\n"
        "    from_pretrained('owner/name', 'SEQ_CLS')\n"
        "except ModelError as error:\n"
        "    print('which is no plain file name' in str(error))"
    )
    assert ask(hub, tmp_path, program) == ["True"]
    assert not any(path.endswith(".safetensors") for _, path in hub.fetched)
