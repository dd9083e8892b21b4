"""Kernels remember which memory they have checked for overlaps; other memory is checked again."""

import pytest
import torch

from cggm_ops import AdamSettings, SGDSettings, adamw_, scale_, sgd_

ROUNDS = 3  # the first is checked, the others are remembered


class Step:
    """An AdamW step that has been taken several times with the same tensors."""

    def __init__(self):
        self.block = torch.zeros(64)
        self.params = [self.block[:8], self.block[16:24]]
        self.grads, self.exp_avgs, self.exp_avg_sqs = ([torch.ones(8) for _ in range(2)] for _ in range(3))
        self.steps = [torch.tensor(0.0) for _ in range(2)]
        for _ in range(ROUNDS):
            self.take()

    def take(self):
        states = {"exp_avgs": self.exp_avgs, "exp_avg_sqs": self.exp_avg_sqs, "steps": self.steps}
        with torch.no_grad():
            adamw_(self.params, self.grads, **states, settings=AdamSettings(lr=0.1))

    def refused(self, message):
        before = [t.clone() for t in (self.block, *self.exp_avgs, *self.steps)]
        with pytest.raises(ValueError, match=message):
            self.take()
        assert all(map(torch.equal, before, (self.block, *self.exp_avgs, *self.steps)))


@pytest.fixture
def step():
    return Step()


def test_data_replaced_by_memory_that_overlaps(step):
    step.params[1].data = step.block[4:12]
    step.refused(r"params\[0\] and params\[1\] must not share memory")


def test_data_replaced_by_other_memory(step):
    step.params[1].data = torch.zeros(8)
    step.take()
    assert (step.params[1] < 0).all()
    assert step.steps[1] == ROUNDS + 1


def test_set_to_the_memory_of_a_state(step):
    step.exp_avgs[0].set_(step.exp_avg_sqs[1])
    step.refused(r"exp_avgs\[0\] and exp_avg_sqs\[1\] must not share memory")


def test_set_to_a_view_with_gaps(step):
    step.params[0].set_(step.block.untyped_storage(), 32, (8,), (2,))
    step.refused(r"params\[0\] must fill its memory without gaps")


def test_resized_to_fewer_elements(step):
    step.grads[0].resize_(4)
    step.refused(r"grads\[0\] must have the shape")


def test_resized_into_its_neighbour(step):
    step.params[0].set_(step.block.untyped_storage(), 0, (24,), (1,))
    for tensors in (step.grads, step.exp_avgs, step.exp_avg_sqs):
        tensors[0] = torch.zeros(24)
    step.refused(r"params\[0\] and params\[1\] must not share memory")


def test_moved_to_another_dtype(step):
    step.exp_avgs[1].data = step.exp_avgs[1].double()
    step.refused(r"exp_avgs\[1\] must have the shape, strides and dtype")


def test_memory_that_is_gone(step):
    step.params[0] = torch.zeros(8)
    step.take()
    step.params[0].untyped_storage().resize_(0)
    step.refused(r"params\[0\] has no memory")


def test_a_gradient_that_moves_into_a_parameter(step):
    step.grads[0].data = step.params[1].data
    step.refused(r"grads\[0\] shares memory with params\[1\]")


def test_another_parameter_of_the_same_address():
    """What is remembered belongs to addresses, and not to tensors: both lists are checked alike."""
    block = torch.zeros(16)
    for _ in range(ROUNDS):
        with torch.no_grad():
            sgd_([block[:8]], [torch.ones(8)], settings=SGDSettings(lr=0.1))
    with torch.no_grad(), pytest.raises(ValueError, match=r"grads\[0\] shares memory with params\[0\]"):
        sgd_([block[:8]], [block[4:12]], settings=SGDSettings(lr=0.1))


def test_more_lists_than_are_remembered():
    lists = [[torch.full((4,), float(i)), torch.full((4,), float(i))] for i in range(20)]
    for _ in range(ROUNDS):
        for tensors in lists:
            scale_(tensors, [0, -1], torch.tensor([2.0]))
    assert [tensors[0][0].item() for tensors in lists] == [8.0 * i for i in range(20)]
    lists[0][1].data = lists[0][0].data
    with pytest.raises(ValueError, match="must not share memory"):
        scale_(lists[0], [0, -1], torch.tensor([2.0]))
