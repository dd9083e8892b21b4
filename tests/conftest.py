"""One thread for every test: two busy cores and nested pools would only slow each other down."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
