"""torch.func, forward-mode derivatives, and what torch.autograd computes besides gradients."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import forward_ad, functional, gradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap
from torch.nn import functional as F

from compatibility.piece import Refused, piece
from compatibility.trial import X, Y, dense, model_of

FAMILY = "Transforms"
# torch's own forward-mode formulas are made with what torch itself calls deprecated.
JIT = (
    (r"`torch\.jit\.\w+` is deprecated", DeprecationWarning),
    (r"Attempted to insert a get_attr Node with no underlying reference", UserWarning),
)
x, y = X[:6], Y[:6]


def pair(method):
    model = model_of(method)
    return model, dense(model)


def same(compute, method):
    sparse, twin = (compute(model) for model in pair(method))
    torch.testing.assert_close(sparse, twin)


def parameters(model):
    return {name: each.detach() for name, each in model.named_parameters()}


def require_gradients(model, found, expected, twin):
    """Gradients by name: those of kept values are the dense ones where something is kept."""
    leading = found["0.bias"].dim() - 1
    for name, got in found.items():
        layer, leaf = name.split(".")
        if leaf != "values":
            torch.testing.assert_close(got, expected[name])
            continue
        kept = model[int(layer)].topology.mask()
        whole = expected[f"{layer}.weight"]
        assert got.dim() == 1 + leading
        torch.testing.assert_close(got, whole[..., kept])


def one_loss(model):
    return lambda held, a, b: F.cross_entropy(functional_call(model, held, (a[None],)), b[None])


@piece(FAMILY, "`functional_call`")
def _(method):
    model, twin = pair(method)
    held = {name: 2 * each for name, each in parameters(model).items()}
    doubled = {name: 2 * each for name, each in parameters(twin).items()}
    torch.testing.assert_close(functional_call(model, held, (x,)), functional_call(twin, doubled, (x,)))


@piece(FAMILY, "`func.grad`, `func.vjp`")
def _(method):
    model, twin = pair(method)
    results = []
    for each in (model, twin):
        held = parameters(each)
        gradient = grad(lambda p, each=each: F.cross_entropy(functional_call(each, p, (x,)), y))(held)
        _, pull = vjp(lambda p, each=each: functional_call(each, p, (x,)), held)
        results.append((gradient, pull(torch.ones(6, 4))[0]))
    for found, expected in zip(*results, strict=True):
        require_gradients(model, found, expected, twin)


@piece(FAMILY, "`vmap` over inputs")
def _(method):
    same(lambda model: vmap(model)(x), method)
    same(lambda model: vmap(model)(X[:12].reshape(2, 6, 12)), method)
    same(lambda model: vmap(model, in_dims=1)(x.t().contiguous()), method)


@piece(FAMILY, "per-sample gradients, `vmap(grad(...))`")
def _(method):
    model, twin = pair(method)
    found, expected = (
        vmap(grad(one_loss(each)), in_dims=(None, 0, 0))(parameters(each), x, y) for each in (model, twin)
    )
    require_gradients(model, found, expected, twin)


@piece(FAMILY, "`func.jvp`, `linearize`, dual numbers", ignored=JIT)
def _(method):
    t = torch.linspace(-1, 1, x.numel()).view_as(x)
    same(lambda model: jvp(model, (x,), (t,)), method)
    same(lambda model: linearize(model, x)[1](t), method)

    def by_hand(model):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(model(forward_ad.make_dual(x, t))).tangent

    same(by_hand, method)


@piece(FAMILY, "`jacrev`, `jacfwd`, `autograd.functional.jacobian`", ignored=JIT)
def _(method):
    same(lambda model: jacrev(model)(x[0]), method)
    same(lambda model: jacfwd(model)(x[0]), method)
    same(lambda model: functional.jacobian(model, x[:2], vectorize=True), method)


@piece(FAMILY, "`func.hessian`, `hvp`, `vhp`", ignored=JIT)
def _(method):
    def loss(model):
        return lambda a: model(a).square().sum()

    same(lambda model: hessian(loss(model))(x[0]), method)
    same(lambda model: functional.hvp(loss(model), x, x), method)
    same(lambda model: functional.vhp(loss(model), x, x), method)


@piece(FAMILY, "`gradcheck` in float64, forward mode and batched too", ignored=JIT)
def _(method):
    model = model_of(method).double()
    at = x[:2].double().requires_grad_()
    assert gradcheck(model, (at,), check_forward_ad=True, check_batched_grad=True)


@piece(
    FAMILY,
    "ensembles by `stack_module_state` and `vmap`",
    refused=Refused("topolog", "the members keep different weights: call them one by one"),
)
def _(method):
    models = [model_of(method) for _ in range(2)]
    with torch.no_grad():
        models[1][0].keep_(type(models[1][0].topology).random((24, 12), models[1][0].density), models[1][0].values)
    held, buffers = stack_module_state(models)
    skeleton = model_of(method)
    found = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(held, buffers)
    torch.testing.assert_close(found, torch.stack([dense(model)(x) for model in models]))


@piece(FAMILY, "one set of parameters for each example, `vmap` over them")
def _(method):
    model, twin = pair(method)
    scales = torch.tensor([1.0, 2.0, -1.0])

    def scaled(each):
        held = parameters(each)
        return vmap(lambda s: functional_call(each, {name: s * p for name, p in held.items()}, (x,)))(scales)

    torch.testing.assert_close(scaled(model), scaled(twin))


@piece(FAMILY, "`inference_mode`, then training again")
def _(method):
    model, twin = pair(method)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), twin(x))
    for each in (model, twin):
        nn.functional.cross_entropy(each(x), y).backward()
    torch.testing.assert_close(model[0].bias.grad, twin[0].bias.grad)
