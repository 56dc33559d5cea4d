"""What a person sees on a node while it works, and how they stop it."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context
from PIL import Image

from ...clora_core.texts import printable

PREVIEW_PX = 512  # the longest side of a preview picture
LEARNING = "clora.learning"  # the event that web/train_step.js listens to
PANELS_MOST = 64  # learnings that are remembered

# Frontends up to 1.57 set what is said as HTML, where a < before a letter begins an element; 1.58 shows it as it is, so
# that &lt; would be seen. With an invisible word joiner (U+2060) behind them, < and & are text in all of them. Newer
# frontends make links of [[label|address]] by way of __LNK0__, and fail where a text holds that itself.
MARKUP = re.compile(r"[<&](?=[a-zA-Z/!?#])|\[(?=\[)|_(?=_LNK\d)")
BROKEN = "\\g<0>\u2060"

PanelState = Mapping[str, Any]


def say(text: str) -> str:
    """Show a text on the node that runs at the moment, as text whatever it holds. Returns what may go to a page."""
    text = MARKUP.sub(BROKEN, printable(text))
    if context := get_executing_context():
        from server import PromptServer  # not there where nodes are used without ComfyUI's server

        PromptServer.instance.send_progress_text(text, context.node_id, PromptServer.instance.client_id)
    return text


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
    """What the panels of nodes show, so that a page that loads later can ask for it."""

    def __init__(self) -> None:
        self._states: OrderedDict[tuple[str, str], PanelState] = OrderedDict()

    def states(self, workflow: str) -> dict[str, PanelState]:
        """Node → what its panel shows, for the nodes of a workflow that ran since ComfyUI started."""
        return {node: state for (of, node), state in list(self._states.items()) if of == workflow}

    def remember(self, workflow: str, node: str, state: PanelState) -> None:
        self._states[workflow, node] = state
        self._states.move_to_end((workflow, node))
        while len(self._states) > PANELS_MOST:
            self._states.popitem(last=False)


PANELS = Panels()


def panel(workflow: str = "") -> Callable[[PanelState], None]:
    """What to call with all that the panel of the node that runs at the moment shall show. Only what is new is sent.

    workflow: ComfyUI's id of the one that the node stands in; "" where there is none.
    """
    context = get_executing_context()
    if context is None:
        return lambda state: None
    from server import PromptServer

    before: PanelState = {}

    def send(state: PanelState) -> None:
        nonlocal before
        if workflow:  # or no page could ask for it
            PANELS.remember(workflow, context.node_id, state)
        news = {name: value for name, value in state.items() if name not in before or before[name] != value}
        event = {"workflow": workflow, "node": context.node_id, "first": not before, "state": news}
        PromptServer.instance.send_sync(LEARNING, event, PromptServer.instance.client_id)
        before = state

    return send


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
