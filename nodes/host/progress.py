"""What a person sees on a node while it works, and how they stop it."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from PIL import Image

PREVIEW_PX = 512  # the longest side of a preview picture
LEARNING = "clora.learning"  # the event that web/train_step.js listens to
TOLD_MOST = 64  # learnings that are remembered

Told = Mapping[str, Any]


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
        self._bar.update_absolute(step, None, preview)  # hosts call the third by different names


class Panels:
    """What the panels of nodes were last told, so that a page which is loaded later can ask."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], Told] = OrderedDict()  # (workflow, node) → what its panel was told

    def told(self, workflow: str) -> dict[str, Told]:
        """Node → what its panel was last told, for the nodes of a workflow that ran since ComfyUI started."""
        return {node: told for (of, node), told in list(self._told.items()) if of == workflow}

    def remember(self, workflow: str, node: str, told: Told) -> None:
        self._told[workflow, node] = told
        self._told.move_to_end((workflow, node))
        while len(self._told) > TOLD_MOST:
            self._told.popitem(last=False)


PANELS = Panels()


def panel(workflow: str = "") -> Callable[[Told], None]:
    """What to call with all that the panel of the node that runs at the moment shall show. Only what is new is sent.

    workflow: ComfyUI's id of the one that the node stands in; "" where there is none.
    """
    context = get_executing_context()
    if context is None:
        return lambda told: None
    from server import PromptServer

    before: Told = {}

    def tell(told: Told) -> None:
        nonlocal before
        if workflow:  # or no page could ask for it
            PANELS.remember(workflow, context.node_id, told)
        news = {name: value for name, value in told.items() if name not in before or before[name] != value}
        event = {"workflow": workflow, "node": context.node_id, "first": not before, "told": news}
        PromptServer.instance.send_sync(LEARNING, event, PromptServer.instance.client_id)
        before = told

    return tell


def workflow_id(extra_pnginfo: object) -> str:
    """ComfyUI's id of the workflow that a prompt was made of, as the browser sends it along; "" where it does not."""
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, dict) else None
    return str(workflow.get("id") or "") if isinstance(workflow, dict) else ""


def waiting(text: str) -> None:
    """What a file that waits for another program calls. Raises ComfyUI's interrupt if Cancel was pressed."""
    check_interrupted()
    say(text)


def check_interrupted() -> None:
    """Raise ComfyUI's interrupt if Cancel was pressed."""
    comfy.model_management.throw_exception_if_processing_interrupted()
