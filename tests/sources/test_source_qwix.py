"""qwix: norms over kernels of few bits, in models and in single leaves that qwix quantised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import linen as nn
from flax import nnx

import lntune_jax as lnt
from lntune_jax.errors import AdapterError
from tests.support.source_checks import check_source, read_arrays, run_page

X = jax.random.normal(jax.random.key(1), (8, 16))
KINDS = ["int8", "int4", "nf4", "float8_e4m3fn"]
CONFIG = lnt.LNTuningConfig()
# qwix calls methods that Flax would rather have as functions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class OwnNnx(nnx.Module):
    """A norm whose name says nothing, and a layer whose scale is called like a norm's."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.LayerNorm(16, rngs=rngs)
        self.norm_in = nnx.Linear(16, 16, rngs=rngs)
        self.last = nnx.RMSNorm(16, rngs=rngs)
        self.out = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.out(self.last(x + self.norm_in(self.first(x))))


class OwnLinen(nn.Module):
    """The same in Linen."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.Dense(16, name="norm_in")(nn.LayerNorm(name="first")(x))
        return nn.Dense(4, name="out")(nn.RMSNorm(name="last")(x))


LEAVES = ["first.bias", "first.scale", "last.scale"]


def make_provider(kind):
    return qwix.PtqProvider([qwix.QuantizationRule(weight_qtype=kind)])


def make_nnx(kind):
    with jax.numpy_dtype_promotion("standard"):
        return qwix.quantize_model(OwnNnx(), make_provider(kind), X)


def relaxed(function):
    """qwix's own arithmetic mixes dtypes."""

    def call(*args):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args)

    return call


def check_bits(params, kind):
    kinds = {str(leaf.dtype) for path, leaf in read_arrays(params).items() if "qvalue" in path}
    assert kinds == {"uint4" if kind == "nf4" else kind}


@pytest.mark.parametrize("kind", KINDS)
def test_an_nnx_model(tmp_path, kind):
    model = make_nnx(kind)
    graphdef, params = nnx.split(model)
    check_bits(params, kind)
    apply = relaxed(lambda params: nnx.merge(graphdef, params)(X))
    paths = check_source(
        tmp_path,
        params,
        nnx.state(make_nnx(kind)),
        lambda params: jnp.square(apply(params) - 1).mean(),
        apply,
        norms=lnt.norm_modules(model),
    )
    assert paths == LEAVES
    assert set(lnt.partition_params(model, CONFIG).trainable) == set(LEAVES)
    chosen = nnx.to_flat_state(nnx.state(model, lnt.integrations.nnx.make_filter(CONFIG, model)))
    assert sorted(".".join(map(str, path)) for path, _ in chosen) == LEAVES


@pytest.mark.parametrize("kind", KINDS)
def test_a_linen_model(tmp_path, kind):
    model = qwix.quantize_model(OwnLinen(), make_provider(kind))
    init = relaxed(lambda: model.init(jax.random.key(0), X)["params"])
    params = init()
    check_bits(params, kind)
    apply = relaxed(lambda params: model.apply({"params": params}, X))
    with jax.numpy_dtype_promotion("standard"):
        norms = lnt.norm_modules(model, X)
    assert norms == {"first", "last"}
    paths = check_source(
        tmp_path,
        params,
        init(),
        lambda params: jnp.square(apply(params) - 1).mean(),
        apply,
        norms=norms,
    )
    assert paths == LEAVES


def make_leaves(kind):
    kernel = jax.random.normal(jax.random.key(0), (16, 4))
    norm = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    with jax.numpy_dtype_promotion("standard"):
        few = qwix.quantize(kernel, kind, channelwise_axes=(1,))
        table = qwix.quantize(kernel, kind, channelwise_axes=(1,), tiled_axes={0: 8})
    return {"ln": norm, "norm_proj": {"kernel": few}, "norm": {"kernel": table}}


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_single_leaves(tmp_path, kind):
    """A tree of a person's own, in which some leaves are qwix's arrays."""

    def apply(params):
        x = X * params["ln"]["scale"] + params["ln"]["bias"]
        kernels = [params[name]["kernel"] for name in ("norm_proj", "norm")]
        return sum(x @ qwix.dequantize(kernel) for kernel in kernels)

    apply = relaxed(apply)
    params = make_leaves(kind)
    check_bits(params, kind)
    paths = check_source(
        tmp_path,
        params,
        make_leaves(kind),
        lambda params: jnp.square(apply(params) - 1).mean(),
        apply,
    )
    assert paths == ["ln.bias", "ln.scale"]
    assert lnt.report_params(params, CONFIG).total == 32 + 2 * 64  # scales are no parameters
    other = make_leaves("int4" if kind == "int8" else "int8")
    with pytest.raises(AdapterError, match="a quantised base is another base"):
        lnt.restore_adapter(tmp_path / "adapter", other)


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"model": OwnNnx(), "x": X, "y": jnp.ones((8, 4)), "kernel": jnp.ones((16, 4))}
    names = run_page("qwix", names)
    assert sorted(names["trainable"]) == LEAVES
    assert list(names["leaves"]) == ["ln.bias", "ln.scale"]
    saved = lnt.load_adapter("adapter").trainable
    assert np.any(saved["first.scale"] != 1)
