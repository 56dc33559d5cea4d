"""C-LoRA as a ComfyUI node pack. Nothing is imported before ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack's nodes, for ComfyUI, which calls this once while it starts."""
    from .nodes import Extension

    return Extension()
