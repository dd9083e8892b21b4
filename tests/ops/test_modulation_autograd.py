"""Modulation under autograd, fake tensors and torch.compile."""

import pytest
import torch
from cases import assert_same_bits, coefficients, head, random
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.library import opcheck

from cggm_ops import batched_cosine, modulate_, reference, scale_

operators = torch.ops.cggm_ops


def test_opcheck_of_the_backward():
    fusion, unimodal = head(3, 600)
    products = reference.head_products(fusion, unimodal)
    opcheck(operators.batched_cosine_backward.default, (torch.ones(3), products, fusion, unimodal))


def test_opcheck_of_the_differentiable_cosine():
    fusion, unimodal = head(3, 600)
    opcheck(operators.batched_cosine.default, (fusion.requires_grad_(), unimodal))


@pytest.mark.parametrize("shape", [(17,), (3, 5)])
def test_first_and_second_derivatives(shape):
    fusion = random(*shape, dtype=torch.float64).requires_grad_()
    unimodal = [random(*shape, dtype=torch.float64, seed=1 + m) for m in range(3)]
    unimodal.append(torch.zeros(shape, dtype=torch.float64))
    torch.autograd.gradcheck(lambda f: batched_cosine(f, unimodal), fusion)
    torch.autograd.gradgradcheck(lambda f: batched_cosine(f, unimodal), fusion)


def test_a_zero_gradient_gets_no_derivative_of_any_order():
    fusion = torch.zeros(5, requires_grad=True)
    cosines = batched_cosine(fusion, [torch.ones(5)])
    (first,) = torch.autograd.grad(cosines.sum(), fusion, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), fusion)
    assert first.tolist() == second.tolist() == [0.0] * 5


def test_the_gradient_has_the_shape_of_the_fusion_gradient():
    fusion, unimodal = head(2, 600)
    leaf = fusion.view(20, 30).T.requires_grad_()
    batched_cosine(leaf, unimodal).sum().backward()
    assert leaf.grad.shape == (30, 20)


def test_the_cosine_is_not_differentiable_in_unimodal_and_says_so():
    fusion, unimodal = head(2)
    unimodal[1].requires_grad_()
    with pytest.raises(RuntimeError, match=r"unimodal.*detach"):
        batched_cosine(fusion, unimodal)
    with torch.no_grad():
        assert not batched_cosine(fusion, unimodal).requires_grad


def test_a_stack_and_a_list_are_the_same():
    fusion, unimodal = head(3)
    assert_same_bits(batched_cosine(fusion, torch.stack(unimodal)), batched_cosine(fusion, unimodal))
    both = [
        modulate_([torch.ones(3)], [0], coefficients(), fusion, u)[0]
        for u in (unimodal, torch.stack(unimodal))
    ]
    assert_same_bits(*both)


MUTATIONS = {
    "scale_": lambda grads: scale_(grads, [0] * len(grads), coefficients()),
    "modulate_": lambda grads: modulate_(grads, [0] * len(grads), coefficients(), *head(3)),
    "operator scale_": lambda grads: operators.scale_(grads, [0] * len(grads), coefficients()),
    "operator modulate_": lambda grads: operators.modulate_(
        grads, [0] * len(grads), coefficients(), *head(3)
    ),
}
each_mutation = pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS.keys())


@each_mutation
def test_a_change_is_counted_once(mutate):
    grads = [torch.ones(3), torch.ones(2)]
    mutate(grads)
    assert [grad._version for grad in grads] == [1, 1]


@each_mutation
def test_backward_through_a_changed_tensor_is_refused_by_autograd(mutate):
    leaf, saved = torch.ones(3, requires_grad=True), torch.full((3,), 2.0)
    product = (leaf * saved).sum()
    mutate([saved])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@each_mutation
def test_tensors_that_autograd_follows_are_refused(mutate):
    leaf = torch.ones(3, requires_grad=True)
    for tensor in (leaf, leaf * 2):
        with pytest.raises(RuntimeError, match=r"grads holds a tensor that requires grad.*no_grad"):
            mutate([torch.ones(2), tensor])
    with torch.no_grad():
        mutate([leaf])
    assert leaf.tolist() == pytest.approx([0.3] * 3)


@each_mutation
def test_inference_mode(mutate):
    with torch.inference_mode():
        grads = [torch.ones(3)]
        mutate(grads)
    assert grads[0].tolist() == pytest.approx([0.3] * 3)


def test_gradients_of_parameters_are_the_usual_case():
    layer = torch.nn.Linear(4, 3)
    layer(torch.ones(2, 4)).sum().backward()
    expected = [p.grad * 0.5 for p in layer.parameters()]
    scale_([p.grad for p in layer.parameters()], [0, 0], torch.tensor([0.5]))
    for parameter, wanted in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


@pytest.mark.parametrize("device", ["fake", "meta"])
def test_shapes_without_data(device):
    with FakeTensorMode() if device == "fake" else torch.device("meta"):
        fusion, unimodal = torch.empty(7), [torch.empty(7)] * 2
        grads = [torch.empty(3, 4), torch.empty(2)]
        assert batched_cosine(fusion, unimodal).shape == (2,)
        assert scale_(grads, [0, 1], torch.empty(2)).dtype == torch.float64
        cosines, sq_norms = modulate_(grads, [0, -1], torch.empty(2), fusion, unimodal)
        assert (cosines.shape, sq_norms.shape) == ((2,), (3,))


def whole_step(leaf, unimodal, grads, scales):
    """Use a changed gradient afterwards: a compiler must neither reorder nor drop the change."""
    cosines = batched_cosine(leaf, unimodal)
    sq_norms = scale_(grads, [0, 1], scales)
    other, more = modulate_(grads, [1, -1], scales, leaf.detach(), unimodal)
    return cosines, sq_norms, other, more, grads[0] + grads[1].sum()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_graphs_give_the_same_bits(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(whole_step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in (64, 96):
        results = []
        for function in (whole_step, compiled):
            fusion, unimodal = head(2, size)
            grads = [random(size, seed=5), random(3, 4, seed=6)]
            leaf = fusion.requires_grad_()
            outputs = function(leaf, unimodal, grads, torch.tensor([0.5, 3.0]))
            outputs[0].sum().backward()
            results.append([*outputs, *grads, leaf.grad])
        for actual, wanted in zip(*results, strict=True):
            assert_same_bits(actual, wanted)


def test_transforms_of_torch_func():
    fusion, unimodal = (
        random(7, dtype=torch.float64),
        [random(7, dtype=torch.float64, seed=m) for m in (1, 2)],
    )
    tangent = random(7, dtype=torch.float64, seed=3)
    leaf = fusion.clone().requires_grad_()
    expected = torch.autograd.functional.jacobian(lambda f: batched_cosine(f, unimodal), leaf)  # [M, D]

    def cosines(f):
        return batched_cosine(f, unimodal)

    torch.testing.assert_close(torch.func.jvp(cosines, (fusion,), (tangent,))[1], expected @ tangent)
    torch.testing.assert_close(torch.func.grad(lambda f: cosines(f).sum())(fusion), expected.sum(0))
    both = torch.func.vmap(cosines)(torch.stack([fusion, -fusion]))
    torch.testing.assert_close(both, torch.stack([cosines(fusion), -cosines(fusion)]))


@each_mutation
def test_tangents_are_refused(mutate):
    grad = torch.ones(3)
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            mutate([forward_ad.make_dual(grad, torch.ones(3))])
        mutate([torch.ones(3)])
    assert grad.tolist() == [1.0] * 3


def test_a_change_under_vmap_is_refused():
    with pytest.raises(RuntimeError, match="Batching rule not implemented for cggm_ops::scale_"):
        torch.func.vmap(lambda row: scale_([row], [0], torch.ones(1)))(torch.ones(2, 3))


def test_the_operator_of_the_cosine_refuses_tangents():
    fusion, unimodal = head(2)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        operators.batched_cosine(forward_ad.make_dual(fusion, fusion), unimodal)
