"""The dtypes that a base can compute in while it learns. In a file of its own, since every recipe names one."""

from collections.abc import Mapping
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTOCAST: Mapping[Precision, torch.dtype | None] = {**DTYPES, "fp32": None}  # fp32: the dtype of the weights
