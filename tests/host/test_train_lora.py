"""What `benchmarks/train_lora.py` compares: ComfyUI's Train LoRA and ours over the same models."""

import pytest
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.differentiable import ordinary_tensors

from benchmarks.train_lora import RANK, Task, places

from .models import small_models


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_train_as_many_numbers_and_leave_the_model_as_it_was(checkpointing: bool):
    with ordinary_tensors():
        task = Task(small_models("sd15"), 64, "fp32", checkpointing)
        base = HostBase(*task.models)
        before, after = [], []
        task.sides()["floor"](before.append)
        own = sum(RANK * sum(place.shape) for place in base.slots)
        assert task.train_lora(lambda loss: None, places(base)) == own
        assert task.train_lora(lambda loss: None) > 2 * own
        task.sides()["floor"](after.append)
        assert before == after
