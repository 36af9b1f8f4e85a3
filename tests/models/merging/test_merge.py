"""Merged checkpoints without PyTorch: what is written, what is kept, and what is refused."""

import json
import shutil
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import lntune_jax as lnt
from lntune_jax.errors import AdapterError, ModelError
from lntune_jax.models import from_pretrained, merge_checkpoint
from lntune_jax.models.merging import merge as files
from tests.support.checkpoints import REFERENCE, rewritten
from tests.support.merging import TOKENS, is_norm, load_all, refuse, tune


@pytest.mark.parametrize(
    ("name", "task", "saved"),
    [
        ("bert_seq_cls", "SEQ_CLS", ("classifier",)),
        ("bert_seq_cls_sharded", "SEQ_CLS", ("classifier",)),
        ("roberta_seq_cls", "SEQ_CLS", ("classifier",)),
        ("bert", "SEQ_CLS", ("classifier",)),
        ("roberta", "SEQ_CLS", ("classifier",)),
        ("bert_masked_lm", "SEQ_CLS", ("classifier", "pooler")),
        ("bert_masked_lm", "TOKEN_CLS", ("classifier",)),
        ("bert_masked_lm_untied", "MASKED_LM", ()),
        ("roberta_masked_lm", "MASKED_LM", ("lm_head",)),
    ],
)
def test_the_logits_of_the_adapter_bit_for_bit(tmp_path, name, task, saved):
    model, params = tune(name, tmp_path / "adapter", task, saved)
    merged = merge_checkpoint(REFERENCE / name, tmp_path / "adapter", tmp_path / "merged")
    again = from_pretrained(merged.path, task=task)
    assert not again.fresh
    assert merged.compared > 0
    expected = model.apply(params, TOKENS).logits
    np.testing.assert_array_equal(again.apply(again.params, TOKENS).logits, expected)


@pytest.mark.parametrize(
    ("name", "task", "saved"),
    [("olmo2", "CAUSAL_LM", ()), ("phi3", "CAUSAL_LM", ()), ("phi3", "SEQ_CLS", ("score",))],
)
def test_a_decoder_s_logits_bit_for_bit(tmp_path, name, task, saved):
    base = shutil.copytree(REFERENCE / "decoders" / name, tmp_path / "base")
    file = base / "model.safetensors"
    # In bfloat16 the values of the adapter would be rounded.
    save_file({key: np.float32(value) for key, value in load_file(file).items()}, file)
    model, params = tune(name, tmp_path / "adapter", task, saved, base=base)
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    again = from_pretrained(merged.path, task=task)
    assert not again.fresh
    expected = model.apply(params, TOKENS).logits
    np.testing.assert_array_equal(again.apply(again.params, TOKENS).logits, expected)


@pytest.mark.parametrize("name", ["bert_seq_cls", "bert_seq_cls_sharded"])
def test_all_else_is_the_base_s_bit_for_bit(tmp_path, name):
    base = shutil.copytree(REFERENCE / name, tmp_path / "base")
    tune(name, tmp_path / "adapter", saved=())
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    before, after = load_all(base), load_all(merged.path)
    assert list(before) == list(after)
    for key, value in before.items():
        assert after[key].dtype == value.dtype
        assert np.array_equal(after[key], value) == (not is_norm(key)), key
    for file in (*base.glob("*.json"), *base.glob("*.index.json")):
        assert (merged.path / file.name).read_bytes() == file.read_bytes()
    for file in base.glob("*.safetensors"):
        one, other = (safe_open(place / file.name, "numpy") for place in (base, merged.path))
        with one, other:
            assert one.metadata() == other.metadata() == {"format": "pt"}
            assert one.offset_keys() == other.offset_keys()
    assert set(merged.tuned) == {key for key in before if is_norm(key)}


def test_every_other_byte_of_a_file_stays(tmp_path):
    """Whatever wrote the base: its header here has spaces and texts that no library writes."""
    base = shutil.copytree(REFERENCE / "bert_seq_cls", tmp_path / "base")
    file = base / "model.safetensors"
    old = file.read_bytes()
    length = int.from_bytes(old[:8], "little")
    header = json.loads(old[8 : 8 + length]) | {"__metadata__": {"made by": "a person"}}
    text = json.dumps(header, indent=1).encode() + b" " * 13
    file.write_bytes(len(text).to_bytes(8, "little") + text + old[8 + length :])
    tune("bert_seq_cls", tmp_path / "adapter", saved=())
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    expected = bytearray(file.read_bytes())
    tensors = load_all(merged.path)
    for key in merged.tuned:
        start, end = (8 + len(text) + offset for offset in header[key]["data_offsets"])
        assert expected[start:end] != tensors[key].tobytes()
        expected[start:end] = tensors[key].tobytes()
    assert (merged.path / "model.safetensors").read_bytes() == expected


def test_an_adapter_that_changed_nothing_gives_the_same_files(tmp_path):
    tune("bert_seq_cls_sharded", tmp_path / "adapter", scale=0.0)
    base = REFERENCE / "bert_seq_cls_sharded"
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    for name in merged.files:
        assert (merged.path / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize(("name", "dtype"), [("bert_bfloat16", "bfloat16"), ("bert_float16", "f2")])
def test_the_base_s_type_is_kept_and_values_are_rounded_once(tmp_path, name, dtype):
    tune(name, tmp_path / "adapter")
    merged = merge_checkpoint(REFERENCE / name, tmp_path / "adapter", tmp_path / "merged")
    trained = lnt.load_adapter(tmp_path / "adapter").trainable
    tensors = load_all(merged.path)
    assert {value.dtype for value in tensors.values()} == {jnp.dtype(dtype)}
    found = tensors["bert.embeddings.LayerNorm.weight"]
    expected = trained["bert.embeddings.LayerNorm.scale"].astype(jnp.dtype(dtype))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        tensors["classifier.weight"], trained["classifier.kernel"].T.astype(jnp.dtype(dtype))
    )


def test_a_new_head_gets_the_prefix_the_class_and_the_index(tmp_path):
    base = shutil.copytree(REFERENCE / "bert_seq_cls_sharded", tmp_path / "base")
    for file in base.glob("*.safetensors"):  # bare, in two files
        tensors = load_file(file)
        bare = {k.removeprefix("bert."): v for k, v in tensors.items() if "classifier" not in k}
        save_file(bare, file, metadata={"format": "pt"})
    listing = json.loads((base / "model.safetensors.index.json").read_text())
    places = listing["weight_map"].items()
    bare = {k.removeprefix("bert."): f for k, f in places if "classifier" not in k}
    listing["weight_map"] = bare
    (base / "model.safetensors.index.json").write_text(json.dumps(listing))
    fields = json.loads((base / "config.json").read_text()) | {"architectures": ["BertModel"]}
    del fields["id2label"], fields["label2id"]
    (base / "config.json").write_text(json.dumps(fields))
    model, params = tune(None, tmp_path / "adapter", base=base, num_labels=2)
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged", labels=("no", "yes"))
    assert merged.added == ("classifier.bias", "classifier.weight")
    assert merged.architecture == "BertForSequenceClassification"
    fields = json.loads((merged.path / "config.json").read_text())
    assert fields["id2label"] == {"0": "no", "1": "yes"}
    assert fields["label2id"] == {"no": 0, "yes": 1}
    tensors = load_all(merged.path)
    listing = json.loads((merged.path / "model.safetensors.index.json").read_text())
    assert listing["weight_map"].keys() == tensors.keys()
    assert listing["weight_map"]["classifier.weight"] == merged.files[-1]
    assert listing["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    again = from_pretrained(merged.path, task="SEQ_CLS")
    expected = model.apply(params, TOKENS).logits
    np.testing.assert_array_equal(again.apply(again.params, TOKENS).logits, expected)


def test_norms_only_leaves_the_head_out(tmp_path):
    tune("bert", tmp_path / "adapter")
    merged = merge_checkpoint(
        REFERENCE / "bert", tmp_path / "adapter", tmp_path / "merged", norms_only=True
    )
    assert merged.unused == ("classifier.bias", "classifier.weight")
    assert load_all(merged.path).keys() == load_all(REFERENCE / "bert").keys()
    assert (merged.path / "config.json").read_bytes() == (
        REFERENCE / "bert" / "config.json"
    ).read_bytes()


def test_a_bare_model_s_adapter_in_a_checkpoint_with_a_head(tmp_path):
    tune("bert_seq_cls", tmp_path / "adapter", task=None, saved=())
    merged = merge_checkpoint(REFERENCE / "bert_seq_cls", tmp_path / "adapter", tmp_path / "merged")
    assert "bert.embeddings.LayerNorm.weight" in merged.tuned


@pytest.mark.parametrize("name", ["bert", "bert_seq_cls"])
def test_a_head_without_norms(tmp_path, name):
    """As from training the head on a frozen encoder."""
    model = from_pretrained(REFERENCE / name, task="SEQ_CLS", num_labels=3 if "cls" in name else 2)
    config = lnt.LNTuningConfig(
        task_type="SEQ_CLS", target_modules=[], modules_to_save=["classifier"]
    )
    trainable, frozen = lnt.partition_params(model.params, config)
    assert not any(is_norm(path) for path in trainable)
    moved = {path: value + 1 for path, value in trainable.items()}
    lnt.save_adapter(tmp_path / "adapter", moved, config, base=model.params)
    merged = merge_checkpoint(REFERENCE / name, tmp_path / "adapter", tmp_path / "merged")
    assert "bert.embeddings.word_embeddings.weight" in load_all(merged.path)
    again = from_pretrained(merged.path, task="SEQ_CLS")
    expected = model.apply(lnt.merge_params(moved, frozen), TOKENS).logits
    np.testing.assert_array_equal(again.apply(again.params, TOKENS).logits, expected)
    target = tmp_path / "x"
    refuse(
        AdapterError,
        "holds no norms",
        REFERENCE / name,
        tmp_path / "adapter",
        target,
        norms_only=True,
    )


def test_a_new_head_in_a_file_of_several_types(tmp_path):
    """Each tensor begins at a multiple of its type's size, or readers would have to copy it."""

    def widen(tensors):
        odd = {"pooler.extra": np.ones(3, np.uint8), "embeddings.position_ids": np.arange(5)}
        return {"embeddings.half": np.ones(3, np.float16)} | tensors | odd

    base = rewritten(tmp_path / "base", "bert", widen)
    with pytest.warns(UserWarning, match="tensors of modules that the model does not have"):
        tune(None, tmp_path / "adapter", base=base)
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    assert set(merged.left_out) == {
        "embeddings.half",
        "embeddings.position_ids",
        "pooler.extra",
    }
    # For transformers' classes of other architectures they stay.
    fields = json.loads((base / "config.json").read_text()) | {"model_type": "electra"}
    (base / "config.json").write_text(json.dumps(fields))
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "other")
    tensors = load_all(merged.path)
    assert "bert.embeddings.half" in tensors
    save_file(tensors, tmp_path / "expected")  # as the changed base was written
    written = (merged.path / "model.safetensors").read_bytes()
    assert written == (tmp_path / "expected").read_bytes()


def test_a_new_head_over_tensors_that_no_class_reads(tmp_path):
    extra = {"sentence.gate.weight": np.ones(3, np.float32)}
    base = rewritten(tmp_path / "base", "bert", lambda tensors: tensors | extra)
    with pytest.warns(UserWarning, match=r"sentence\.gate\.weight"):
        tune(None, tmp_path / "adapter", base=base)
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    assert merged.left_out == ("sentence.gate.weight",)
    assert merged.added == ("classifier.bias", "classifier.weight")
    assert not from_pretrained(merged.path, "SEQ_CLS").fresh


def test_a_base_of_links_as_in_the_hub_s_cache(tmp_path):
    (tmp_path / "snapshot").mkdir()
    for file in (REFERENCE / "bert_seq_cls_sharded").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    tune("bert_seq_cls_sharded", tmp_path / "adapter")
    merged = merge_checkpoint(tmp_path / "snapshot", tmp_path / "adapter", tmp_path / "merged")
    assert not any(path.is_symlink() for path in merged.path.iterdir())
    assert not from_pretrained(merged.path, task="SEQ_CLS").fresh


def test_a_base_without_tensors(tmp_path):
    base = shutil.copytree(REFERENCE / "bert", tmp_path / "base")
    save_file({}, base / "model.safetensors")
    tune("bert", tmp_path / "adapter")
    refuse(ModelError, "hold no tensors", base, tmp_path / "adapter", tmp_path / "merged")


def test_other_files_are_copied_and_weights_are_not(tmp_path):
    base = shutil.copytree(REFERENCE / "bert_seq_cls", tmp_path / "base")
    (base / "1_Pooling").mkdir()
    (base / "onnx").mkdir()
    kept = ["generation_config.json", "tokenizer.json", "README.md", "1_Pooling/config.json"]
    left = [
        "adapter_config.json",
        "pytorch_model.bin",
        "onnx/model.onnx",
        "other.safetensors",
        ".gitattributes",
    ]
    for name in (*kept, *left):
        (base / name).write_text(name)
    tune("bert_seq_cls", tmp_path / "adapter")
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    assert set(merged.skipped) == {*left, "reference.npz"}
    assert all((merged.path / name).read_text() == name for name in kept)
    assert not any((merged.path / name).exists() for name in left)


@pytest.mark.parametrize("head", [False, True])
def test_memory_stays_below_one_shard(tmp_path, head):
    """16 files of 4 MiB; a merge that held a file, or the model, would take 4 or 64 MiB.

    With a new head the last file is not copied, but written anew.
    """
    shard, base = 4 * 2**20, tmp_path / "base"
    base.mkdir()
    names = [f"model-{number:05}-of-00016.safetensors" for number in range(1, 17)]
    params, places = {}, {}
    for number, file in enumerate(names):
        tensors = {
            f"model.layers.{number}.mlp.{i}.weight": np.ones((1, 2**18), "f") for i in "abcd"
        }
        tensors[f"model.layers.{number}.input_layernorm.weight"] = np.ones(8, "f")
        save_file(tensors, base / file, metadata={"format": "pt"})
        params |= tensors
        places |= dict.fromkeys(tensors, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (base / "config.json").write_text('{"model_type": "llama"}')
    params |= {"score.weight": np.ones((2, 8), "f")} if head else {}
    saved = {"modules_to_save": ["score"], "task_type": "SEQ_CLS"} if head else {}
    config = lnt.LNTuningConfig(**saved)
    trainable, _ = lnt.partition_params(params, config)
    lnt.save_adapter(tmp_path / "adapter", trainable, config, base=params)
    del params, tensors
    # Once to import what is imported late.
    merge_checkpoint(base, tmp_path / "adapter", tmp_path / "first")
    tracemalloc.start()
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "second")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < shard
    assert merged.added == (("score.weight",) if head else ())
    assert sum(f.stat().st_size for f in (tmp_path / "second").iterdir()) > 16 * shard


def test_a_crash_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    tune("bert_seq_cls_sharded", tmp_path / "adapter")
    base, target = REFERENCE / "bert_seq_cls_sharded", tmp_path / "out" / "merged"
    written = []

    def fail(path, *_):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"half")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_file", fail)
        with pytest.raises(AdapterError, match="No space left on device"):
            merge_checkpoint(base, tmp_path / "adapter", target)
    assert not (tmp_path / "out").exists()
    merge_checkpoint(base, tmp_path / "adapter", target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    written.clear()
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_file", fail)
        with pytest.raises(AdapterError, match="No space left on device"):
            merge_checkpoint(base, tmp_path / "adapter", target, overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]


def test_what_may_be_replaced(tmp_path):
    tune("bert_seq_cls", tmp_path / "adapter")
    base, target = REFERENCE / "bert_seq_cls", tmp_path / "merged"
    merge_checkpoint(base, tmp_path / "adapter", target)
    with pytest.raises(AdapterError, match="merged exists: pass another path, or overwrite"):
        merge_checkpoint(base, tmp_path / "adapter", target)
    merge_checkpoint(base, tmp_path / "adapter", target, overwrite=True)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match=r"did not write \('notes.txt'\)"):
        merge_checkpoint(base, tmp_path / "adapter", target, overwrite=True)
    other = shutil.copytree(base, tmp_path / "other")
    with pytest.raises(AdapterError, match="holds no merged checkpoint"):
        merge_checkpoint(base, tmp_path / "adapter", other, overwrite=True)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(AdapterError, match="is a file"):
        merge_checkpoint(base, tmp_path / "adapter", file, overwrite=True)
    for inside in (other, other / "x", tmp_path, tmp_path / "adapter" / "x"):
        with pytest.raises(AdapterError, match="must not lie in one another"):
            merge_checkpoint(other, tmp_path / "adapter", inside, overwrite=True)
