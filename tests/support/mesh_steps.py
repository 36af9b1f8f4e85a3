"""The compiler's own account of a training step with AdamW, on one device or on a mesh."""

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

import lntune_jax as lnt
from lntune_jax.models import base_specs, causal_lm_loss
from lntune_jax.models.estimating.lora import add_lora, lora_shapes
from lntune_jax.models.nn.skeleton import nest
from lntune_jax.training.xla_cpu import compiler_options


def flat(params):
    """A tree's leaves by their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def make_step(model, method):
    """A step, and the shapes of what it takes besides the tokens."""
    tx = optax.adamw(1e-3)

    def loss(params, tokens):
        return causal_lm_loss(model, params, tokens)

    frozen = None
    if method == "ln":
        trainable, frozen = lnt.partition_params(model.params, lnt.LNTuningConfig())
        gradient = lnt.value_and_grad(loss)
    elif method == "lora":
        # Nested, since the rules for a mesh go by the names of leaves.
        frozen = model.params
        trainable = lora_shapes(flat(frozen), 8)
        gradient = None
    else:
        # float32 masters, as the estimate counts them; the model reads them in its dtype.
        trainable = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), model.params)
        frozen = model.params if model.dtype != "float32" else None
        gradient = None

    def step(trainable, state, frozen, tokens):
        if method == "lora":
            base = flat(frozen)
            adapted = add_lora(lambda given, x: loss(nest(given), x), base, tokens)
            value, gradients = jax.value_and_grad(adapted)(trainable, base, tokens)
        elif method == "full":
            held = trainable if frozen is None else frozen
            value, gradients = jax.value_and_grad(loss)(held, tokens)
        else:
            value, gradients = gradient(trainable, frozen, tokens)
        if method == "full" and frozen is not None:
            wide = jax.tree.map(lambda x: x.astype("float32"), gradients)
            updates, state = tx.update(wide, state, trainable)
            trainable = optax.apply_updates(trainable, updates)
            frozen = jax.tree.map(lambda x, y: x.astype(y.dtype), trainable, frozen)
            return trainable, state, frozen, value
        updates, state = tx.update(gradients, state, trainable)
        return optax.apply_updates(trainable, updates), state, None, value

    return step, (trainable, jax.eval_shape(tx.init, trainable), frozen)


def rules(path, leaf):
    """How a leaf of a step lies on a mesh: the base by its rules, LoRA's factors whole."""
    return (
        PartitionSpec() if {"lora_a", "lora_b"} & set(path.split(".")) else base_specs(path, leaf)
    )


def compile_step(model, method, tokens, mesh=None):
    """A compiled step, for shapes; rows are divided over the mesh's axes for data."""
    step, given = make_step(model, method)
    options = {}
    if mesh is not None:
        given = lnt.shard_params(given, mesh, rules)
        axes = tuple(name for name in ("data", "fsdp") if name in mesh.shape)
        rows = NamedSharding(mesh, PartitionSpec(axes))
        tokens = jax.ShapeDtypeStruct(tokens.shape, tokens.dtype, sharding=rows)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, given)
        kept = shardings if method == "full" else (*shardings[:2], None)
        options = {"out_shardings": (*kept, None)}
    donated = (0, 1, 2) if method == "full" else (0, 1)
    # For every method what `make_train_step` does by itself for one of them.
    jitted = jax.jit(step, donate_argnums=donated, **options)
    return jitted.lower(*given, tokens).compile(compiler_options=compiler_options())


def compiled_bytes(model, method, tokens, mesh=None):
    """Arguments, temporaries and outputs on a device, less what takes arguments' places."""
    found = compile_step(model, method, tokens, mesh).memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return kept + found.temp_size_in_bytes
