"""Adapters on the hub: pushed, fetched and restored, each in a process of a person's own.

Processes, since huggingface_hub reads its settings when it is imported. Nothing here reaches the
network: the hub is tests/support/hub_server.py.
"""

import json
import re
import sys

import numpy as np
import pytest
import yaml

import lntune_jax as lnt
from lntune_jax.errors import AdapterError
from tests.support.hub_processes import make_env, run, run_python
from tests.support.hub_server import serve
from tests.support.paths import ROOT
from tests.support.small import make_params
from tests.support.source_checks import PAGES

CONFIG = lnt.LNTuningConfig(
    modules_to_save=["classifier"],
    task_type="SEQ_CLS",
    base_model_name_or_path="org/base",
)


@pytest.fixture
def hub():
    with serve() as hub:
        yield hub


def tune(params, by, config=CONFIG):
    trainable, frozen = lnt.partition_params(params, config)
    tuned = {path: leaf + by for path, leaf in trainable.items()}
    return tuned, lnt.merge_params(tuned, frozen)


def save(path, by, params=None, config=CONFIG):
    params = params or make_params()
    tuned, merged = tune(params, by, config)
    return lnt.save_adapter(path, tuned, config, base=params), merged


def read(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(text, tree):
    for found, expected in zip(json.loads(text), read(tree), strict=True):
        np.testing.assert_array_equal(np.asarray(found, expected.dtype), expected)


def test_push_fetch_and_go_offline(tmp_path, hub):
    path, merged = save(tmp_path / "adapter", 0.5)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    push = (
        f"print(hub.push_adapter({str(path)!r}, 'me/tuned', private=True))\n"
        "params = hub.from_pretrained('me/tuned', make_params())\n"
        "print(read(params))\n"
        # A person who has the whole repository has the card and the hub's own files too.
        "import huggingface_hub\n"
        "whole = huggingface_hub.snapshot_download('me/tuned')\n"
        "import os; print(sorted(name for name in os.listdir(whole)))\n"
        "print(read(lnt.restore_adapter(whole, make_params())))\n"
        "huggingface_hub.snapshot_download('me/tuned', local_dir='copy')\n"
        "print(os.path.isdir('copy/.cache/huggingface'))\n"
        "print(read(lnt.restore_adapter('copy', make_params())))\n"
    )
    (tmp_path / "home").mkdir()
    oid, restored, names, whole, has_cache, copy = run(push, tmp_path / "home", hub.endpoint)
    assert hub.branches["me/tuned"]["main"] == oid
    assert hub.private["me/tuned"]
    for text in (restored, whole, copy):
        assert_same(text, merged)
    assert {"README.md", ".gitattributes", "lntune.json"} <= set(
        json.loads(names.replace("'", '"'))
    )
    assert has_cache == "True"
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    stored = hub.files("me/tuned")
    for file, data in before.items():
        assert stored[file.relative_to(path).as_posix()] == data
    assert hub.objects, "binary files go the way of large ones"

    # The cache serves where the network is turned off, and where there is none.
    again = (
        "print(read(hub.from_pretrained('me/tuned', make_params())))\n"
        "print(attempt(hub.fetch_adapter, 'me/other'))\n"
        f"print(attempt(hub.push_adapter, {str(path)!r}, 'me/tuned'))\n"
    )
    for offline in (True, False):
        text, fetched, pushed = run(again, tmp_path / "home", offline=offline)
        assert_same(text, merged)
        assert "'me/other' is neither on the hub nor in the cache" in fetched
        assert ("HF_HUB_OFFLINE is set" in fetched) == offline
        assert ("Check the network" in fetched) != offline
        assert "AdapterError: cannot push" in pushed
        assert "HF_HUB_OFFLINE" in pushed
    assert hub.branches["me/tuned"]["main"] == oid

    fields = yaml.safe_load(stored["README.md"].decode().split("---\n")[1])
    assert fields == {
        "library_name": "lntune_jax",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "pipeline_tag": "text-classification",
        "tags": ["layernorm-tuning", "lntune_jax", "jax"],
    }
    report = lnt.report_params(make_params(), CONFIG)
    card = stored["README.md"].decode()
    assert f"{report.trainable:,} of {report.total:,} ({report.percent:.4f} %)" in card
    assert "| of these in norms | 192 |" in card
    assert "| in saved modules | 66: `classifier` |" in card
    assert 'lnt.hub.from_pretrained("me/tuned", params)' in card


def test_a_second_push_leaves_nothing_of_the_first(tmp_path, hub):
    first, _ = save(tmp_path / "first", 0.5)
    second, merged = save(tmp_path / "second", 1.5)
    peft = lnt.export_peft(tmp_path / "peft", tune(make_params(), 2.5)[0], CONFIG)
    (second / "README.md").write_text("---\ntags: [mine]\n---\nMy own words.\n")
    code = (
        f"a = hub.push_adapter({str(first)!r}, 'tuned')\n"  # "me" is the token's account
        f"b = hub.push_adapter({str(second)!r}, 'me/tuned', message='better')\n"
        f"c = hub.push_adapter({str(peft)!r}, 'me/tuned', revision='for-peft')\n"
        "print(a, b, c)\n"
        "for revision in (None, a, b, 'for-peft'):\n"
        "    print(read(hub.from_pretrained('me/tuned', make_params(), revision=revision)))\n"
    )
    oids, main, at_first, at_second, from_peft = run(code, tmp_path, hub.endpoint)
    assert_same(main, merged)
    assert_same(at_first, tune(make_params(), 0.5)[1])
    assert_same(at_second, merged)
    assert_same(from_peft, tune(make_params(), 2.5)[1])
    own = {file.relative_to(second).as_posix() for file in second.rglob("*") if file.is_file()}
    assert hub.files("me/tuned").keys() == own | {".gitattributes"}
    assert hub.files("me/tuned")["README.md"].endswith(b"My own words.\n")
    assert hub.files("me/tuned", "for-peft").keys() == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    # The branch began with a person's words, which stay.
    assert hub.files("me/tuned", "for-peft")["README.md"].endswith(b"My own words.\n")
    assert len(set(oids.split())) == 3


def test_a_readme_that_a_person_edited_stays_or_is_replaced_aloud(tmp_path, hub):
    first, _ = save(tmp_path / "first", 0.5)
    second, merged = save(tmp_path / "second", 1.5)
    peft = lnt.export_peft(tmp_path / "peft", tune(make_params(), 2.5)[0], CONFIG)
    push = "import warnings\nwarnings.filterwarnings('error', '.*README')\n"
    push += f"hub.push_adapter({str(first)!r}, 'me/tuned')\n"
    run(push, tmp_path, hub.endpoint)
    card = hub.files("me/tuned")["README.md"]
    run(push.replace(str(first), str(peft)), tmp_path, hub.endpoint)  # nobody has touched it
    other = hub.files("me/tuned")["README.md"].decode()
    assert yaml.safe_load(other.split("---\n")[1])["library_name"] == "peft"
    assert 'PeftModel.from_pretrained(model, "me/tuned")' in other
    assert "| parameters trained | 258 |" in other

    edited = card.replace(b"# tuned", b"# My own words")
    hub.commit("me/tuned", "main", hub.files("me/tuned") | {"README.md": edited})
    again = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    hub.push_adapter({str(second)!r}, 'me/tuned')\n"
        "print([str(each.message) for each in caught], caught[0].filename)\n"
        "print(read(hub.from_pretrained('me/tuned', make_params())))\n"
    )
    warned, restored = run(again, tmp_path, hub.endpoint)
    assert "the README.md of 'me/tuned' stays as a person wrote or edited it" in warned
    assert warned.endswith("<string>")
    assert hub.files("me/tuned")["README.md"] == edited
    assert_same(restored, merged)

    head = hub.branches["me/tuned"]["main"]
    (second / "README.md").write_text("Other words.")
    warned, _ = run(again, tmp_path, hub.endpoint)
    assert "which a person wrote or edited, is replaced" in warned
    assert head in warned
    assert hub.files("me/tuned")["README.md"] == b"Other words."


def test_two_pushes_at_one_moment_are_not_mixed(tmp_path, hub):
    first, _ = save(tmp_path / "first", 0.5)
    second, merged = save(tmp_path / "second", 1.5)
    code = (
        "import huggingface_hub\n"
        "upload = huggingface_hub.HfApi.upload_folder\n"
        "def upload_late(self, **kwargs):\n"
        "    huggingface_hub.HfApi.upload_folder = upload\n"
        f"    hub.push_adapter({str(second)!r}, 'me/tuned')\n"
        "    return upload(self, **kwargs)\n"
        "huggingface_hub.HfApi.upload_folder = upload_late\n"
        f"print(attempt(hub.push_adapter, {str(first)!r}, 'me/tuned'))\n"
        "print(read(hub.from_pretrained('me/tuned', make_params())))\n"
    )
    refused, restored = run(code, tmp_path, hub.endpoint)
    assert "cannot push" in refused
    assert "No file there has changed" in refused
    assert_same(restored, merged)


def test_the_card_is_written_to_be_edited(tmp_path):
    path, _ = save(tmp_path / "adapter", 0.5)
    card = lnt.hub.make_card(path, "me/tuned")
    assert card.startswith("---\n")
    assert "# tuned" in card
    (path / "README.md").write_text(card)
    lnt.load_adapter(path)


def test_the_card_shows_what_the_adapter_says_of_itself(tmp_path):
    params = make_params()
    names = [f"label {number}" for number in range(23)]
    task = {"labels": names, "pooling": "mean", "base_model": "/home/me/secret", "max_length": 64}
    tuned, _ = tune(params, 0.5)
    path = lnt.save_adapter(tmp_path / "adapter", tuned, CONFIG, base=params, task=task)
    card = lnt.hub.make_card(path, "me/tuned")
    assert "| labels | `label 0`, `label 1`," in card
    assert "`label 19` and 3 more |" in card
    assert "label 20" not in card
    assert "| pooling | `mean` |" in card
    assert "| max_length | `64` |" in card
    assert "secret" not in card


@pytest.mark.parametrize("write", ["ours", "peft"])
def test_a_path_of_this_machine_goes_up_with_a_warning(tmp_path, hub, write):
    local = CONFIG.replace(base_model_name_or_path=str(tmp_path / "base"))
    if write == "ours":
        path, _ = save(tmp_path / "adapter", 0.5, config=local)
    else:
        path = lnt.export_peft(tmp_path / "peft", tune(make_params(), 2.5, local)[0], local)
    code = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    hub.push_adapter({str(path)!r}, 'me/tuned')\n"
        "print([str(each.message) for each in caught])\n"
    )
    (said,) = run(code, tmp_path, hub.endpoint)
    assert "by a path of this machine" in said
    assert "base_model_name_or_path='owner/name'" in said


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    path, _ = save(tmp_path / "adapter", 0.5)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(AdapterError, match=r"pip install 'lntune-jax\[hf\]'"):
        lnt.hub.push_adapter(path, "me/tuned")
    with pytest.raises(AdapterError, match=r"pip install 'lntune-jax\[hf\]'"):
        lnt.hub.make_card(path, "me/tuned")


def test_what_cannot_be_pushed_or_fetched(tmp_path, hub):
    path, _ = save(tmp_path / "adapter", 0.5)
    hub.commit("org/base", "main", {"config.json": b"{}", "README.md": b"the base"})
    code = (
        "print(attempt(hub.fetch_adapter, 'me/absent'))\n"
        "print(attempt(hub.fetch_adapter, 'org/base'))\n"
        "print(attempt(hub.fetch_adapter, 'org/base', revision='no-such'))\n"
        "print(attempt(hub.from_pretrained, './nothing/here', {}))\n"
        f"print(attempt(hub.push_adapter, {str(path)!r}, '../up'))\n"
        f"print(attempt(hub.push_adapter, {str(path)!r}, 'me/tuned', token='hf_wrong'))\n"
        "print(attempt(hub.push_adapter, '.', 'me/tuned'))\n"
    )
    lines = run(code, tmp_path, hub.endpoint)
    expected = [
        "the adapter 'me/absent' is neither on the hub nor in the cache (RepositoryNotFoundError",
        "the repository 'org/base' holds no adapter: neither lntune.json",
        "the adapter 'org/base' at 'no-such' is neither on the hub nor in the cache (RevisionNot",
        "'./nothing/here' is neither a directory nor an id on the hub",
        "'../up' is no id on the hub: expected 'owner/name'",
        f"cannot push {path} to 'me/tuned' on the hub (",
        "holds no adapter: expected lntune.json (save_adapter) or adapter_model.safetensors",
    ]
    for line, fragment in zip(lines, expected, strict=True):
        assert line.startswith("AdapterError: ")
        assert fragment in line
    assert "me/tuned" not in hub.branches


def test_a_directory_has_no_revision(tmp_path):
    path, _ = save(tmp_path / "adapter", 0.5)
    with pytest.raises(AdapterError, match="has no revision 'v2': leave revision out"):
        lnt.hub.from_pretrained(path, {}, revision="v2")


def test_a_damaged_adapter_is_not_pushed(tmp_path):
    path, _ = save(tmp_path / "adapter", 0.5)
    (path / "notes.txt").write_text("not the adapter's")
    with pytest.raises(AdapterError, match=r"notes\.txt is unexpected"):
        lnt.hub.push_adapter(path, "me/tuned")
    (path / "notes.txt").unlink()
    (path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="two adapters: move one of them"):
        lnt.hub.push_adapter(path, "me/tuned")


def test_only_the_hub_s_own_files_may_lie_beside_an_adapter(tmp_path):
    path, merged = save(tmp_path / "adapter", 0.5)
    for name in ("README.md", ".gitattributes", ".cache/huggingface/download/x.metadata"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("anything")
    restored = lnt.restore_adapter(path, make_params())
    for found, expected in zip(read(restored), read(merged), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(AdapterError, match=r"did not write.*README\.md"):
        lnt.save_adapter(
            path, tune(make_params(), 1)[0], CONFIG, base=make_params(), overwrite=True
        )
    for name in ("readme.md", "arrays/README.md", ".cache/other"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("anything")
        with pytest.raises(AdapterError, match=f"{name} is unexpected"):
            lnt.load_adapter(path)
        (path / name).unlink()


def test_the_page_and_the_example(tmp_path, hub):
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / "hub.md").read_text(), re.DOTALL)
    start = (
        "params, config = make_params(), lnt.LNTuningConfig(modules_to_save=['classifier'])\n"
        "halves = lnt.partition_params(params, config)\n"
        "trainable = {path: leaf + 0.5 for path, leaf in halves.trainable.items()}\n"
    )
    (tuned,) = run(start + "".join(blocks) + "print(read(tuned))\n", tmp_path, hub.endpoint)
    assert_same(tuned, tune(make_params(), 0.5)[1])
    example = ROOT / "examples/hub_adapter.py"
    pushed, restored = run_python(
        [str(example), "me/example"], tmp_path, make_env(tmp_path, hub.endpoint)
    )
    assert pushed == f"pushed: me/example at {hub.branches['me/example']['main'][:8]}"
    assert restored == "fetched and restored onto a fresh base: identical True"
