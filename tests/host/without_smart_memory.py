"""`-p tests.host.without_smart_memory`, after `-p tests.host.on_second_device`: as with `--disable-smart-memory`.

ComfyUI then unloads every model that is not needed at the moment, so the network leaves the device while prompts are
encoded.
"""

from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[None]:
    import comfy.model_management as management

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(management, "DISABLE_SMART_MEMORY", True)
        return (yield)
