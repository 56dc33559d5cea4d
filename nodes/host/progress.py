"""What a person sees on a node while it works, and how they stop it."""

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from PIL import Image

PREVIEW_PX = 512  # the longest side of a preview picture


def say(text: str) -> None:
    """Show a text on the node that runs at the moment."""
    if context := get_executing_context():
        from server import PromptServer  # not there where nodes are used without ComfyUI's server

        PromptServer.instance.send_progress_text(text, context.node_id, PromptServer.instance.client_id)


class Bar:
    """The bar and the preview picture of the node that runs at the moment."""

    def __init__(self, steps: int) -> None:
        self._bar = comfy.utils.ProgressBar(steps)

    def at(self, step: int, picture: Image.Image | None = None) -> None:
        """So many steps are done. Raises ComfyUI's interrupt if Cancel was pressed."""
        check_interrupted()
        preview = ("JPEG", picture, PREVIEW_PX) if picture else None
        self._bar.update_absolute(step, preview=preview)


def check_interrupted() -> None:
    """Raise ComfyUI's interrupt if Cancel was pressed."""
    comfy.model_management.throw_exception_if_processing_interrupted()
