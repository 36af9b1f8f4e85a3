"""Values and gradients of `apply` against PyTorch's, where a graph of gradients has a cut in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lntune_jax.errors import ModelError
from lntune_jax.integrations.torchax import from_torch


class Weighted(nn.Module):
    """A module with one weight; each case below is its forward."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.5, 2.0, 1.0]))


def make(forward):
    return type(forward.__name__, (Weighted,), {"forward": forward})()


def no_grad_block(self, x):
    with torch.no_grad():
        scale = self.weight * x
    return scale * self.weight * x


@torch.no_grad()
def compute_scale(weight, x):
    return weight * x


def no_grad_function(self, x):
    return compute_scale(self.weight, x) * self.weight * x


def enabled_inside_no_grad(self, x):
    with torch.no_grad():
        a = self.weight * x
        with torch.enable_grad():
            b = self.weight * x
    return a * x + b * self.weight


def switched_by_hand(self, x):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    a = self.weight.exp()
    torch.set_grad_enabled(before)
    return a * x * self.weight


def untouched_through_no_grad(self, x):
    with torch.no_grad():
        same = x
    return same * self.weight


def detach(self, x):
    return x * (self.weight * x).detach() + self.weight


def detach_of_a_view(self, x):
    return self.weight * x[1:].detach() * x[:-1]


def detach_then_view(self, x):
    return self.weight * x.detach()[1:] * x[:-1]


def detach_in_place(self, x):
    y = self.weight * x
    y.detach_()
    return y * x * self.weight


def data_attribute(self, x):
    return self.weight.data * x * self.weight * x.data


def straight_through(self, x):
    y = x * self.weight
    return y + (torch.sign(y) - y).detach()


def write_into_a_slice(self, x):
    y = torch.zeros(3, 4)
    y[1:, :2] = x[1:, 2:] * self.weight[:2]
    y[0] = x[0] * 3
    return y * x


def write_through_two_views(self, x):
    y = x * 1.0
    y[1:].transpose(0, 1)[2] = self.weight[:2]
    row = y[0]
    row.mul_(self.weight)
    y.view(-1)[3:5].add_(self.weight[:2])
    return y * y + row


def write_into_a_detached_view(self, x):
    y = (x * 2.0).detach()
    y += self.weight
    return y * x


def write_below_a_detached_view(self, x):
    z = x * self.weight
    y = z.detach()
    y[:, 1:].mul_(self.weight[:3])
    return y * x + z


def write_before_and_after(self, x):
    y = x * 1.0
    first = y[:, :2]
    before = first * 2
    y.add_(self.weight)
    return before * first


def write_without_gradient(self, x):
    y = x * self.weight
    with torch.no_grad():
        y.mul_(3.0)
    return y * x


def write_constants_without_gradient(self, x):
    y = x * self.weight
    with torch.no_grad():
        y[1:].fill_(2.0)
    return y + x


def write_through_detached(self, x):
    y = x * self.weight
    y.detach()[0].fill_(3.0)
    return y * x


def masked_writes(self, x):
    y = x * self.weight
    y[x > 0] = 0.0
    y.masked_fill_(x < -1, 2.0)
    return y.masked_scatter(x > 0.5, self.weight.repeat(3)) + y.clamp_(-0.5, 0.5)


def index_writes(self, x):
    y = x * self.weight
    y[:, torch.arange(2)] = self.weight[2:]
    y.index_add_(0, torch.tensor([0, 2]), x[:2])
    y.scatter_add_(1, torch.tensor([[0, 0, 1, 3]]), x[:1])
    return y[torch.arange(2)] * x[:2]


def relu_in_place(self, x):
    y = x * self.weight
    return F.relu(y, inplace=True) + y


def shapes_in_place(self, x):
    y = (x * self.weight).contiguous()
    y.unsqueeze_(0)
    y.transpose_(1, 2)
    y.squeeze_(0)
    return y[:, :3] * x[:, :3].T[:1]


def expanded_and_split(self, x):
    a, b = (x * self.weight).split(2, dim=1)
    a, c = a * 2.0, (x * 3.0)
    c.narrow(1, 0, 2).mul_(self.weight[:2])
    a = a + c[:, :2]
    top, *_ = x.unbind(0)
    return a * b + top[:2].expand(3, 2)


def keyword_gaps(self, x):
    y = F.linear(input=x, weight=self.weight.expand(4, 4), bias=None)
    return y * torch.arange(end=4) + torch.arange(start=1, end=5)


def sorted_values(self, x):
    values, order = (x * self.weight).sort(dim=-1, descending=True)
    top = (x * self.weight).topk(2, dim=-1).values
    return values * order + top.sum(-1, keepdim=True) + x.max(dim=-1, keepdim=True).values


def new_leaf(self, x):
    y = torch.zeros_like(x).requires_grad_()
    y.requires_grad = True
    return (y + x) * self.weight


def mapped(self, x):
    return torch.vmap(lambda row: (row * self.weight).cumsum(0).view(2, 2))(x)


def mapped_in_two_ways(self, x):
    def compute(column, factor, whole):
        return column * factor + whole.sum(0)[:3], whole.sum(0)

    both = torch.vmap(compute, in_dims=(1, 0, None))(x, self.weight, x)
    return both[0].mT + both[1].mT[:3]


def mapped_twice(self, x):
    def outer(row):
        return torch.vmap(lambda value, weight: (row * value).sin().sum() * weight)(
            x[0], self.weight
        )

    return torch.vmap(outer)(x)


def mapped_with_writes(self, x):
    def compute(row):
        y = row * 1.0
        y[1:].mul_(self.weight[1:])
        with torch.no_grad():
            z = y * 2
        return y * z

    return torch.vmap(compute)(x)


CASES = [
    no_grad_block,
    no_grad_function,
    enabled_inside_no_grad,
    switched_by_hand,
    untouched_through_no_grad,
    detach,
    detach_of_a_view,
    detach_then_view,
    detach_in_place,
    data_attribute,
    straight_through,
    write_into_a_slice,
    write_through_two_views,
    write_before_and_after,
    write_without_gradient,
    write_constants_without_gradient,
    write_through_detached,
    write_into_a_detached_view,
    write_below_a_detached_view,
    new_leaf,
    mapped,
    mapped_in_two_ways,
    mapped_twice,
    mapped_with_writes,
    masked_writes,
    index_writes,
    relu_in_place,
    shapes_in_place,
    expanded_and_split,
    keyword_gaps,
    sorted_values,
]


def check(module, *args, **kwargs):
    """Value, and gradients of the weights and of all floating inputs, are PyTorch's."""
    tensors = [torch.tensor(np.asarray(x)) for x in args]
    for tensor in tensors:
        tensor.requires_grad_(tensor.is_floating_point())
    expected = module(*tensors, **kwargs)
    slopes = torch.cos(torch.arange(expected.numel())).reshape(expected.shape)
    wanted = [*module.parameters(), *(t for t in tensors if t.requires_grad)]
    grads = torch.autograd.grad((expected * slopes).sum(), wanted, allow_unused=True)
    model = from_torch(module)
    floats = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]

    def apply(params, inputs):
        own = [inputs.get(i, x) for i, x in enumerate(args)]
        return model.apply(params, *own, **kwargs)

    def loss_fn(params, inputs):
        return (apply(params, inputs) * slopes.numpy()).sum()

    inputs = {i: jnp.asarray(args[i]) for i in floats}
    for transform in (lambda f: f, jax.jit):
        value = transform(apply)(model.params, inputs)
        np.testing.assert_allclose(value, expected.detach(), rtol=1e-5, atol=1e-6)
        found = transform(jax.grad(loss_fn, (0, 1)))(model.params, inputs)
        names = [name for name, _ in module.named_parameters()]
        own = [*(found[0][name] for name in names), *(found[1][i] for i in floats)]
        for mine, theirs in zip(own, grads, strict=True):
            theirs = np.zeros(mine.shape) if theirs is None else theirs.numpy()
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


X = np.array([[0.3, -2.0, 1.0, 0.7], [1.5, 0.2, -0.4, 0.9], [-1.2, 0.6, 2.0, -0.1]], np.float32)


@pytest.mark.parametrize("forward", CASES, ids=lambda forward: forward.__name__)
def test_values_and_gradients_are_torchs(forward):
    check(make(forward), X)


class Sign(torch.autograd.Function):
    """The gradient passes through, as of what has one."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Mixed(torch.autograd.Function):
    """Two arguments, two results, saved values, a product in the backward, and a plain argument."""

    @staticmethod
    def forward(ctx, x, weight, factor):
        ctx.save_for_backward(x, weight)
        ctx.factor = factor
        return x @ weight, (x * factor).sum(), (x > 0).float()

    @staticmethod
    def backward(ctx, grad, of_sum, of_mask):
        x, weight = ctx.saved_tensors
        given = grad @ weight.T * 3 + of_sum * ctx.factor
        return torch.where(x > 0, given, 0), x.T @ grad if ctx.needs_input_grad[1] else None, None


class Separate(torch.autograd.Function):
    """The context set up apart, and a backward of which PyTorch takes no second one."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.mark_non_differentiable()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (output,) = ctx.saved_tensors
        return grad * output.clamp(max=2)


def own_backward(self, x):
    return Sign.apply(x * self.weight) * self.weight


def own_backward_of_several(self, x):
    matrix = self.weight[:, None] * torch.arange(8.0).reshape(4, 2)
    product, total, mask = Mixed.apply(x * self.weight, matrix, 0.5)
    return product * total + mask[:, :2] * self.weight[:2]


def own_backwards_in_a_row(self, x):
    return Separate.apply(Separate.apply(x * self.weight) * self.weight) + Sign.apply(x)


def own_backward_without_gradient(self, x):
    with torch.no_grad():
        y = Separate.apply(x * self.weight)
    return y * self.weight


class Clipped(Sign):
    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-0.1, 0.1)


class Constant(Sign):
    @staticmethod
    def backward(ctx, grad):
        return torch.ones(3, 4)


def backward_that_is_not_linear(self, x):
    return Clipped.apply(x * self.weight)


def backward_of_a_constant(self, x):
    return Constant.apply(x * self.weight)


class Shifted(Sign):
    @staticmethod
    def backward(ctx, grad):
        return grad * 2 + 1


def backward_that_adds_something(self, x):
    return Shifted.apply(x * self.weight) * self.weight


@pytest.mark.parametrize(
    "forward",
    [
        own_backward,
        own_backward_of_several,
        own_backwards_in_a_row,
        own_backward_without_gradient,
        backward_that_is_not_linear,
        backward_of_a_constant,
        backward_that_adds_something,
    ],
    ids=lambda forward: forward.__name__,
)
def test_an_own_backward_is_followed(forward):
    check(make(forward), X)


def hooked(self, x):
    y = x * self.weight
    y.register_hook(lambda grad: grad * 2)
    return y


def module_hooked(self, x):
    layer = nn.Identity()
    layer.register_full_backward_hook(lambda module, given, got: (given[0] * 2,))
    return layer(x * self.weight)


def inner_gradient(self, x):
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad((y**3).sum(), y)
    return grad * self.weight


def set_data(self, x):
    y = x * self.weight
    y.data = y.data * 2
    return y


def branch_on_values(self, x):
    if (x * self.weight).sum() > 0:
        return x * self.weight
    return x


def loop_over_values(self, x):
    return sum(self.weight * float(value) for value in x[0]) * x


def shape_of_values(self, x):
    return x[x[:, 0] > 0] * self.weight


def to_numpy(self, x):
    return torch.from_numpy(x.detach().numpy() * 2) * self.weight


def write_outside_of_vmap(self, x):
    seen = torch.zeros(4)
    torch.vmap(lambda row: seen.add_(self.weight))(x)
    return seen * x


def mapped_to_another_axis(self, x):
    return torch.vmap(lambda row: row * self.weight, out_dims=1)(x)


def functional_gradient(self, x):
    return torch.func.grad(lambda y: (y**3).sum())(x) * self.weight


def own_error(self, x):
    raise ValueError("the image is too small")


REFUSED = {
    hooked: "register_hook",
    module_hooked: "backward hook",
    inner_gradient: r"torch\.autograd\.grad|requires_grad",
    set_data: r"\.data",
    branch_on_values: "depends on the values of a tensor",
    loop_over_values: "depends on the values of a tensor",
    shape_of_values: "shape depends on the values of a tensor|depends on the values of a tensor",
    to_numpy: "numpy",
    write_outside_of_vmap: "torch.vmap writes into a tensor from outside",
    mapped_to_another_axis: "does not follow",
    functional_gradient: r"torch\.func|torch\.autograd\.grad",
    own_error: "ValueError: the image is too small",
}


@pytest.mark.parametrize("forward", REFUSED, ids=lambda forward: forward.__name__)
def test_what_cannot_be_honoured_is_refused(forward):
    model = from_torch(make(forward))
    for apply in (model.apply, jax.jit(model.apply)):
        with pytest.raises(ModelError, match=f"(?s){REFUSED[forward]}"):
            apply(model.params, X)


def checked(self, x):
    torch._check_tensor_all(x > -5, lambda: "too small")
    return x * self.weight


def test_a_check_of_values_is_kept():
    """An error outside jit, NaN inside: never a result that PyTorch would have refused."""
    model = from_torch(make(checked))
    check(make(checked), X)
    with pytest.raises(ModelError, match="a check in its forward fails"):
        model.apply(model.params, X * 10)
    assert np.isnan(jax.jit(model.apply)(model.params, X * 10)).all()


def noisy(self, x):
    return x * self.weight + torch.randn_like(x)


def test_random_numbers_want_a_key():
    model = from_torch(make(noisy))
    with pytest.raises(ModelError, match=r"draws random numbers, in .*randn_like.*key="):
        jax.jit(model.apply)(model.params, X)

    def draw(seed):
        return model.apply(model.params, X, key=jax.random.key(seed), train=False)

    assert (draw(0) == draw(0)).all()
    assert (draw(0) != draw(1)).all()


# Each function has a corner at one of the entries of `CORNERS`, or at two equal ones.
CORNERS = np.array([0.0, 1, -1, 0, 6, 3, -3, 0.5, 2, -0.5], np.float32)
FUNCTIONS = [
    "abs", "clamp_max_1", "relu", "square", "sinc", "median", "sign", "max", "min", "pow_0",
    "norm", "norm_1", "norm_inf", "norm_of_zeros", "normalize", "cosine_similarity", "cdist",
    "hardtanh", "relu6", "hardswish", "hardsigmoid", "leaky_relu", "logsigmoid", "elu", "celu",
    "softplus", "gelu", "silu", "softsign", "softshrink", "hardshrink", "smooth_l1", "l1", "clamp",
    "clamp_min_0", "amax", "topk", "cummax", "prod", "cumprod", "std", "max_pool", "softmax_of_inf",
]  # fmt: skip
SPECIAL = {
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp_min_0": lambda x: x.clamp_min(0),
    "clamp_max_1": lambda x: torch.clamp(x, max=torch.tensor(1.0)),
    "pow_0": lambda x: x**0.0,
    "norm": lambda x: x.reshape(2, 5).norm(dim=-1),
    "norm_1": lambda x: x.norm(p=1),
    "norm_inf": lambda x: x.norm(p=float("inf")),
    "norm_of_zeros": lambda x: (x * 0).norm(),
    "normalize": lambda x: F.normalize((x * (x > 0)).reshape(5, 2)),
    "cosine_similarity": lambda x: F.cosine_similarity(x.reshape(5, 2), 0 * x.reshape(5, 2)),
    "cdist": lambda x: torch.cdist(x.reshape(5, 2), x.reshape(5, 2)),
    "smooth_l1": lambda x: F.smooth_l1_loss(x, torch.zeros(10)),
    "l1": lambda x: F.l1_loss(x, torch.zeros(10)),
    "amax": lambda x: torch.stack([x, x]).amax(0),
    "topk": lambda x: torch.stack([x, x]).topk(1, 0).values,
    "cummax": lambda x: x.cummax(0).values,
    "cumprod": lambda x: x.cumprod(0),
    "std": lambda x: x.reshape(2, 5).std(-1),
    "max_pool": lambda x: F.max_pool1d(x.clamp(0, 1)[None, None], 2),
    "softmax_of_inf": lambda x: x.masked_fill(x < 0, -torch.inf).softmax(0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_at_corners_are_torchs(name):
    function = SPECIAL.get(name) or getattr(torch, name, None) or getattr(F, name)
    check(make(lambda self, x: function(x)), CORNERS)
