"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import cggm
import cggm_ops

MODULES = sorted(
    module.name
    for package in (cggm, cggm_ops)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.name.endswith(("__main__", "._C"))
    and ".data." not in module.name
    and "triton" not in module.name
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:  # an extra that is not installed here
        if error.name.split(".")[0] in ("cggm", "cggm_ops", "torch"):
            raise
        pytest.skip(f"{error.name} is not installed")
    torch.manual_seed(0)
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.failed == 0
