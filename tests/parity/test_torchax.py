"""`lntune_jax.integrations.torchax` against PyTorch itself, on small models of ten families."""

import copy
import pickle
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import torch
import torchax
import transformers

import lntune_jax as lnt
from lntune_jax.errors import FreshWeightsWarning, ModelError, TreeError
from lntune_jax.integrations.torchax import TorchOutput, from_pretrained, from_torch
from tests.support.parity.small_models import (
    BATCH,
    DECODER,
    FAMILIES,
    LENGTH,
    VOCABULARY,
    WIDTH,
    as_tensors,
    make,
    make_batch,
)
from tests.support.small import relax

EXTRA = {"clip": {"return_loss": True}}
CONFIG = lnt.LNTuningConfig()


def get_logits(output):
    return output["logits"] if "logits" in output else output["logits_per_image"]


def check_against_torch(module, batch, **extra):
    """Loss, logits and the gradients of the norms equal torch's."""
    expected = module(**as_tensors(batch), **extra)
    expected.loss.backward()
    model = from_torch(module)
    trainable, frozen = lnt.partition_params(model.params, CONFIG, norms=model.norms)

    def loss_fn(params, batch):
        output = model.apply(params, **batch, **extra)
        return output.loss, output

    step = jax.jit(lnt.value_and_grad(loss_fn, has_aux=True))
    (loss, output), grads = step(trainable, frozen, batch)
    np.testing.assert_allclose(loss, expected.loss.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(
        get_logits(output), get_logits(expected).detach().numpy(), rtol=0, atol=1e-5
    )
    weights = dict(module.named_parameters())
    for name, grad in grads.items():
        wanted = weights[name].grad.numpy()
        assert np.abs(wanted).max() > 1e-5, f"nothing to compare at {name}"
        scale = np.linalg.norm(wanted)
        np.testing.assert_allclose(grad / scale, wanted / scale, rtol=0, atol=1e-5, err_msg=name)
    return model, trainable


def list_norms(module):
    """Leaves of modules whose class says that it normalises, found by other means than ours."""
    return {
        f"{path}.{name}"
        for path, part in module.named_modules()
        if "norm" in type(part).__name__.lower() and not list(part.children())
        for name, parameter in part.named_parameters()
        if parameter.ndim == 1
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_logits_and_norm_gradients_are_torchs(name):
    module = make(name)
    model, trainable = check_against_torch(module, make_batch(name), **EXTRA.get(name, {}))
    assert trainable.keys() == list_norms(module)
    assert {leaf.rpartition(".")[0] for leaf in trainable} == set(model.norms)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_kinds_of_attention_and_tied_weights(attention):
    module = make("llama", tie_word_embeddings=True, attn_implementation=attention)
    model, _ = check_against_torch(module, make_batch("llama"))
    assert "model.embed_tokens.weight" in model.params
    assert "lm_head.weight" not in model.params
    assert sum(leaf.size for leaf in model.params.values()) == module.num_parameters()


def test_experts_are_computed_in_the_way_that_jit_can_compile():
    config = transformers.MixtralConfig(**DECODER, num_local_experts=4)
    module = transformers.MixtralForCausalLM(config).eval()
    chosen = module.config._experts_implementation
    check_against_torch(module, make_batch("llama"))
    assert module.config._experts_implementation == chosen != "batched_mm"


def test_an_operator_that_torchax_lacks_is_named():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.geqrf(x)[0]

    with pytest.raises(ModelError, match=r"torchax cannot run this module: .*geqrf"):
        from_torch(Odd()).apply({}, jnp.eye(3))


def test_untied_weights_are_two_leaves():
    params = from_torch(make("llama")).params
    assert {"model.embed_tokens.weight", "lm_head.weight"} < params.keys()


def test_the_norms_of_the_small_models():
    assert len(from_torch(make("llama")).norms) == 5
    assert "model.layers.0.self_attn.q_norm" in from_torch(make("qwen3")).norms
    assert "vision_model.pre_layrnorm" in from_torch(make("clip")).norms


class RootMeanNorm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))


class OwnRMSNorm(RootMeanNorm):
    pass


class Derived(OwnRMSNorm):
    pass


class AdaptiveLayerNorm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.inner = torch.nn.LayerNorm(4)
        self.gain = torch.nn.Parameter(torch.ones(4))


def test_norms_are_found_by_type():
    parts = {
        "a": torch.nn.LayerNorm(4),
        "b": torch.nn.RMSNorm(4),
        "c": Derived(),
        "d": AdaptiveLayerNorm(),
        "norm": torch.nn.GroupNorm(2, 4),
        "layer_norm": torch.nn.BatchNorm1d(4),
        "plain": torch.nn.LayerNorm(4, elementwise_affine=False),
        "norm_proj": torch.nn.Linear(4, 4),
        "mean": RootMeanNorm(),
    }
    assert from_torch(torch.nn.ModuleDict(parts)).norms == ("a", "b", "c", "d.inner")


def test_parameters_and_buffers_are_apart():
    module = make("bert")
    module.scratch = torch.arange(3.0)  # a plain attribute, in no state dict
    model = from_torch(module)
    assert model.params.keys() == dict(module.named_parameters()).keys()
    assert set(model.buffers) == dict(module.named_buffers()).keys() | {"scratch"}
    assert model.buffers["bert.embeddings.position_ids"].dtype == jnp.int32
    assert from_torch(make("llama")).buffers.keys() >= {"model.rotary_emb.inv_freq"}


def test_values_and_dtypes_are_copied_exactly():
    module = make("llama").to(torch.bfloat16)
    params = from_torch(module).params
    for name, tensor in module.named_parameters():
        assert params[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(params[name].astype("float32"), tensor.detach().float())
    before = np.array(params["model.norm.weight"])
    with torch.no_grad():
        module.model.norm.weight.zero_()
    np.testing.assert_array_equal(params["model.norm.weight"], before)


def test_jit_returns_outputs_without_caches():
    model, batch = from_torch(make("gpt2")), make_batch("gpt2")

    @jax.jit
    def apply(params, batch):
        return model.apply(params, **batch, output_hidden_states=True, use_cache=True)

    output = apply(model.params, batch)
    assert isinstance(output, TorchOutput)
    assert list(output) == ["loss", "logits", "hidden_states"]
    assert output.logits.shape == output["logits"].shape == output[1].shape
    assert output.logits.shape == (BATCH, LENGTH, VOCABULARY)
    assert [state.shape for state in output.hidden_states] == [(BATCH, LENGTH, WIDTH)] * 3
    assert output.attentions is None
    assert "attentions" not in output
    with pytest.raises(AttributeError, match=r"no 'scores'; it returned \['loss', 'logits'"):
        _ = output.scores
    plain = jax.jit(lambda params, b: model.apply(params, **b, return_dict=False, use_cache=True))
    assert len(plain(model.params, batch)) == 2


def test_nested_outputs_and_outputs_as_arguments():
    model, batch = from_torch(make("clip")), make_batch("clip")
    output = jax.jit(lambda params, batch: model.apply(params, **batch))(model.params, batch)
    assert output.text_model_output.last_hidden_state.shape == (BATCH, LENGTH, WIDTH)
    model, batch = from_torch(make("bart")), make_batch("bart")
    whole = jax.jit(lambda params, batch: model.apply(params, **batch))(model.params, batch)
    encoded = TorchOutput({"last_hidden_state": whole.encoder_last_hidden_state})
    del batch["input_ids"]

    @jax.jit
    def decode(params, batch, encoded):
        return model.apply(params, **batch, encoder_outputs=encoded)

    again = decode(model.params, batch, encoded)
    np.testing.assert_allclose(again.logits, whole.logits, atol=1e-6)


def test_shapes_without_computing():
    model, batch = from_torch(make("vit")), make_batch("vit")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    output = jax.eval_shape(lambda params: model.apply(params, **batch), shapes)
    assert output.logits.shape == (BATCH, 3)


def test_dropout_follows_the_key():
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    model, batch = from_torch(make("bert", **rates)), make_batch("bert")
    del batch["labels"]
    traces = []

    @jax.jit
    def apply(params, key):
        traces.append(1)
        return model.apply(params, **batch, key=key).logits

    logits = [np.array(apply(model.params, jax.random.key(seed))) for seed in (0, 0, 1, 2, 3)]
    assert len(traces) == 1
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2], atol=1e-3)
    evaluate = jax.jit(lambda params, key: model.apply(params, **batch, key=key, train=False))
    calm = [evaluate(model.params, key).logits for key in (None, None)]
    np.testing.assert_array_equal(*calm)
    off = evaluate(model.params, jax.random.key(0)).logits
    np.testing.assert_array_equal(off, calm[0])
    many = jax.vmap(lambda key: apply(model.params, key))(jax.random.split(jax.random.key(0), 2))
    assert not np.allclose(*many, atol=1e-3)


def test_dropout_keeps_the_share_and_the_mean_that_torch_keeps():
    model = from_torch(torch.nn.Dropout(0.25))
    dropped = model.apply({}, jnp.ones(100_000), key=jax.random.key(0))
    np.testing.assert_allclose(jnp.mean(dropped == 0), 0.25, atol=0.01)
    np.testing.assert_allclose(dropped.max(), 1 / 0.75, rtol=1e-6)


def test_training_mode_without_a_key_is_refused():
    model = from_torch(torch.nn.Dropout(0.5))
    with pytest.raises(lnt.LNTuningError, match="train=True needs a random key"):
        model.apply({}, jnp.ones(4), train=True)
    with pytest.raises(lnt.LNTuningError, match="key must be a JAX random key"):
        model.apply({}, jnp.ones(4), key=0)


def test_draws_on_the_host_are_refused():
    model, batch = from_torch(make("bart", encoder_layerdrop=0.1)), make_batch("bart")
    with pytest.raises(lnt.LNTuningError, match=r"encoder_layerdrop=0\.1"):
        model.apply(model.params, **batch, key=jax.random.key(0))
    evaluate = jax.eval_shape(lambda params: model.apply(params, **batch), model.params)
    assert evaluate.loss.shape == ()


def test_nothing_of_torch_changes():
    module = make("bart", dropout=0.2).train()
    module.model.encoder.eval()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = {name: part.training for name, part in module.named_modules()}
    attributes = {name: set(vars(part)) for name, part in module.named_modules()}
    generator, environment = torch.get_rng_state(), torchax.default_env()
    torchax_key = jax.random.key_data(environment.prng_key)
    model, batch = from_torch(module), make_batch("bart")
    for key in (None, jax.random.key(0)):
        jax.make_jaxpr(jax.grad(lambda p, key=key: model.apply(p, **batch, key=key).loss))(
            model.params
        )
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    assert modes == {name: part.training for name, part in module.named_modules()}
    assert attributes == {name: set(vars(part)) for name, part in module.named_modules()}
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(generator, torch.get_rng_state())
    assert not environment.enabled
    np.testing.assert_array_equal(torchax_key, jax.random.key_data(environment.prng_key))
    assert torch.ones(2).add(1).device.type == "cpu"


def test_torchax_may_be_enabled_outside():
    model = from_torch(torch.nn.LayerNorm(4))
    x = jnp.arange(8.0).reshape(2, 4)
    expected = model.apply(model.params, x)
    torchax.enable_globally()
    try:
        inside = model.apply(model.params, x)
        assert torchax.default_env().enabled
        assert torch.ones(2, device="jax").device.type == "jax"
    finally:
        torchax.disable_globally()
    np.testing.assert_array_equal(inside, expected)


def test_threads_may_trace_one_model_at_once():
    model, batch = from_torch(make("llama")), make_batch("llama")
    expected, results = model.apply(model.params, **batch).logits, {}

    def work(index):
        apply = jax.jit(lambda params: model.apply(params, **batch).logits)
        results[index] = apply(model.params)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        np.testing.assert_allclose(results[index], expected, atol=1e-5)


def test_running_statistics_stay_and_may_be_given():
    norm = torch.nn.BatchNorm1d(4)
    model = from_torch(norm)
    x = jax.random.normal(jax.random.key(0), (8, 4)) * 3 + 1
    before = jax.tree.map(np.array, model.buffers)
    trained = model.apply(model.params, x, key=jax.random.key(1))
    np.testing.assert_allclose(trained.mean(0), 0, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, model.buffers, before)
    assert norm.num_batches_tracked == 0
    other = model.buffers | {"running_mean": jnp.full(4, 2.0)}
    np.testing.assert_allclose(model.apply(model.params, jnp.full((1, 4), 2.0), buffers=other), 0)
    with pytest.raises(TreeError, match=r"buffers does not fit.*missing \['running_mean'"):
        model.apply(model.params, x, buffers={})


def test_params_that_do_not_fit_are_named():
    model = from_torch(torch.nn.LayerNorm(4))
    x = jnp.ones((2, 4))
    with pytest.raises(TreeError, match=r"missing \['bias'\], unexpected \['beta'\]"):
        model.apply({"weight": jnp.ones(4), "beta": jnp.ones(4)}, x)
    with pytest.raises(TreeError, match=r"'bias'\] has shape \(3,\), but the module's is"):
        model.apply({"weight": jnp.ones(4), "bias": jnp.ones(3)}, x)
    with pytest.raises(TreeError, match="must be a dict of dotted names, not list"):
        model.apply([], x)
    model = from_torch(torch.nn.Sequential(torch.nn.LayerNorm(4)))
    _, frozen = lnt.partition_params(model.params, CONFIG, norms=model.norms)
    with pytest.raises(
        lnt.errors.TreeError, match=r"is no array but a Placeholder: pass merge_params"
    ):
        model.apply(frozen, x)


def test_arguments_and_results_of_other_kinds():
    class Odd(torch.nn.Module):
        def forward(self, x, what):
            return {"fine": (x, 2), "constant": torch.ones(2)} if what == "dict" else {"x": what}

    model = from_torch(Odd())
    result = model.apply({}, jnp.ones(3), "dict")
    assert result["fine"][1] == 2
    assert result["constant"].shape == (2,)
    with pytest.raises(ModelError, match="x of the forward pass is a str"):
        model.apply({}, jnp.ones(3), "text")
    with pytest.raises(lnt.LNTuningError, match="not torch tensors"):
        model.apply({}, torch.ones(3), "dict")
    with pytest.raises(ModelError, match=r"takes a torch\.nn\.Module, not a dict"):
        from_torch({})
    with pytest.raises(ModelError, match="'weight' is on the meta device"):
        from_torch(torch.nn.LayerNorm(4, device="meta"))


def test_several_adapters_over_one_model():
    model, batch = from_torch(make("gpt2")), make_batch("gpt2")
    trainable, frozen = lnt.partition_params(model.params, CONFIG, norms=model.norms)
    bank = {name: jnp.stack([leaf, leaf * 0.5]) for name, leaf in trainable.items()}

    def apply(adapter):
        return model.apply(lnt.merge_params(adapter, frozen), **batch).loss

    losses = jax.jit(jax.vmap(apply))(bank)
    for index in range(2):
        one = jax.jit(apply)({name: leaf[index] for name, leaf in bank.items()})
        np.testing.assert_allclose(losses[index], one, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_lowers_the_loss_and_moves_norms_only(dtype):
    module = make("bert", hidden_dropout_prob=0.1).to(getattr(torch, dtype))
    model, batch = from_torch(module), make_batch("bert")
    config = lnt.LNTuningConfig(model_type=None, modules_to_save=["classifier"])
    trainable, frozen = lnt.partition_params(model.params, config, norms=model.norms)
    assert {leaf.dtype.name for leaf in trainable.values()} == {"float32"}
    before = jax.tree.map(np.array, frozen)
    start = {name: np.array(leaf) for name, leaf in trainable.items()}
    tx = relax(optax.adam(1e-2))

    def loss_fn(params, batch, rng):
        return model.apply(params, **batch, key=rng).loss.astype(jnp.float32)

    step = lnt.make_train_step(loss_fn, tx, config)
    state = lnt.TrainState.create(trainable, tx, rng=jax.random.key(0))
    losses = []
    for _ in range(15):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert all(np.any(start[name] != leaf) for name, leaf in state.trainable.items())
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    merged = lnt.merge_params(state.trainable, frozen)
    changed = {name for name, leaf in merged.items() if np.any(leaf != model.params[name])}
    assert changed <= set(trainable)
    assert model.apply(merged, **batch).logits.dtype == dtype


def test_an_adapter_is_saved_and_restored(tmp_path):
    model = from_torch(make("llama"))
    config = lnt.LNTuningConfig(model_type="llama")
    trainable, _ = lnt.partition_params(model.params, config, norms=model.norms)
    moved = {name: leaf + 1 for name, leaf in trainable.items()}
    lnt.save_adapter(tmp_path / "adapter", moved, config, base=model.params)
    restored = lnt.restore_adapter(tmp_path / "adapter", model.params)
    for name, leaf in restored.items():
        np.testing.assert_array_equal(leaf, moved.get(name, model.params[name]))


def test_checkpoints_are_loaded_from_a_directory(tmp_path):
    module, batch = make("llama", tie_word_embeddings=True), make_batch("llama")
    module.save_pretrained(tmp_path)
    model = from_pretrained(tmp_path, task="CAUSAL_LM")
    expected = module(**as_tensors(batch)).logits.detach().numpy()
    np.testing.assert_allclose(model.apply(model.params, **batch).logits, expected, atol=1e-5)
    assert model.config.model_type == "llama"
    low = from_pretrained(tmp_path, auto_class="LlamaModel", dtype="bfloat16")
    assert low.params["norm.weight"].dtype == jnp.bfloat16
    assert "last_hidden_state" in low.apply(low.params, batch["input_ids"])


def test_fresh_weights_outside_the_head_are_named(tmp_path):
    encoder = make("bert").bert
    transformers.BertModel(encoder.config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.warns(FreshWeightsWarning, match=r"bert\.pooler\.dense\.bias"):
        model = from_pretrained(tmp_path, task="SEQ_CLS", num_labels=5)
    assert model.params["classifier.weight"].shape == (5, WIDTH)
    with pytest.warns(FreshWeightsWarning):
        again = from_pretrained(tmp_path, task="SEQ_CLS", num_labels=5)
    jax.tree.map(np.testing.assert_array_equal, model.params, again.params)


def test_checkpoints_that_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"cannot load '\./nowhere'"):
        from_pretrained("./nowhere", task="SEQ_CLS")
    with pytest.raises(ModelError, match="task is 'SUMMARY'; supported: None, 'SEQ_CLS'"):
        from_pretrained(tmp_path, task="SUMMARY")
    with pytest.raises(ModelError, match="no model class of transformers"):
        from_pretrained(tmp_path, auto_class="AutoModelForNothing")
    with pytest.raises(lnt.LNTuningError, match="trust_remote_code cannot be changed"):
        from_pretrained(tmp_path, trust_remote_code=True)
    module = make("bert")
    module.config.save_pretrained(tmp_path)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load"):
        from_pretrained(tmp_path, task="SEQ_CLS")


@pytest.mark.parametrize("package", ["torch", "torchax"])
def test_a_missing_package_is_named_with_versions(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=f"needs {package}, which is not installed") as e:
        from_torch(None)
    assert "pip install torch==2.13.0 torchax==0.0.14.dev20261026" in str(e.value)


def test_a_torchax_that_does_not_fit_torch_is_explained(tmp_path):
    (tmp_path / "torchax").mkdir()
    (tmp_path / "torchax" / "__init__.py").write_text("import torch\ntorch.ops.aten.prod.gone\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import lntune_jax.integrations.torchax as bridge\n"
        "assert 'torch' not in sys.modules and 'torchax' not in sys.modules\n"
        "from lntune_jax.errors import ModelError\n"
        "try: bridge.from_torch(None)\n"
        "except ModelError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "needs torchax, which cannot be imported (AttributeError: " in printed
    assert "Found: torch 2." in printed
    assert "Known to work together: torch 2.13.0 with torchax 0.0.14.dev20261026" in printed


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_finds_the_norms_that_the_types_say(name):
    model = from_torch(make(name))
    found = lnt.discover_norms(
        lambda params, batch: model.apply(params, **batch, **EXTRA.get(name, {})),
        model.params,
        make_batch(name),
    )
    assert not found.ambiguous
    assert not found.opaque
    by_type, _ = lnt.partition_params(model.params, CONFIG, norms=model.norms)
    assert list(found) == list(by_type)


class Named(torch.nn.Module):
    """A norm whose name says nothing, and a BatchNorm that is called a LayerNorm."""

    def __init__(self):
        super().__init__()
        self.final = torch.nn.LayerNorm(4)
        self.layer_norm = torch.nn.BatchNorm1d(4)
        self.proj = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.proj(self.layer_norm(self.final(x)))


NAMED = ["final.bias", "final.weight"]


def select_names(params):
    return sorted(lnt.partition_params(params, CONFIG).trainable)


def test_params_carry_their_norms(tmp_path):
    params = from_torch(Named()).params
    assert type(params) is dict
    tx = optax.sgd(0.1)
    updates, _ = tx.update(params, tx.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "whole", params)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "whole", params)
    trees = {
        "itself": params,
        "dict": dict(params),
        "union": {**params} | {},
        "tree.map": jax.tree.map(jnp.copy, params),
        "jit": jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree))(params),
        "shapes": jax.eval_shape(lambda: params),
        "optax": optax.apply_updates(params, updates),
        "merge": lnt.merge_params(*lnt.partition_params(params, CONFIG)),
        "orbax": restored,
        "pickle": pickle.loads(pickle.dumps(params)),
        "copy": copy.deepcopy(params),
        "linen": {"params": params},
    }
    assert {name: select_names(tree) for name, tree in trees.items()} == dict.fromkeys(trees, NAMED)
    nested = select_names({"model": params, "extra_norm": {"scale": jnp.ones(4)}})
    assert nested == ["extra_norm.scale", *(f"model.{name}" for name in NAMED)]
    by_hand = lnt.select(params, CONFIG, norms=["layer_norm"])
    assert sorted(by_hand.partition(params).trainable) == ["layer_norm.bias", "layer_norm.weight"]
