"""The arithmetic of an LN-tuning step of a Llama on a mesh: bytes on the network, and operations.

Layers in full remat: each is computed once more on the way back, so its kernels are gathered twice.
The base is never updated, so nothing of its size is ever added up.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Llama:
    """The sizes of a model of the family, without tied embeddings."""

    width: int
    layers: int
    heads: int
    shared: int
    head: int
    inner: int
    words: int

    @property
    def kernels(self) -> int:
        """Entries of one layer's kernels."""
        attention = 2 * self.width * self.head * (self.heads + self.shared)
        return attention + 3 * self.width * self.inner

    @property
    def norms(self) -> int:
        """Entries of all norms: what trains."""
        return (2 * self.layers + 1) * self.width

    @property
    def table(self) -> int:
        """Entries of the embeddings, and of the output weights."""
        return self.words * self.width

    @property
    def total(self) -> int:
        """All entries."""
        return self.layers * self.kernels + 2 * self.table + self.norms


@dataclass(frozen=True)
class Mesh:
    """How many devices along each axis."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def devices(self) -> int:
        """All of them."""
        return self.data * self.fsdp * self.tensor


def gathered(model: Llama, mesh: Mesh, size: int) -> int:
    """Bytes of kernels that a device gathers in a step: the results of its all-gathers.

    Every layer's for both passes, and the output weights for the loss and for the gradient of its
    input, which are one on a mesh without "tensor".
    """
    if mesh.fsdp == 1:
        return 0
    heads = 2 if mesh.tensor > 1 else 1
    return (2 * model.layers * model.kernels + heads * model.table) * size // mesh.tensor


def added(model: Llama, mesh: Mesh, rows: int, length: int, size: int, *, merged: bool) -> int:
    """Bytes of activations that devices along "tensor" add up: the results of all-reduces.

    Of each layer the outputs of attention and MLP, that of attention once more in the second pass,
    and on the way back the gradients at the inputs of q, k, v, and of gate and up: five sums as the
    CPU's compiler writes them, two where the compiler adds before it sends (`merged`). Besides the
    vectors of the words, the wanted words' output weights, the gradient at the loss's input, and
    three numbers for each word's loss.
    """
    if mesh.tensor == 1:
        return 0
    state = rows * length * model.width * size
    last = rows * (length - 1) * model.width * size
    losses = 3 * rows * (length - 1) * 4
    return (model.layers * (5 if merged else 8) + 1) * state + 2 * last + losses


def norm_gradients(model: Llama, mesh: Mesh) -> int:
    """Bytes of gradients that devices add up: norms, the loss and the count of its words."""
    return 4 * model.norms + 8 if mesh.data * mesh.fsdp > 1 else 0


def ring(size: float, group: int, *, times: int = 1) -> float:
    """Bytes that a device sends for a result of `size` in a ring; an all-reduce is two times."""
    return times * size * (group - 1) / group


def operations(model: Llama, rows: int, length: int) -> float:
    """Floating-point operations of a step on so many rows, on all devices that share them.

    Forward, second forward and the gradients of the inputs: three passes of two operations for each
    entry of a kernel and token, where full fine-tuning has four; of the output weights two. Causal
    attention is half of all pairs of words.
    """
    tokens = rows * length
    scores = 2 * model.heads * model.head * length / 2
    return 2 * tokens * (3 * model.layers * (model.kernels + scores) + 2 * model.table)


def state_bytes(model: Llama) -> int:
    """Bytes of a checkpoint: norms, Adam's two moments, and the best norms so far, in float32."""
    return 4 * 4 * model.norms


def full_state_bytes(model: Llama) -> int:
    """The same of full fine-tuning: float32 weights and two moments."""
    return 3 * 4 * model.total
