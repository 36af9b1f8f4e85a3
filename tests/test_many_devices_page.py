"""The page on many devices: its Python runs as written, on eight simulated devices."""

import pytest

from tests.support.devices import run_on_devices

_PAGE = """
import re
import jax
import lntune_jax as lnt
from tests.support.paths import REFERENCE, ROOT

blocks = re.findall(r"```python\\n(.*?)```", (ROOT / "docs/many-devices.md").read_text(), re.DOTALL)
assert len(blocks) == 3
names = {"jax": jax, "lnt": lnt, "directory": REFERENCE / "decoders" / "llama"}
names["batch"] = {"input_ids": jax.numpy.ones((4, 8), "int32")}
for block in blocks[:2]:
    exec(block, names)
assert names["batch"]["input_ids"].sharding.shard_shape((4, 8)) == (1, 8)
assert all(leaf.sharding.is_fully_replicated for leaf in names["trainable"].values())
kernels = [leaf for leaf in jax.tree.leaves(names["model"].params) if leaf.ndim == 2]
assert any(not kernel.sharding.is_fully_replicated for kernel in kernels)

wide, narrow = jax.numpy.ones((8, 4)), jax.numpy.ones((4, 8))
names["params"] = {"wi": {"kernel": wide}, "wo": {"kernel": narrow}}
exec(blocks[2], names)
params = names["params"]
assert params["wi"]["kernel"].sharding.spec == jax.P("fsdp", "tensor")
assert params["wo"]["kernel"].sharding.spec == jax.P("tensor", "fsdp")
print("done")
"""


@pytest.mark.long
def test_the_page_s_code_runs_on_eight_devices():
    run_on_devices(_PAGE, 8)
