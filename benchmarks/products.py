"""What do single matrix products reach on this CPU, in XLA's libraries and in PyTorch?

Products of the sizes of models' kernels, as on the way forward and, transposed, on the way back,
and batches of small ones, as in attention. XLA for a CPU computes them by its library YNN, or by
Eigen where YNN cannot; it is also built with oneDNN, behind two experimental flags. In bfloat16,
products are as JAX makes them, and asked for in float32 and then rounded. Each variant takes
several products in its turn; shown are the least milliseconds of one, GFLOP/s, how many cores were
busy (processor time over wall time), and which library XLA chose.

With torch installed its products are shown too.
"""

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from _results import write_results

try:
    import torch
except ModuleNotFoundError:
    torch = None

ONEDNN = {
    "xla_cpu_use_onednn": True,
    "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}
LIBRARIES = {
    "XLA": {},
    "XLA without YNN": {"xla_cpu_experimental_ynn_fusion_type": ""},
    "XLA with oneDNN": ONEDNN,
}
DIRECT = "XLA, asked for in float32"


@dataclass(frozen=True)
class Product:
    """`batch` products of (rows, inner) by (inner, columns), an operand of which is transposed."""

    rows: int
    inner: int
    columns: int
    batch: int = 0
    transposed: str = ""
    dtype: str = "float32"

    def __str__(self) -> str:
        many = f"{self.batch} of " if self.batch else ""
        sizes = f"{many}{self.rows} x {self.inner} by {self.inner} x {self.columns}"
        return f"{self.dtype}, {sizes}" + f", {self.transposed} transposed" * bool(self.transposed)

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * max(self.batch, 1) * self.rows * self.inner * self.columns

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Both operands."""
        random = np.random.default_rng(0)
        left, right = (self.rows, self.inner), (self.inner, self.columns)
        left = left[::-1] if self.transposed == "left" else left
        right = right[::-1] if self.transposed == "right" else right
        many = (self.batch,) if self.batch else ()
        return tuple(random.standard_normal(many + shape, np.float32) for shape in (left, right))

    def multiply(self, left, right):
        """The product, in JAX or PyTorch."""
        left = left.swapaxes(-1, -2) if self.transposed == "left" else left
        return left @ (right.swapaxes(-1, -2) if self.transposed == "right" else right)

    def multiply_exactly(self, left, right):
        """The same in JAX, asked for in float32 and then rounded, as XLA of jax 0.10 needs it."""
        left = left.swapaxes(-1, -2) if self.transposed == "left" else left
        right = right.swapaxes(-1, -2) if self.transposed == "right" else right
        return jnp.matmul(left, right, preferred_element_type="float32").astype(self.dtype)


PRODUCTS = (
    Product(512, 384, 1536),
    Product(512, 1536, 384, transposed="right"),
    Product(512, 768, 3072),
    Product(512, 3072, 768, transposed="right"),
    Product(64, 64, 32, batch=96),
    Product(128, 128, 64, batch=48),
    Product(128, 128, 64, batch=48, transposed="left"),
    Product(512, 1536, 384, dtype="bfloat16"),
    Product(512, 1536, 384, transposed="right", dtype="bfloat16"),
    Product(128, 128, 64, batch=48, dtype="bfloat16"),
)


def make_runs(product: Product) -> dict[str, tuple[Callable[[], object], str]]:
    """By variant, a function that takes the product once, and what it runs in."""
    left, right = (jnp.asarray(each, product.dtype) for each in product.draw())
    variants = {name: (product.multiply, options) for name, options in LIBRARIES.items()}
    if product.dtype == "bfloat16":
        variants[DIRECT] = (product.multiply_exactly, {})
    runs: dict[str, tuple[Callable[[], object], str]] = {}
    for name, (function, options) in variants.items():
        compiled = jax.jit(function).lower(left, right).compile(compiler_options=options)
        run = functools.partial(run_jax, compiled, left, right)
        runs[name] = (run, find_library(compiled.as_text()))
    if torch is not None:
        theirs = [torch.from_numpy(x).to(getattr(torch, product.dtype)) for x in product.draw()]
        runs["torch"] = (functools.partial(product.multiply, *theirs), "torch")
    return runs


def run_jax(compiled, left, right) -> None:
    compiled(left, right).block_until_ready()


def find_library(text: str) -> str:
    """The library of the compiled program's only product, by the names that XLA gives."""
    found = [name for key, name in (("ynn", "YNN"), ("onednn", "oneDNN")) if key in text.lower()]
    return found[0] if found else "Eigen"


def take_turns(runs: dict, rounds: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of one product, by the wall and by the processor, in each round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            run = runs[name][0]
            run()  # after another library's turn its threads have to wake up
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                run()
            spent = time.perf_counter() - wall, time.process_time() - processor
            times[name].append((spent[0] / repeats, spent[1] / repeats))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=20, help="products in a turn")
    options = parser.parse_args()
    figures: dict[str, dict] = {}
    for product in PRODUCTS:
        runs = make_runs(product)
        print(f"{product!s:60s} {'ms':>7s} {'GFLOP/s':>8s} {'cores':>6s}  computed by")
        rows = figures[str(product)] = {}
        for name, times in take_turns(runs, options.rounds, options.repeats).items():
            wall, processor = min(times)
            rows[name] = {
                "milliseconds": wall * 1e3,
                "gflop_per_second": product.flops / wall / 1e9,
                "cores": processor / wall,
                "by": runs[name][1],
            }
            print(
                f"  {name:58s} {wall * 1e3:7.3f} {product.flops / wall / 1e9:8.0f} "
                f"{processor / wall:6.2f}  {runs[name][1]}"
            )
    path = write_results("products", figures | {"settings": vars(options)})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
