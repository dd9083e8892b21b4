"""Every implementation rejects invalid arguments of modulation before it changes anything."""

import pytest
import torch
from cases import each_implementation, head, random
from torch.utils._pytree import tree_flatten, tree_unflatten

from cggm_ops import batched_cosine, modulate_, scale_


def overlapping():
    buffer = random(20)
    return [buffer[:12], buffer[11:]]


def duplicate():
    tensor = random(5)
    return [tensor, random(3), tensor]


def scale_case(grads, owner=None, coefficients=None):
    owner = [0] * len(grads) if owner is None else owner
    return grads, owner, torch.tensor([0.5, 2.0]) if coefficients is None else coefficients


REFUSED = {
    "the same tensor twice": (lambda: scale_case(duplicate()), r"grads\[0\] and grads\[2\].*once"),
    "twice, unscaled": (lambda: scale_case(duplicate(), [-1, 0, 0]), r"grads\[0\] and grads\[2\]"),
    "overlapping": (lambda: scale_case(overlapping()), r"grads\[0\] and grads\[1\]"),
    "expanded": (lambda: scale_case([random(4), random(1, 3).expand(2, 3)]), r"grads\[1\].*contiguous"),
    "gaps": (lambda: scale_case([random(4), random(6, 6)[:, :3]]), r"grads\[1\].*contiguous"),
    "every other": (lambda: scale_case([random(4), random(8)[::2]]), r"grads\[1\].*contiguous"),
    "owner too large": (
        lambda: scale_case([random(4)] * 1 + [random(2)], [0, 2]),
        r"owner.*\[-1, 2\).*found 2 at 1",
    ),
    "owner too small": (lambda: scale_case([random(4), random(2)], [0, -2]), r"owner.*found -2 at 1"),
    "owner too short": (lambda: scale_case([random(4), random(2)], [0]), r"owner.*found 1 for 2"),
    "integers": (lambda: scale_case([random(4), torch.ones(3, dtype=torch.int64)]), "grads must be float32"),
    "complex": (
        lambda: scale_case([random(4), torch.ones(3, dtype=torch.complex64)]),
        "grads must be float32",
    ),
    "half coefficients": (lambda: scale_case([random(4)], coefficients=torch.ones(2).half()), "coefficients"),
    "a table of coefficients": (
        lambda: scale_case([random(4)], coefficients=torch.ones(2, 2)),
        "coefficients",
    ),
    "a number for coefficients": (
        lambda: scale_case([random(4)], coefficients=torch.tensor(1.0)),
        "coefficients",
    ),
}
each_refusal = pytest.mark.parametrize(("case", "message"), REFUSED.values(), ids=REFUSED.keys())


def assert_unchanged(call, tensors, message, error=ValueError):
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(error, match=message):
        call()
    assert all(torch.equal(old, new) for old, new in zip(before, tensors, strict=True))


@each_implementation
@each_refusal
def test_scale_refuses(implementation, case, message):
    arguments = case()
    assert_unchanged(lambda: implementation.ops.scale_(*arguments), arguments[0], message)


@each_implementation
@each_refusal
def test_modulate_refuses(implementation, case, message):
    arguments = case()
    assert_unchanged(lambda: implementation.ops.modulate_(*arguments, *head(2)), arguments[0], message)


@each_implementation
def test_modulate_refuses_head_gradients_it_would_change(implementation):
    fusion, unimodal = head(2)
    for part in (fusion, unimodal[1]):
        for shared in (part, part[3:4]):
            grads = [random(5), shared]
            call = implementation.ops.modulate_
            assert_unchanged(
                lambda grads=grads, call=call: call(grads, [0, 1], torch.ones(2) * 2, fusion, unimodal),
                grads,
                "shares memory.*owner -1",
            )
            call(grads, [0, -1], torch.ones(2) * 2, fusion, unimodal)


@each_implementation
def test_modulate_sees_the_memory_of_strided_head_gradients(implementation):
    buffer = random(30)
    grads = [buffer[25:26]]
    with pytest.raises(ValueError, match="fusion shares memory"):
        implementation.ops.modulate_(grads, [0], torch.ones(1) * 2, buffer[:30:2], [random(15)])


@each_implementation
def test_coefficients_that_the_call_would_change_are_refused(implementation):
    grads = [random(5), random(4)]
    call, coefficients = implementation.ops.scale_, grads[1][:2]
    message = r"coefficients shares memory with grads\[1\].*owner -1"
    assert_unchanged(lambda: call(grads, [0, 1], coefficients), grads, message)
    call(grads, [0, -1], coefficients)


def one_on_meta(call):
    """The arguments with one tensor after the other on the device "meta", whose tensors have no memory."""
    flat, tree = tree_flatten(call)
    for index, value in enumerate(flat):
        if isinstance(value, torch.Tensor):
            yield tree_unflatten([*flat[:index], value.to("meta"), *flat[index + 1 :]], tree)


STEP = ([0, 1], torch.ones(2), None, 0.1)
CALLS = {
    "scale_": ([random(3), random(4)], [0, 1], torch.ones(2)),
    "modulate_": ([random(3), random(4)], [0, 1], torch.ones(2), *head(2)),
    "batched_cosine": head(2),
    "batched_cosine_backward": (torch.ones(2), torch.ones(5, dtype=torch.float64), *head(2)),
    "segment_gram": ([random(3), random(3)], 2),
    "segment_combine_": ([random(3)], [random(3)], torch.ones(1, 2)),
    "adamw_": (
        *([random(3), random(4)] for _ in range(4)),
        [torch.zeros(()), torch.zeros(())],
        *STEP,
        0.9,
        0.99,
        1e-8,
        0.0,
        True,
        False,
    ),
    "sgd_": ([random(3), random(4)], [random(3), random(4)], [], *STEP, 0.0, 0.0, 0.0, *[False] * 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_tensors_on_meta_among_others_are_refused(name):
    mixed = list(one_on_meta(CALLS[name]))
    assert len(mixed) >= 2
    for arguments in mixed:
        with pytest.raises(ValueError, match="must be on"):
            getattr(torch.ops.cggm_ops, name)(*arguments)


HEADS = {
    "lengths": (lambda: (random(4), [random(4), random(5)]), r"unimodal\[1\].*\(4\), found 5"),
    "dtypes": (lambda: (random(4), [random(4).double()]), r"unimodal\[0\] must have the dtype of fusion"),
    "integers": (
        lambda: (torch.ones(4, dtype=torch.int32), [torch.ones(4, dtype=torch.int32)]),
        "fusion must be",
    ),
}


@each_implementation
@pytest.mark.parametrize(("case", "message"), HEADS.values(), ids=HEADS.keys())
def test_head_gradients_are_refused(implementation, case, message):
    fusion, unimodal = case()
    with pytest.raises(ValueError, match=message):
        implementation.ops.batched_cosine(fusion, unimodal)
    grads = [random(3)]
    assert_unchanged(
        lambda: implementation.ops.modulate_(grads, [0], torch.full((len(unimodal),), 2.0), fusion, unimodal),
        grads,
        message,
    )


@each_implementation
@pytest.mark.parametrize(("numbers", "products"), [(1, 5), (2, 4)])
def test_the_backward_of_the_cosines_refuses_other_sizes(implementation, numbers, products):
    backward = implementation.ops.batched_cosine_backward
    with pytest.raises(ValueError, match=rf"\(2\).*found {numbers} and {products}"):
        backward(torch.ones(numbers), torch.ones(products, dtype=torch.float64), *head(2))


@each_implementation
def test_modulate_needs_a_head_gradient_per_coefficient(implementation):
    grads = [random(3)]
    assert_unchanged(
        lambda: implementation.ops.modulate_(grads, [0], torch.ones(3) * 2, *head(2)),
        grads,
        r"unimodal.*\(3\), found 2",
    )


def test_public_functions_pass_refusals_on():
    with pytest.raises(ValueError, match="must not share"):
        scale_(duplicate(), [0, 0, 0], torch.ones(1))
    with pytest.raises(ValueError, match=r"unimodal\[0\]"):
        batched_cosine(random(3), random(2, 4))
    with pytest.raises(ValueError, match="owner"):
        modulate_([random(3)], [5], torch.ones(2), *head(2))


def test_a_refused_call_changes_no_value():
    grads = duplicate()
    before = [grad.clone() for grad in grads]
    with pytest.raises(ValueError, match="share"):
        scale_(grads, [0, 0, 0], torch.ones(1))
    assert all(torch.equal(grad, one) for grad, one in zip(grads, before, strict=True))


def test_sparse_gradients_are_refused():
    sparse = torch.eye(3).to_sparse()
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        scale_([sparse], [0], torch.tensor([2.0]))
    assert torch.equal(sparse.to_dense(), torch.eye(3))
