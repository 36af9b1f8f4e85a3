"""What JAX calls the operations that traced programs are looked through for, all in one place.

JAX promises none of these names: a test compares them with those of the version that is there.
"""

from __future__ import annotations

PRODUCT = "dot_general"
# A function with a gradient of its own.
OWN_GRADIENT = "custom_vjp_call"
SCAN = "scan"
# `jax.checkpoint`, and what else runs a body in the program around it.
REMAT = "remat2"
CALLS = frozenset(("jit", "closed_call", "custom_jvp_call", OWN_GRADIENT, REMAT))
LOOPS = frozenset((SCAN, "while", "cond"))

# cuDNN's attention on the way forward: the beginning of the name, which has versions.
FLASH_ATTENTION = "dot_product_attention_fwd"
# A kernel of Pallas, and `jax.ad_checkpoint.checkpoint_name`, by which splash attention calls what
# its backward pass reads: of each row's sum the kernel itself gives 128 copies.
KERNEL, NAMED = "pallas_call", "name"

# Not worth storing from one loop to another: an activation costs nothing beside the product that
# it is computed from.
CHEAP_IN_LOOPS = frozenset(
    (
        *("add", "add_any", "and", "broadcast_in_dim", "convert_element_type", "copy"),
        *("dynamic_slice", "eq", "erf", "ge", "gt", "integer_pow", "iota", "le", "logistic", "lt"),
        *("mul", "ne", "neg", "not", "or", "pad", "reshape", "select_n", "slice", "split"),
        *("square", "squeeze", "sub", "tanh", "transpose"),
    )
)

# Elementwise work, which XLA computes inside its reader: cheap enough to do twice, or not.
CHEAP = frozenset(
    (
        *("abs", "add", "add_any", "and", "broadcast_in_dim", "ceil", "clamp"),
        *("convert_element_type", "copy", "eq", "floor", "ge", "gt", "iota", "is_finite", "le"),
        *("lt", "max", "min", "mul", "ne", "neg", "not", "optimization_barrier", "or", "pad"),
        *("reduce_precision", "reshape", "rev", "round", "select_n", "shift_left"),
        *("shift_right_arithmetic", "shift_right_logical", "sign", "slice", "split", "square"),
        *("squeeze", "stop_gradient", "sub", "transpose", "xor"),
    )
)
DEAR = frozenset(
    (
        *("atan2", "concatenate", "cos", "div", "dynamic_slice", "erf", "exp", "exp2", "expm1"),
        *("integer_pow", "log", "log1p", "logistic", "pow", "rem", "rsqrt", "sin", "sqrt"),
        *("tan", "tanh"),
    )
)
FUSED = CHEAP | DEAR

# The same bytes under another shape.
VIEWS = frozenset(("optimization_barrier", "reshape", "squeeze", "stop_gradient"))
