"""`-p tests.host.on_paged_device`, after `-p tests.host.on_second_device`: weights come to the device page by page.

Newer ComfyUIs keep models in ordinary memory and bring each weight to an NVIDIA card when its module runs ("dynamic
VRAM"). All of that is ComfyUI's own here. Only comfy-aimdo, the library that hands out a card's memory, is stood in
for: a page is a tensor on the device, and there is room for all.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.second_device import NAME

Page = tuple["Pages", int, int]  # whose, at which address, of how many bytes


class Pages:
    """What a model has on the device."""

    def __init__(self, size: int, index: int) -> None:
        self.used = 0
        self.tensors: dict[int, Tensor] = {}

    def alloc(self, size: int) -> Page:
        address = self.used
        self.used += size
        self.tensors[address] = torch.empty(size, dtype=torch.uint8, device=f"{NAME}:0")
        return self, address, size

    def prioritize(self) -> None: ...

    def loaded_size(self) -> int:
        return self.used

    def free_memory(self, size: float) -> int:
        return 0


class NoBuffer:
    """Memory that a card reads faster; here is none."""

    def __init__(self, *sizes: int) -> None:
        self.size = 0


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[None]:
    import comfy.cli_args
    import comfy.memory_management
    import comfy.model_patcher
    import comfy.utils
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch
    from safetensors import safe_open

    def load_safetensors(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}

    def tensor(page: Page, device: torch.device | None = None) -> Tensor:
        return page[0].tensors[page[1]]

    listed = comfy.model_patcher.ModelPatcher._load_list

    def load_list(self, for_dynamic: bool = False, default_device: torch.device | None = None) -> list:
        """Parameters beside submodules are moved here, since one in Python cannot be given data of another device."""
        for module in self.model.modules() if default_device else ():
            if any(True for child in module.children() if next(child.parameters(), None) is not None):
                for name, parameter in module.named_parameters(recurse=False):
                    there = parameter.to(default_device, getattr(module, f"{name}_comfy_model_dtype", None))
                    setattr(module, name, torch.nn.Parameter(there, requires_grad=False))
        return listed(self, for_dynamic)

    answers: list[tuple[Any, str, Any]] = [
        (comfy_aimdo.model_vbar, "ModelVBAR", Pages),
        (comfy_aimdo.model_vbar, "vbar_fault", lambda page: id(tensor(page))),
        (comfy_aimdo.model_vbar, "vbar_signature_compare", lambda a, b: a is not None and a == b),
        (comfy_aimdo.model_vbar, "vbar_unpin", lambda page: None),
        (comfy_aimdo.model_vbar, "vbars_analyze", lambda device=None: 0),
        (comfy_aimdo.host_buffer, "HostBuffer", NoBuffer),
        (comfy_aimdo.torch, "aimdo_to_tensor", tensor),
        (comfy.cli_args.args, "disable_pinned_memory", True),
        (comfy.memory_management, "aimdo_enabled", True),
        (comfy.utils, "load_safetensors", load_safetensors),
        (comfy.model_patcher.ModelPatcher, "_load_list", load_list),
        (comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic),
    ]
    with pytest.MonkeyPatch.context() as patched:
        for where, name, answer in answers:
            patched.setattr(where, name, answer)
        return (yield)
