"""The dtypes that a base can compute in while it learns. In a file of its own, since every recipe names one."""

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
