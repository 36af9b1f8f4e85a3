"""Patterns, defaults, and what is said when they select the wrong thing."""

import warnings

import pytest

import lntune_jax as lnt
from lntune_jax.errors import ConfigError, PatternError, SelectionError, UnmatchedPatternWarning
from lntune_jax.selection.architectures import DEFAULT_TARGETS, PEFT_TARGETS
from tests.support.trees import dense, encoder_decoder, llama, norm, shape


def select(tree, norms=None, **fields):
    return set(lnt.partition_params(tree, lnt.LNTuningConfig(**fields), norms=norms)[0])


def test_llama_with_the_default():
    tree = llama(8, 2, 16, 32, 4)
    expected = {
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.norm.weight",
    }
    assert select(tree, model_type="llama") == expected
    assert select(tree) == expected
    assert select(tree, model_type="qwen2") == {p for p in expected if "post" in p}


def test_peft_example_regular_expression_in_a_list_and_a_saved_module():
    chosen = select(
        encoder_decoder(), target_modules=[".*decoder.*"], modules_to_save=["classifier"]
    )
    blocks = [f"decoder.layer.{i}.{m}.layer_norm" for i in "01" for m in ("attention", "output")]
    norms = {f"{block}.{leaf}" for block in blocks for leaf in ("scale", "bias")}
    assert chosen == norms | {"classifier.kernel", "classifier.bias"}


def test_peft_example_with_an_exclusion():
    chosen = select(
        encoder_decoder(), target_modules=[".*layer_norm.*"], exclude_modules=[".*embeddings.*"]
    )
    assert len(chosen) == 12
    assert not any("embeddings" in path for path in chosen)


def test_a_string_matches_the_whole_module_path_or_leaf_path():
    tree = {"h": {"0": {"ln_1": norm(), "ln_2": norm()}}}
    assert select(tree, target_modules=r"h\.0\.ln_1") == {"h.0.ln_1.scale", "h.0.ln_1.bias"}
    assert select(tree, target_modules=r".*\.scale") == {"h.0.ln_1.scale", "h.0.ln_2.scale"}
    assert select(tree, target_modules="h/[0-9]+/ln_2") == {"h.0.ln_2.scale", "h.0.ln_2.bias"}
    with pytest.warns(UnmatchedPatternWarning), pytest.raises(SelectionError):
        select(tree, target_modules="ln_1")  # re.fullmatch, not re.search


def test_a_container_stands_for_the_norms_below_it():
    chosen = select(encoder_decoder(), target_modules=["encoder"])
    assert len(chosen) == 4
    assert all(path.startswith("encoder.") for path in chosen)


def test_a_literal_entry_is_not_read_as_an_expression():
    tree = {"a.norm": norm(), "axnorm": norm()}
    assert select(tree, target_modules=["a.norm"]) == {"a.norm.scale", "a.norm.bias"}


def test_saved_modules_come_before_targets_and_after_exclusions():
    tree = {"head": {"norm": norm(), "out": dense()}, "norm": norm()}
    everything = {"head.norm.scale", "head.norm.bias", "head.out.kernel", "head.out.bias"}
    top = {"norm.scale", "norm.bias"}
    assert select(tree, modules_to_save="head", target_modules=["norm"]) == everything | top
    chosen = select(tree, modules_to_save=["head"], exclude_modules=["head.out"])
    assert chosen == {"head.norm.scale", "head.norm.bias"} | top


def test_a_saved_entry_is_whole_segments():
    tree = {
        "classifier": dense(),
        "classifier2": dense(),
        "a": {"classifier": dense()},
        "ln": norm(),
    }
    chosen = select(tree, modules_to_save=["classifier"]) - {"ln.scale", "ln.bias"}
    assert {path.rpartition(".")[0] for path in chosen} == {"classifier", "a.classifier"}
    by_expression = select(tree, modules_to_save=["classifier[0-9]"])
    assert {"classifier2.kernel", "classifier2.bias"} < by_expression


def test_a_saved_module_keeps_its_integers_and_statistics_frozen():
    head = dense() | {"table": shape(4, dtype="int32")}
    tree = {
        "ln": norm(),
        "head": {"out": head, "bn": {"weight": shape(4), "running_mean": shape(4)}},
    }
    chosen = select(tree, modules_to_save=["head"])
    assert "head.out.kernel" in chosen
    assert "head.bn.weight" in chosen
    assert not chosen & {"head.out.table", "head.bn.running_mean"}


def test_a_saved_leaf_without_a_module():
    tree = {"cls_token": shape(1, 1, 8), "ln": norm()}
    assert "cls_token" in select(tree, modules_to_save=["cls_token"])
    tree = {"ln": norm(), "fc": dense()}
    with pytest.warns(UnmatchedPatternWarning, match="modules_to_save 'bias'"):
        assert select(tree, modules_to_save=["bias"]) == {"ln.scale", "ln.bias"}


def test_llava_saves_the_three_modules_that_are_no_norms():
    tree = llama(8, 1, 16, 32, 4) | {"multi_modal_projector.linear_1.weight": shape(8, 8)}
    chosen = select(tree, model_type="llava")
    assert {
        "multi_modal_projector.linear_1.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
    } < chosen
    assert "model.layers.0.mlp.up_proj.weight" not in chosen
    assert "lm_head.weight" not in select(tree, model_type="llava", modules_to_save=[])


def test_collections_other_than_params_never_train():
    tree = {
        "params": {"norm": norm()},
        "cache": {"norm2": norm()},
        "batch_stats": {"bn": {"mean": shape(4)}},
    }
    assert select(tree, modules_to_save=["norm"]) == {"norm.scale", "norm.bias"}
    # Without `params` beside it, a module may be called `cache`.
    both = {"norm.scale", "norm.bias"}
    assert select({"norm": norm(), "cache": {"norm": norm()}}) == both | {
        f"cache.{p}" for p in both
    }


def test_norms_given_by_the_caller_are_the_norms():
    tree = {"alpha": norm(), "norm": norm(), "dense": dense()}
    assert select(tree, norms=["alpha"]) == {"alpha.scale", "alpha.bias"}


def test_defaults_of_all_17_architectures_of_peft_are_known():
    assert len(PEFT_TARGETS) == 17
    for name in [
        "bert",
        "roberta",
        "distilbert",
        "electra",
        "deberta-v2",
        "modernbert",
        "vit",
        "clip",
        "opt",
        "gpt_neox",
        "phi3",
        "qwen2_moe",
        "qwen3_moe",
        "mixtral",
        "gemma3",
        "olmo2",
        "granite",
        "smollm3",
        "whisper",
    ]:
        assert DEFAULT_TARGETS[name]


class TestErrors:
    def test_an_unknown_model_type_lists_the_known_ones(self):
        with pytest.raises(SelectionError, match=r"'nonsense' has no default targets.*llama"):
            select({"ln": norm()}, model_type="nonsense")

    def test_a_target_without_a_norm_points_to_modules_to_save(self):
        with pytest.raises(SelectionError, match=r"'classifier'.*modules_to_save.*norms of"):
            select(encoder_decoder(), target_modules=["classifier", "layer_norm"])

    def test_a_batch_norm_is_no_target(self):
        tree = {"BatchNorm_0": norm(), "LayerNorm_0": norm()}
        with pytest.raises(SelectionError, match="no LayerNorm or RMSNorm leaf"):
            select(tree, target_modules=["BatchNorm_0"])

    def test_nothing_matched_names_the_norms_there_are(self):
        with (
            pytest.warns(UnmatchedPatternWarning, match=r"'ln_7'.*nearest.*'h\.0\.ln_1'"),
            pytest.raises(SelectionError, match=r"nothing trains.*'h\.0\.ln_1\.scale'"),
        ):
            select({"h.0.ln_1": norm(), "h.0.mlp": dense()}, target_modules=["ln_7"])

    def test_everything_excluded(self):
        with pytest.raises(SelectionError, match=r"nothing trains.*exclude_modules='\.\*'"):
            select({"ln": norm()}, exclude_modules=".*")

    def test_defaults_that_match_nothing(self):
        with pytest.raises(SelectionError, match="whose targets are 'ln_1', 'ln_2', 'ln_f'"):
            select({"norm": norm()}, model_type="gpt2")

    def test_a_saved_module_that_cannot_train(self):
        tree = {"ln": norm(), "head": {"table": shape(4, 4, dtype="int8")}}
        with pytest.raises(SelectionError, match=r"'head\.table' is int8"):
            select(tree, modules_to_save=["head"])
        tree = {"ln": norm(), "head": dense()}
        with pytest.raises(SelectionError, match="exclude_modules takes it out"):
            select(tree, modules_to_save=["head"], exclude_modules=["head"])

    def test_a_config_that_is_none(self):
        for function in (lnt.partition_params, lnt.label_params, lnt.report_params):
            with pytest.raises(
                ConfigError, match=r"config must be an LNTuningConfig or .* not dict"
            ):
                function({"ln": norm()}, {})

    def test_an_empty_tree(self):
        with pytest.raises(SelectionError, match="no leaves"):
            select({})

    def test_a_pattern_that_is_no_expression(self):
        with pytest.raises(PatternError, match="position 2"):
            lnt.LNTuningConfig(target_modules="ln(")
        with pytest.raises(PatternError, match=r"'ln\('"):
            select({"ln": norm()}, target_modules=["ln("])


class TestWarnings:
    def test_an_unmatched_entry_among_others(self):
        with pytest.warns(UnmatchedPatternWarning, match="target_modules 'missing'"):
            select({"ln": norm()}, target_modules=["ln", "missing"])

    def test_an_unmatched_exclusion_and_saved_module(self):
        with pytest.warns(UnmatchedPatternWarning, match="exclude_modules 'missing'"):
            select({"ln": norm()}, exclude_modules=["missing"])
        with pytest.warns(UnmatchedPatternWarning, match="modules_to_save 'missing'"):
            select({"ln": norm()}, modules_to_save=["missing"])

    def test_an_excluded_container_does_not_exclude_what_lies_below(self):
        with pytest.warns(
            UnmatchedPatternWarning, match=r"as in PEFT.*encoder\\\.\.\*' to exclude"
        ):
            chosen = select(encoder_decoder(), exclude_modules=["encoder"])
        assert any(path.startswith("encoder.") for path in chosen)

    def test_the_warning_points_to_the_caller(self):
        for function in (lnt.partition_params, lnt.label_params, lnt.report_params):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                function({"ln": norm()}, lnt.LNTuningConfig(exclude_modules=["missing"]))
            assert caught[0].filename == __file__
