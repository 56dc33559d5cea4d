"""The dtypes that a base can compute in while it learns. In a file of its own, since every recipe names one."""

from collections.abc import Mapping
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST: Mapping[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
