"""Merged checkpoints in PyTorch: transformers loads them whole and computes what PEFT computes."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import transformers
from peft import LNTuningConfig, PeftModel, get_peft_model

import lntune_jax as lnt
from lntune_jax.models.loading.safetensors import read_weights
from lntune_jax.models.merging.names import match_names
from tests.support.parity import small_models
from tests.support.parity.architectures import MODELS, make_model
from tests.support.paths import REFERENCE

# What PEFT says about norms, and calls in transformers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

AUTO = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "MASKED_LM": transformers.AutoModelForMaskedLM,
    None: transformers.AutoModel,
}
NORMS = {
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gemma2": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
    "olmo2": ["post_attention_layernorm", "post_feedforward_layernorm", "q_norm", "norm"],
    "phi3": ["input_layernorm", "post_attention_layernorm", "norm"],
    "bert": ["LayerNorm"],
    "t5": ["layer_norm", "final_layer_norm"],
    "vit": ["layernorm_before", "layernorm_after", "layernorm"],
}


def tune(model, config, seed=1):
    """The PEFT model with every trained value moved."""
    tuned = get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return tuned.eval()


def logits(model, batch):
    """The logits, or the last hidden state of a bare model."""
    batch = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        found = model(**batch)
    return found.logits if "logits" in found else found.last_hidden_state


def load_whole(auto, directory, **options):
    """The model, of which no key is missing, unexpected or of another shape."""
    model, report = auto.from_pretrained(directory, output_loading_info=True, **options)
    assert not any(report[fault] for fault in report), report
    return model.eval()


def save(model, directory):
    model.save_pretrained(directory, max_shard_size="20KB")
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NORMS)
def test_an_adapter_of_peft(tmp_path, name, dtype):
    made = small_models.make(name)
    base = save(made.to(dtype), tmp_path / "base")
    model = type(made).from_pretrained(base, dtype=dtype)
    task = {"bert": "SEQ_CLS"}.get(name)
    tuned = tune(model, LNTuningConfig(target_modules=NORMS[name], task_type=task))
    tuned.save_pretrained(tmp_path / "adapter")
    merged = lnt.models.merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    assert len(merged.files) > 2
    batch = small_models.as_tensors(small_models.make_batch(name))
    if name == "vit":  # whose modules transformers 5 calls otherwise than checkpoints do
        batch["pixel_values"] = batch["pixel_values"].to(dtype)
    if name == "t5":
        batch["decoder_input_ids"] = batch["labels"]
    again = load_whole(type(made), merged.path, dtype=dtype)
    expected = tuned.merge_and_unload()
    assert torch.equal(logits(again, batch), logits(expected, batch))
    values, found = expected.state_dict(), again.state_dict()
    assert len(values.keys() & found.keys()) > len(found) // 2  # PEFT keeps its wrapped head
    assert all(torch.equal(found[key], values[key]) for key in values.keys() & found.keys())


@pytest.mark.parametrize("name", MODELS)
def test_every_known_architecture_s_norms_are_in_its_checkpoint(tmp_path, name):
    """By the names that the model has for them, and transformers' own files."""
    model = make_model(name)
    if any(parameter.is_meta for parameter in model.parameters()):
        model = model.to_empty(device="cpu")
    model.save_pretrained(tmp_path)
    base = read_weights(tmp_path)
    norms = [key for key, _ in model.named_parameters() if "norm" in key or ".ln_" in key]
    wanted = {key: (key,) for key in norms}
    names = match_names(base, tmp_path, wanted, model.config.model_type)
    assert names.keys.keys() >= set(norms)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl"])
def test_models_of_images_and_text(tmp_path, name):
    """Their checkpoints have other names than their modules; transformers converts them."""
    model = make_model(name).to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    base = save(model, tmp_path / "base")
    targets = ["input_layernorm", "norm1", "layer_norm1"]
    model = type(model).from_pretrained(base)
    tuned = tune(model, LNTuningConfig(target_modules=targets))
    tuned.save_pretrained(tmp_path / "adapter")
    merged = lnt.models.merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    found = load_whole(type(model), merged.path).state_dict()
    expected = tuned.merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("bare", [True, False])
def test_a_new_classifier_of_peft(tmp_path, name, bare):
    """On the bare encoder, or on a checkpoint with another head."""
    other = {"bert": "BertForMaskedLM", "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}
    kind = {"bert": "BertModel", "llama": "LlamaModel", "gpt2": "GPT2Model"} if bare else other
    model = small_models.make(name)
    torch.manual_seed(0)
    base = save(getattr(transformers, kind[name])(model.config), tmp_path / "base")
    shutil.copy(base / "config.json", tmp_path / "config.json")
    classifier = AUTO["SEQ_CLS"].from_pretrained(base, num_labels=3)
    targets = NORMS[name]
    saved = ["classifier", "pooler"] if name == "bert" else ["score"]
    config = LNTuningConfig(target_modules=targets, task_type="SEQ_CLS", modules_to_save=saved)
    tuned = tune(classifier, config)
    tuned.save_pretrained(tmp_path / "adapter")
    merged = lnt.models.merge_checkpoint(
        base, tmp_path / "adapter", tmp_path / "merged", labels=("low", "middle", "high")
    )
    again = load_whole(AUTO["SEQ_CLS"], merged.path)
    assert type(again).__name__ == merged.architecture
    assert again.config.id2label == {0: "low", 1: "middle", 2: "high"}
    batch = small_models.as_tensors(small_models.make_batch(name))
    assert torch.equal(logits(again, batch), logits(tuned.merge_and_unload(), batch))


@pytest.mark.parametrize("modules", [["lm_head"], ["lm_head", "embed_tokens"]])
def test_tied_weights_that_came_apart(tmp_path, modules):
    model = small_models.make("llama", tie_word_embeddings=True)
    base = save(model, tmp_path / "base")
    config = LNTuningConfig(
        target_modules=NORMS["llama"], task_type="CAUSAL_LM", modules_to_save=modules
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about tied weights
        tuned = tune(model, config)
        tuned.save_pretrained(tmp_path / "adapter")
    merged = lnt.models.merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged")
    assert merged.added == ("lm_head.weight",)
    again = load_whole(AUTO["CAUSAL_LM"], merged.path)
    assert again.config.tie_word_embeddings is False
    batch = small_models.as_tensors(small_models.make_batch("llama"))
    assert torch.equal(logits(again, batch), logits(tuned, batch))


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "SEQ_CLS"),
        ("bert_seq_cls", "SEQ_CLS"),
        ("bert_seq_cls_sharded", "SEQ_CLS"),
        ("roberta", "SEQ_CLS"),
        ("roberta_masked_lm", "SEQ_CLS"),
        ("bert_masked_lm", "TOKEN_CLS"),
        ("bert_masked_lm", "MASKED_LM"),
        ("bert_masked_lm_untied", "MASKED_LM"),
        ("roberta", None),
        ("bert_seq_cls", None),
        ("distilbert_seq_cls", "SEQ_CLS"),
        ("distilbert_masked_lm", "TOKEN_CLS"),
        ("distilbert_masked_lm", "MASKED_LM"),
        ("distilbert_masked_lm_untied", "MASKED_LM"),
        ("distilbert_seq_cls", None),
        ("modernbert_seq_cls", "SEQ_CLS"),
        ("modernbert_masked_lm", "SEQ_CLS"),
        ("modernbert_masked_lm", "TOKEN_CLS"),
        ("modernbert_masked_lm", "MASKED_LM"),
        ("modernbert_masked_lm_untied", "MASKED_LM"),
        ("modernbert_first_token", None),
    ],
)
def test_an_adapter_of_ours(tmp_path, name, task):
    """The logits of the model in JAX, from a checkpoint of the reference tests."""
    tokens = np.arange(8).reshape(2, 4) + 5
    model = lnt.models.from_pretrained(REFERENCE / name, task=task)
    heads = {"MASKED_LM": None, None: None}
    config = lnt.LNTuningConfig(task_type=task, modules_to_save=heads.get(task, "classifier"))
    trainable, _ = lnt.partition_params(model.params, config)
    random = np.random.default_rng(0)
    moved = {k: v + 0.1 * random.normal(size=v.shape).astype("f") for k, v in trainable.items()}
    lnt.save_adapter(tmp_path / "adapter", moved, config, base=model.params)
    found = model.apply(lnt.restore_adapter(tmp_path / "adapter", model.params), tokens)
    merged = lnt.models.merge_checkpoint(
        REFERENCE / name, tmp_path / "adapter", tmp_path / "merged"
    )
    if task is None:
        again = AUTO[None].from_pretrained(merged.path).eval()
        expected = found.last_hidden_state
    else:
        again = load_whole(AUTO[task], merged.path)
        expected = found.logits
    outputs = logits(again, {"input_ids": torch.from_numpy(tokens)})
    np.testing.assert_allclose(outputs.numpy(), np.asarray(expected), atol=2e-5, rtol=1e-5)


def test_names_of_old_checkpoints(tmp_path):
    """Bare, and with gamma and beta, as BERT was first converted."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(REFERENCE / "bert", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(file)
    for new, old in ends.items():
        tensors = {
            key.removesuffix(new) + old if key.endswith(new) else key: value
            for key, value in tensors.items()
        }
    save_file(tensors, file, metadata={"format": "pt"})
    classifier = AUTO["SEQ_CLS"].from_pretrained(REFERENCE / "bert", num_labels=2)
    tuned = tune(classifier, LNTuningConfig(target_modules=["LayerNorm"], task_type="SEQ_CLS"))
    tuned.save_pretrained(tmp_path / "adapter")
    merged = lnt.models.merge_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    batch = {"input_ids": torch.arange(8).reshape(2, 4) + 5}
    again = load_whole(AUTO["SEQ_CLS"], merged.path)
    assert torch.equal(logits(again, batch), logits(tuned.merge_and_unload(), batch))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_there_and_back_on_the_command_line(tmp_path, capsys, name):
    """PEFT to ours and back: PEFT loads it and computes the same, bit for bit."""
    from lntune_jax.cli import main

    model = small_models.make(name)
    base = save(model, tmp_path / "base")
    task = {"bert": "SEQ_CLS"}.get(name)
    tuned = tune(model, LNTuningConfig(target_modules=NORMS[name], task_type=task))
    tuned.save_pretrained(tmp_path / "peft")
    batch = small_models.as_tensors(small_models.make_batch(name))
    expected = logits(tuned, batch)
    words = ["convert", str(tmp_path / "peft"), str(tmp_path / "ours"), "--model", str(base)]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "again")]) == 0
    plain = small_models.make(name)
    back = PeftModel.from_pretrained(plain, tmp_path / "again").eval()
    assert torch.equal(logits(back, batch), expected)
    fields = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LN_TUNING"
