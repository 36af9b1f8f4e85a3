"""The compiler's own account of a training step with AdamW, on one device or on a mesh."""

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss
from lntune_jax.models._build import nest
from lntune_jax.models._lora import add_lora, lora_shapes

# The CPU compiler takes out the barriers that keep recomputed work apart from the first, and then
# merges the two: without this option remat changes nothing there.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
# Kernels whose outputs, and whose inputs, are divided by "tensor".
_OUT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
_IN = ("o_proj", "down_proj")


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
        frozen = flat(model.params)
        trainable = lora_shapes(frozen, 8)
        gradient = None
    else:
        # float32 masters, as the estimate counts them; the model reads them in its dtype.
        trainable = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), model.params)
        frozen = model.params if model.dtype != "float32" else None
        gradient = None

    def step(trainable, state, frozen, tokens):
        if method == "lora":
            adapted = add_lora(lambda given, x: loss(nest(given), x), frozen, tokens)
            value, gradients = jax.value_and_grad(adapted)(trainable, frozen, tokens)
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


def spec(path, leaf):
    """How a leaf lies on a mesh with the axes "fsdp" and "tensor"."""
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    words = {part for name in names for part in name.split(".")}
    if leaf.ndim != 2:
        # A norm divided by features would divide the activations so too, and not by rows.
        return PartitionSpec()
    if "lora_a" in words or "lora_b" in words or min(leaf.shape) < 16:
        return PartitionSpec()
    if words & {"embedding"}:
        return PartitionSpec("tensor", "fsdp")
    if words & set(_OUT):
        return PartitionSpec("fsdp", "tensor")
    if words & set(_IN):
        return PartitionSpec("tensor", "fsdp")
    return PartitionSpec("fsdp", None)


def compiled_bytes(model, method, tokens, mesh=None, dump=None):
    """Arguments, temporaries and outputs on a device, less what takes arguments' places."""
    step, given = make_step(model, method)
    if mesh is not None:

        def placed(path, leaf):
            return jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec(path, leaf))
            )

        given = jax.tree_util.tree_map_with_path(placed, given)
        tokens = jax.ShapeDtypeStruct(
            tokens.shape, tokens.dtype, sharding=NamedSharding(mesh, PartitionSpec("fsdp"))
        )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, given) if mesh is not None else None
    options = {}
    if mesh is not None:
        kept = shardings if method == "full" else (*shardings[:2], None)
        options = {"out_shardings": (*kept, None)}
    donated = (0, 1, 2) if method == "full" else (0, 1)
    jitted = jax.jit(step, donate_argnums=donated, **options)
    compiled = jitted.lower(*given, tokens).compile(compiler_options=KEEP_BARRIERS)
    found = compiled.memory_analysis()
    if dump is not None:
        dump(compiled, found)
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return kept + found.temp_size_in_bytes
