"""C-LoRA Museum Report: what a museum shows, what it forgot, and what it did to everything else."""

from comfy_api.latest import io, ui

from .host.progress import say
from .sockets import MUSEUM, SEED_MAX, described


class MuseumReport(io.ComfyNode):
    """Look at all of a museum."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return described(
            "CLoRA_MuseumReport",
            "C-LoRA Museum Report",
            "Sample every exhibit as it was when it was learned and as it is now, and prompts without learned words, "
            "and measure overlaps and how far predictions moved. Writes one HTML file into the output folder.",
            search_aliases=["evaluate lora", "forgetting", "compare", "contact sheet", "statistics", "c-lora"],
            inputs=[
                io.Model.Input("model", tooltip="The base model, or one that shows this museum."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                MUSEUM.Input("museum", tooltip="The museum to look at, from a Train Step or a Load Museum."),
                io.Int.Input(
                    "pictures",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many pictures of each exhibit, each sampled twice. More take more time and tell more.",
                ),
                io.Int.Input(
                    "everyday",
                    default=8,
                    min=1,
                    max=100,
                    tooltip="How many prompts without a learned word are compared with the base model.",
                ),
                io.Int.Input(
                    "sampling_steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Steps of every picture. Fewer are faster and less clear.",
                ),
                io.Int.Input(
                    "report_seed",
                    default=0,
                    min=0,
                    max=SEED_MAX,
                    tooltip="Of the noise. Reports of one seed can be compared picture by picture.",
                ),
                io.String.Input(
                    "name",
                    default="museum-report",
                    tooltip="Of the HTML file in the output folder; a number is added. people/mine puts it into a "
                    "folder.",
                ),
            ],
            outputs=[
                io.Image.Output("exhibits", display_name="exhibits", tooltip="Every exhibit, then and now."),
                io.Image.Output("overlap", display_name="overlap", tooltip="How far exhibits move the same weights."),
                io.Image.Output("moved", display_name="moved", tooltip="How far predictions moved, as bars."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, vae, museum, name: str, **numbers: int) -> io.NodeOutput:
        from .actions.reporting import reported

        figures, summary = reported(model, clip, vae, museum, name, **numbers)
        shown = [entry for figure in figures for entry in ui.PreviewImage(figure, cls=cls).values]
        return io.NodeOutput(*figures, ui={"images": shown, "text": (say(summary),)})
