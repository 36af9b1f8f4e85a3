"""Entries that PEFT would nest, and embeddings that may be tied, with PEFT itself."""

import pytest
from safetensors.numpy import load_file

import lntune_jax as lnt
from lntune_jax.errors import AdapterError
from lntune_jax.integrations.torchax import from_torch
from tests.support.parity.exchange import (
    build,
    check_export,
    check_import,
    move,
    move_leaves,
    save,
    wrap,
)
from tests.support.parity.small_models import BERT, DECODER, make_bert_tokens

TIED = "Model has `tie_word_embeddings=True`"  # PEFT's warning of the same
ROBERTA = BERT | {"max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("name", "settings", "modules"),
    [
        ("BertForSequenceClassification", BERT, ["embeddings"]),  # word_embeddings ends so too
        ("BertForSequenceClassification", BERT, ["layer"]),  # a ModuleList
        ("RobertaForSequenceClassification", ROBERTA, ["classifier.out_proj"]),
        ("RobertaForSequenceClassification", ROBERTA, ["out_proj"]),
    ],
)
def test_peft_loads_entries_that_it_would_nest_by_itself(name, settings, modules, tmp_path):
    module = build(name, settings)
    model = from_torch(module)
    config = lnt.LNTuningConfig(
        task_type="SEQ_CLS", modules_to_save=modules, exclude_modules=["embeddings.LayerNorm"]
    )
    if modules != ["embeddings"]:
        config = config.replace(exclude_modules=None)
    if modules == ["layer"]:  # all norms but this one lie in the layers
        config = config.replace(target_modules=["embeddings.LayerNorm"])
    halves = lnt.partition_params(model.params, config, norms=model.norms)
    moved = move_leaves(halves.trainable)
    directory = lnt.export_peft(tmp_path / "adapter", moved, config, base=model.params)
    params = lnt.merge_params(moved, halves.frozen)
    check_export(module, directory, model, params, make_bert_tokens())


def make_llama(tied):
    module = build("LlamaForCausalLM", DECODER | {"tie_word_embeddings": tied})
    fields = {"target_modules": ["norm"], "modules_to_save": ["embed_tokens"]}
    return module, move(wrap(module, *([TIED] if tied else []), **fields))


def test_an_embedding_crosses_where_the_output_is_its_own(tmp_path):
    module, wrapped = make_llama(tied=False)
    model, tokens = from_torch(module), {"input_ids": make_bert_tokens()["input_ids"]}
    check_import(wrapped, save(wrapped, tmp_path / "peft"), model, tokens)
    adapter = lnt.load_peft(tmp_path / "peft", model.params)
    ours = lnt.export_peft(tmp_path / "ours", adapter.trainable, adapter.config, base=model.params)
    params = lnt.import_peft(ours, model.params)
    check_export(module, ours, model, params, tokens)
    files = [load_file(path / "adapter_model.safetensors") for path in (tmp_path / "peft", ours)]
    assert files[0].keys() == files[1].keys()


def test_an_embedding_that_the_output_shares_is_refused_both_ways(tmp_path):
    module, wrapped = make_llama(tied=True)
    model, path = from_torch(module), save(wrapped, tmp_path / "peft", TIED)
    with pytest.raises(AdapterError, match="no output weight of its own"):
        lnt.import_peft(path, model.params)
    config = lnt.LNTuningConfig(target_modules=["norm"], modules_to_save=["embed_tokens"])
    trainable, frozen = lnt.partition_params(model.params, config)
    with pytest.raises(AdapterError, match="no output weight of its own"):
        lnt.export_peft(tmp_path / "ours", trainable, config, base=frozen)
