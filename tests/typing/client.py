"""A user's typed code: `make lint` checks it with mypy in strict mode; an unused `type: ignore` is an error."""

from collections.abc import Mapping
from typing import assert_type

import torch
from torch import Tensor, nn

from cggm import CGGM, CGGMOptimizerWrapper, Encoder, ModalityDropout, Policy, Recorder, UnimodalLosses
from cggm.tasks import Classification

model = nn.ModuleDict({"audio": nn.Linear(8, 4), "image": nn.Linear(6, 4), "head": nn.Linear(8, 3)})
assert_type(UnimodalLosses() + CGGM() + ModalityDropout(0.2), Policy)
optimizer = CGGMOptimizerWrapper(
    torch.optim.SGD(model.parameters(), lr=0.1),
    model,
    encoders={"audio": "audio", "image": Encoder("image", layout="B D")},
    head="head",
    policy=CGGM(rho=1.0),
    task=Classification(label_smoothing=0.1),
    apply="gradient",
)
assert_type(optimizer.balance(torch.zeros(()), torch.zeros(4)), Tensor)
assert_type(optimizer.modalities, tuple[str, ...])
assert_type(Recorder(optimizer).history(), dict[str, Tensor])
statistics: Mapping[str, Tensor] = optimizer.statistics

CGGM(rho="1")  # type: ignore[arg-type]
ModalityDropout()  # type: ignore[call-arg]
Encoder("audio", layout=3)  # type: ignore[arg-type]
CGGMOptimizerWrapper(model, encoders={})  # type: ignore[call-arg,arg-type]
optimizer.apply = "features"  # type: ignore[attr-defined]
