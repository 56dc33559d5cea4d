"""Progress on a node while it runs: texts, the progress bar, and Cancel."""

import re

import comfy.utils
from comfy.model_management import throw_exception_if_processing_interrupted as check_interrupted
from comfy_execution.utils import get_executing_context
from PIL import Image

from ...clora_core.texts import printable
from .panels import Panel, running_workflow

PREVIEW_PX = 512  # the longest side of a preview picture
LOADED = ("ckpt_name", "unet_name", "model_name")  # what loaders of models call the file

# Frontends up to 1.57 insert progress texts as HTML, where a < before a letter starts an element; 1.58 inserts them as
# text, so &lt; would be visible. Followed by an invisible word joiner (U+2060), < and & are plain text in all of them.
# Newer frontends replace [[label|address]] by __LNK0__ to make links, and fail on a text that contains __LNK0__ itself.
MARKUP = re.compile(r"[<&](?=[a-zA-Z/!?#])|\[(?=\[)|_(?=_LNK\d)")
BROKEN = "\\g<0>\u2060"


def say(text: str, *, short: str = "", page: str = "") -> str:
    """Show a text, never as markup, on the node that is running. Returns the text in a form that is safe on a page.

    short: a shorter text for the panel. page: the name of an HTML file in the output folder that the node
    offers to open.
    """
    panel = Panel()
    panel.send({"text": short or text, "page": page})
    panel.keep()
    return say_without_panel(text)


def warn(text: str) -> None:
    """Show a text on the node that is running, which may be another pack's, until it runs again."""
    Panel().send({"text": text, "page": "", "until_it_runs": True}, remembered=False)
    say_without_panel(text)


def say_without_panel(text: str) -> str:
    """Show a text on the node that is running, for clients that have no panels.

    ComfyUI's page would show it on any node with the same id, whichever workflow is open.
    """
    text = MARKUP.sub(BROKEN, printable(text))
    if (context := get_executing_context()) and not running_workflow():
        from server import PromptServer  # missing if nodes run without ComfyUI's server

        PromptServer.instance.send_progress_text(text, context.node_id, PromptServer.instance.client_id)
    return text


class NodeProgress:
    """The progress bar and the preview picture of the node that is running."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(1)
        self._pictures = not running_workflow()  # as texts; the panel shows them

    def update(self, step: int, steps: int, picture: Image.Image | None = None) -> None:
        """Show that this many steps are done. Raises ComfyUI's interrupt after Cancel."""
        check_interrupted()
        preview = ("JPEG", picture, PREVIEW_PX) if picture and self._pictures else None
        self._bar.update_absolute(step, steps, preview)  # hosts differ in the name of the third argument


def checkpoint_name(prompt: object, node: str | None) -> str:
    """The file that the `model` of a node comes from, as its loader names it, or that it is the built-in model; "" if
    the graph does not show it."""
    seen = set()
    while isinstance(prompt, dict) and node in prompt and node not in seen:
        seen.add(node)
        if prompt[node].get("class_type") == "CLoRA_StarterModel":
            return "built-in model"
        inputs = prompt[node].get("inputs", {})
        if names := [inputs[key] for key in LOADED if isinstance(inputs.get(key), str)]:
            return names[0]
        link = inputs.get("model")
        node = link[0] if isinstance(link, list) else None
    return ""


def waiting(text: str) -> None:
    """The callback of a file that waits for another program. Raises ComfyUI's interrupt after Cancel."""
    check_interrupted()
    say(text)
