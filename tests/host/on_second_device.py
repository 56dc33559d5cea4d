"""`python -m pytest -p tests.host.on_second_device tests/host`: the tests with ComfyUI on another device than the CPU.

ComfyUI then takes `tests.second_device` for its graphics card of 16 GiB, moves its models there and back, and computes
in float32. (A test that asks for inference tensors fails there: the device has none.)
"""

from collections.abc import Iterator

import pytest
import torch

from tests.second_device import NAME, second_device

MEMORY = 2**34


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[None]:
    import comfy.model_management as management
    from clora_pack.nodes.host import memory, model, resident, view

    with pytest.MonkeyPatch.context() as patched, second_device() as device:

        def memory_of(ordinary):
            def answered(dev: torch.device | None = None, *more: bool, **named: bool):
                if (dev or device).type != NAME:
                    return ordinary(dev, *more, **named)
                return (MEMORY, MEMORY) if any((*more, *named.values())) else MEMORY

            return answered

        answers = {
            "get_torch_device": lambda: device,
            "text_encoder_device": lambda: device,
            "should_use_fp16": lambda *_, **__: False,
            "should_use_bf16": lambda *_, **__: False,
            "get_free_memory": memory_of(management.get_free_memory),
            "get_total_memory": memory_of(management.get_total_memory),
            "cpu_state": management.CPUState.GPU,
            "vram_state": management.VRAMState.NORMAL_VRAM,
        }
        for name, answer in answers.items():
            patched.setattr(management, name, answer)
        for module in (model, memory, resident, view):  # take the device's tensors for no other kind of weights
            patched.setattr(module, "stored_dtype", lambda weight: weight.dtype)
        return (yield)
