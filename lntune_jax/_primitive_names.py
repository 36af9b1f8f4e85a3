"""Names of JAX's primitives whose bodies belong to the program around them."""

_CALLS = "jit pjit closed_call core_call custom_jvp_call custom_vjp_call checkpoint remat2"

CALLS = frozenset(_CALLS.split())
LOOPS = frozenset({"scan", "while", "cond"})
