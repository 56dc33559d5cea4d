"""C-LoRA Load Pictures: all pictures of a folder, with their captions."""

from comfy_api.latest import io, ui

from .host import folders
from .host.progress import say
from .sockets import node_schema


class LoadPictures(io.ComfyNode):
    """Reads the pictures and captions of a folder for a Train Step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_LoadPictures",
            "C-LoRA Load Pictures",
            "Load all pictures in a folder of ComfyUI's input folder, each in its own shape, with their captions.",
            search_aliases=["load images from folder", "load image dataset", "batch", "captions", "train", "c-lora"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=folders.picture_folders() or [""],  # the frontend drops an input without options
                    tooltip="A folder in ComfyUI's input folder. Its subfolders are read too.",
                ),
                io.String.Input(
                    "files",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="Load only these files of the folder, one per line, such as cat1.png. If empty, loads all "
                    "of them.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    is_output_list=True,
                    tooltip="The pictures, for the images of a Train Step.",
                ),
                io.String.Output(
                    "captions",
                    is_output_list=True,
                    tooltip="The caption of each picture; an empty text if it has none.",
                ),
                io.Mask.Output(
                    "masks",
                    is_output_list=True,
                    tooltip="The mask of each picture, cat.mask.png for cat.jpg; empty if it has none.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, folder: str, files: str = "") -> bool:
        """Turns off ComfyUI's own check: `execute` says which folders there are."""
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, files: str | None = "") -> str:
        """Changes with the files of the folder; or of the input folder if single ones are chosen, or an input is linked
        and so None."""
        return folders.pictures_version("" if folder is None or files is None or files.strip() else folder)

    @classmethod
    def execute(cls, folder: str, files: str = "") -> io.NodeOutput:
        from .actions.loading import load_pictures

        images, captions, masks, sheet, summary = load_pictures(folder, files)
        shown = {"images": ui.PreviewImage(sheet, cls=cls).values, "text": (say(summary),)}
        return io.NodeOutput(images, captions, masks, ui=shown)
