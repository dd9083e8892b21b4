"""The tolerance table accepts a correct kernel's rounding errors and little more."""

import pytest
import torch

from tolerances import ROUNDING, assert_elements

DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


@DTYPES
def test_one_unit_passes_and_two_fail(dtype):
    wanted = torch.tensor([1.0, -4.0, 2**-9, 0.0], dtype=dtype)
    unit = torch.finfo(dtype).eps
    assert_elements("scaled gradient", wanted * (1 + unit), wanted)
    for index in range(3):  # each element for itself: the largest does not excuse the others
        wrong = wanted.clone()
        wrong[index] *= 1 + 3 * unit
        with pytest.raises(AssertionError, match="scaled gradient in torch"):
            assert_elements("scaled gradient", wrong, wanted)


@DTYPES
def test_zero_means_zero_unless_something_cancelled(dtype):
    zero, rest = torch.zeros(1, dtype=dtype), torch.full((1,), 4 * ROUNDING[torch.float64], dtype=dtype)
    assert_elements("combination", rest, zero, terms=torch.ones(1))
    with pytest.raises(AssertionError, match="combination"):
        assert_elements("combination", torch.full((1,), 1e-3, dtype=dtype), zero)


def test_what_is_not_a_number_never_passes():
    with pytest.raises(AssertionError, match="gram"):
        assert_elements("gram", torch.tensor([float("nan")]), torch.ones(1), terms=1.0)
