"""Task heads: PEFT saves them by rules of its own, whether they trained or not."""

import peft
import pytest
from safetensors.numpy import load_file, save_file

import lntune_jax as lnt
from lntune_jax.errors import AdapterError
from lntune_jax.integrations.torchax import from_torch
from tests.support.parity.exchange import (
    WEIGHTS,
    build,
    check_export,
    check_import,
    expect_usual_warnings,
    move,
    move_leaves,
    save,
    wrap,
)
from tests.support.parity.small_models import (
    BERT,
    CLASSES,
    DECODER,
    GPT2,
    LAYERS,
    VOCABULARY,
    WIDTH,
    make_bert_tokens,
)

DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": WIDTH,
    "n_layers": LAYERS,
    "n_heads": 4,
    "hidden_dim": 64,
    "num_labels": CLASSES,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "qa_dropout": 0.0,
}

# Model class: settings, task, targets, our name for the head.
HEADS = {
    "BertForSequenceClassification": (BERT, "SEQ_CLS", ["LayerNorm"], ["classifier"]),
    "BertForTokenClassification": (BERT, "TOKEN_CLS", ["LayerNorm"], ["classifier"]),
    "BertForQuestionAnswering": (
        BERT | {"num_labels": 2},
        "QUESTION_ANS",
        ["LayerNorm"],
        ["qa_outputs"],
    ),
    "RobertaForSequenceClassification": (
        BERT | {"max_position_embeddings": 64},
        "SEQ_CLS",
        ["LayerNorm"],
        ["classifier"],
    ),
    "DistilBertForSequenceClassification": (
        DISTILBERT,
        "SEQ_CLS",
        ["sa_layer_norm", "output_layer_norm", "LayerNorm"],
        ["classifier"],  # by the end of its name, PEFT saves `pre_classifier` too
    ),
    "LlamaForSequenceClassification": (
        DECODER | {"num_labels": CLASSES},
        "SEQ_CLS",
        None,
        ["score"],
    ),
    "GPT2ForTokenClassification": (
        GPT2 | {"num_labels": CLASSES, "classifier_dropout": 0.0},
        "TOKEN_CLS",
        None,
        ["classifier"],
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_of_peft_gives_its_logits_here(name, tmp_path):
    settings, task, targets, _ = HEADS[name]
    module = build(name, settings)
    wrapped = move(wrap(module, task_type=task, target_modules=targets))
    check_import(wrapped, save(wrapped, tmp_path), from_torch(module), make_bert_tokens())


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "not trained"])
@pytest.mark.parametrize("name", HEADS)
def test_peft_gives_our_logits_with_a_head(name, trained, tmp_path):
    settings, task, targets, heads = HEADS[name]
    module = build(name, settings)
    model = from_torch(module)
    config = lnt.LNTuningConfig(
        task_type=task,
        target_modules=targets,
        model_type=None if targets else module.config.model_type,
        modules_to_save=heads if trained else None,
    )
    halves = lnt.partition_params(model.params, config, norms=model.norms)
    moved = move_leaves(halves.trainable)
    directory = lnt.export_peft(tmp_path / "adapter", moved, config, base=model.params)
    params = lnt.merge_params(moved, halves.frozen)
    check_export(module, directory, model, params, make_bert_tokens())


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_did_not_train_is_asked_for(name, tmp_path):
    settings, task, _, _ = HEADS[name]
    model = from_torch(build(name, settings))
    config = lnt.LNTuningConfig(task_type=task)
    trainable = lnt.partition_params(model.params, config, norms=model.norms).trainable
    with pytest.raises(AdapterError, match="pass base=params"):
        lnt.export_peft(tmp_path / "adapter", trainable, config)


@pytest.mark.parametrize("name", HEADS)
def test_peft_loads_no_adapter_without_the_head(name, tmp_path):
    """Why `export_peft` asks for it."""
    settings, task, targets, heads = HEADS[name]
    module = build(name, settings)
    directory = save(wrap(module, task_type=task, target_modules=targets), tmp_path)
    tensors = load_file(directory / WEIGHTS)
    norms = {key: tensor for key, tensor in tensors.items() if ".ln_tuning_layers." in key}
    assert len(norms) < len(tensors)
    save_file(norms, directory / WEIGHTS, metadata={"format": "pt"})
    with expect_usual_warnings(), pytest.raises(KeyError, match="|".join(heads)):
        peft.PeftModel.from_pretrained(module, directory)


def test_without_a_task_no_head_is_needed(tmp_path):
    module = build("BertForSequenceClassification", BERT)
    model, config = from_torch(module), lnt.LNTuningConfig(model_type="bert")
    halves = lnt.partition_params(model.params, config, norms=model.norms)
    moved = move_leaves(halves.trainable)
    directory = lnt.export_peft(tmp_path / "adapter", moved, config)
    params = lnt.merge_params(moved, halves.frozen)
    check_export(module, directory, model, params, make_bert_tokens())
