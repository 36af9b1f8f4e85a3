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
# # Twenty adapters over one base
#
# Twenty customers want twenty classifiers. You keep one base, train an adapter for each in one
# compiled step, and answer requests of different customers in one batch. It takes less than a
# minute on a CPU.
#
# To see it quickly, the base is a small BERT with random weights, and the texts are made up. With
# your own model, `lnt.models.from_pretrained` stands in the place of `from_config`.
#
# On Colab, run `pip install 'lntune-jax[cli]'` first.

# %%
from pathlib import Path
from tempfile import mkdtemp

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from transformers import BertConfig

import lntune_jax as lnt

CUSTOMERS, VOCABULARY, LENGTH = 20, 60, 15
sizes = {"hidden_size": 96, "intermediate_size": 192, "vocab_size": VOCABULARY}
bert = BertConfig(num_hidden_layers=2, num_attention_heads=4, **sizes)
model = lnt.models.from_config(bert, "SEQ_CLS", num_labels=2, pooling="mean")
draw = np.random.default_rng(0)


def fill(path, leaf):  # scales are 1 and biases 0 but for some noise
    noise = 0.15 * draw.normal(size=leaf.shape)
    return jnp.asarray(noise + (path[-1].key == "scale"), leaf.dtype)


params = jax.tree_util.tree_map_with_path(fill, model.params)

# %% [markdown]
# ## What each customer wants
#
# Each customer likes half of the words and dislikes the rest. A text is positive where the liked
# words are more. Two customers agree on half of all texts only, so no single adapter serves both.

# %%
half = np.repeat([1, -1], VOCABULARY // 2)
likes = np.array([draw.permutation(half) for _ in range(CUSTOMERS)])


def make_texts(count, seed):
    """Word numbers of shape (customers, count, length), and labels."""
    words = np.random.default_rng(seed).integers(0, VOCABULARY, (CUSTOMERS, count, LENGTH))
    scores = np.take_along_axis(likes[:, None], words, axis=2).sum(-1)
    return jnp.asarray(words, jnp.int32), jnp.asarray(scores > 0, jnp.int32)


# %% [markdown]
# ## Train twenty at once
#
# `stack_states` puts twenty states into one. The step sees a batch of each customer, and its matrix
# products take all the rows together.

# %%
config = lnt.LNTuningConfig(modules_to_save=["classifier"])
selection = lnt.select(params, config)
print(selection.report())
trainable, frozen = selection.partition(params)


def loss_fn(params, batch):
    words, labels = batch
    logits = model.apply(params, words, jnp.ones_like(words)).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


STEPS = 400
rate = optax.cosine_decay_schedule(3e-2, STEPS)
tx = lnt.adamw(selection, learning_rate=rate, head_learning_rate=rate)
state = lnt.stack_states([lnt.TrainState.create(trainable, tx)] * CUSTOMERS)
step = lnt.make_multi_step(loss_fn, tx, selection, adapters=CUSTOMERS, own_batches=True)
losses = []
for number in range(STEPS):
    state, metrics = step(state, frozen, make_texts(16, number + 1))
    losses.append(metrics["loss"])
losses = np.array(losses)

# %%
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
smooth = np.apply_along_axis(lambda x: np.convolve(x, np.ones(15) / 15, "valid"), 0, losses)
axes.plot(smooth, color="tab:blue", alpha=0.35)
axes.set(xlabel="step", ylabel="loss", title="twenty adapters, one compiled step")
plt.show()

# %% [markdown]
# ## A bank
#
# Each adapter is saved by itself. A bank reads all of them, over the one base.

# %%
work = Path(mkdtemp())
states = lnt.unstack_states(state)
names = [f"customer-{number}" for number in range(CUSTOMERS)]
for name, own in zip(names, states, strict=True):
    lnt.save_adapter(work / name, own.trainable, selection, base=params)
bank = lnt.bank.make_bank(params, {name: work / name for name in names})
bank_frozen = lnt.bank.freeze_base(params, bank)

one = sum(np.asarray(leaf).nbytes for leaf in states[0].trainable.values())
base = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(f"one adapter: {one:,} bytes of {base:,}")

# %% [markdown]
# ## One batch, twenty customers
#
# Row by row, you say which adapter answers. Below, each customer's texts are answered by each
# adapter. The diagonal is a customer's own adapter. Elsewhere it does no better than a coin.

# %%
words, labels = make_texts(40, seed=0)


def apply(params, words):
    return model.apply(params, words, jnp.ones_like(words)).logits


@jax.jit
def answer(leaves, ids, words):
    return lnt.bank.apply_per_example(apply, leaves, ids, bank_frozen, words).argmax(-1)


right = np.zeros((CUSTOMERS, CUSTOMERS))
for shift in range(CUSTOMERS):  # every batch holds rows of all customers and of all adapters
    adapters = [(customer + shift) % CUSTOMERS for customer in range(CUSTOMERS)]
    ids = bank.get_ids([names[each] for each in adapters for _ in range(words.shape[1])])
    found = answer(bank.leaves, ids, words.reshape(-1, LENGTH)).reshape(labels.shape)
    right[adapters, range(CUSTOMERS)] = (found == labels).mean(axis=1)

figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
image = axes.imshow(right, vmin=0, vmax=1, cmap="RdYlGn")
ticks = range(0, CUSTOMERS, 5)
axes.set(xlabel="texts of customer", ylabel="adapter of customer", xticks=ticks, yticks=ticks)
figure.colorbar(image, label="accuracy")
plt.show()
others = right[~np.eye(CUSTOMERS, dtype=bool)]
print(f"own adapter: {right.diagonal().mean():.2f}, another's: {others.mean():.2f}")
print("programs compiled:", answer._cache_size())

# %% [markdown]
# ## Next
#
# - [Many adapters](../many-adapters.md): add and remove, average, compare, one file
# - [A small server](../../examples/many_tenants.py) of many customers over one base
