"""C-LoRA as a ComfyUI node pack. Nothing is imported until ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack's nodes. ComfyUI calls this once at startup."""
    from .nodes import Extension

    return Extension()
