"""The host: everything of this pack that knows ComfyUI. One file per idea, and nothing is imported here."""
