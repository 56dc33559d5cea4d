"""Progress on a node while it runs: texts, the progress bar, the panel, and Cancel."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import comfy.utils
from comfy.model_management import throw_exception_if_processing_interrupted as check_interrupted
from comfy_execution.utils import get_executing_context
from PIL import Image

from ...clora_core.texts import printable

PREVIEW_PX = 512  # the longest side of a preview picture
LEARNING = "clora.learning"  # the event that web/train_step.js listens to
PANELS_MOST = 64  # training runs to remember

# Frontends up to 1.57 insert progress texts as HTML, where a < before a letter starts an element; 1.58 inserts them as
# text, so &lt; would be visible. Followed by an invisible word joiner (U+2060), < and & are plain text in all of them.
# Newer frontends replace [[label|address]] by __LNK0__ to make links, and fail on a text that contains __LNK0__ itself.
MARKUP = re.compile(r"[<&](?=[a-zA-Z/!?#])|\[(?=\[)|_(?=_LNK\d)")
BROKEN = "\\g<0>\u2060"

PanelState = Mapping[str, Any]
_panels: OrderedDict[tuple[str, str], PanelState] = OrderedDict()  # (workflow, node) → state, for pages that load later


def say(text: str) -> str:
    """Show a text, never as markup, on the node that is running. Returns the text in a form that is safe on a page."""
    text = MARKUP.sub(BROKEN, printable(text))
    if context := get_executing_context():
        from server import PromptServer  # missing if nodes run without ComfyUI's server

        PromptServer.instance.send_progress_text(text, context.node_id, PromptServer.instance.client_id)
    return text


class NodeProgress:
    """The progress bar and the preview picture of the node that is running."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(1)

    def update(self, step: int, steps: int, picture: Image.Image | None = None) -> None:
        """Show that this many steps are done. Raises ComfyUI's interrupt after Cancel."""
        check_interrupted()
        preview = ("JPEG", picture, PREVIEW_PX) if picture else None
        self._bar.update_absolute(step, steps, preview)  # hosts differ in the name of the third argument


def panel_states(workflow: str) -> dict[str, PanelState]:
    """Node → state of its panel, for the nodes of a workflow that ran since ComfyUI started."""
    return {node: state for (owner, node), state in list(_panels.items()) if owner == workflow}


def panel(workflow: str = "") -> Callable[[PanelState], None]:
    """A function that sends a state to the panel of the node that is running. Only changed values are sent.

    workflow: ComfyUI's id of the node's workflow; "" if unknown.
    """
    context = get_executing_context()
    if context is None:
        return lambda state: None
    from server import PromptServer

    previous: PanelState = {}

    def send(state: PanelState) -> None:
        nonlocal previous
        if workflow:  # without it, no page could ask for the state
            _panels[workflow, context.node_id] = state
            _panels.move_to_end((workflow, context.node_id))
            while len(_panels) > PANELS_MOST:
                _panels.popitem(last=False)
        changes = {name: value for name, value in state.items() if name not in previous or previous[name] != value}
        event = {"workflow": workflow, "node": context.node_id, "first": not previous, "state": changes}
        PromptServer.instance.send_sync(LEARNING, event, PromptServer.instance.client_id)
        previous = state

    return send


def workflow_id(extra_pnginfo: object) -> str:
    """ComfyUI's id of the workflow behind a prompt, as the browser sends it; "" if it is missing."""
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, dict) else None
    return str(workflow.get("id") or "") if isinstance(workflow, dict) else ""


def waiting(text: str) -> None:
    """The callback of a file that waits for another program. Raises ComfyUI's interrupt after Cancel."""
    check_interrupted()
    say(text)
