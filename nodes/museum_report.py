"""C-LoRA Museum Report: what a museum shows, what it has forgotten, and how it affects other prompts."""

from comfy_api.latest import io, ui

from .sockets import MUSEUM, node_schema, seed_input


class MuseumReport(io.ComfyNode):
    """Evaluates a whole museum."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "CLoRA_MuseumReport",
            "C-LoRA Museum Report",
            "Evaluate a museum: sample every exhibit as it was when learned and as it is now, sample prompts without "
            "trigger words, and measure overlaps and prediction changes. Writes one HTML file to the output folder.",
            search_aliases=["evaluate lora", "forgetting", "compare", "contact sheet", "statistics", "c-lora"],
            inputs=[
                io.Model.Input("model", tooltip="The base model, or a model that shows this museum."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                MUSEUM.Input("museum", tooltip="The museum to evaluate, from a Train Step or a Load Museum."),
                io.Int.Input(
                    "pictures",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Pictures per exhibit, each sampled twice. More take longer and are more reliable.",
                ),
                io.Int.Input(
                    "everyday",
                    default=8,
                    min=1,
                    max=100,
                    tooltip="Number of prompts without trigger words to compare with the base model.",
                ),
                io.Int.Input(
                    "sampling_steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Sampling steps per picture. Fewer are faster but less detailed.",
                ),
                seed_input(
                    "report_seed", "Seed of the noise. Reports with the same seed can be compared picture by picture."
                ),
                io.String.Input(
                    "name",
                    default="museum-report",
                    tooltip="Name of the HTML file in the output folder; a number is added. people/mine saves it in a "
                    "folder.",
                ),
            ],
            outputs=[
                io.Image.Output("exhibits", tooltip="Every exhibit, when learned and now."),
                io.Image.Output("overlap", tooltip="How far exhibits change the same weights."),
                io.Image.Output("moved", tooltip="Bar chart: how far the predictions moved."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, vae, museum, name: str, **settings: int) -> io.NodeOutput:
        from .actions.reporting import write_report

        figures, summary = write_report(model, clip, vae, museum, name, **settings)
        previews = [entry for figure in figures for entry in ui.PreviewImage(figure, cls=cls).values]
        return io.NodeOutput(*figures, ui={"images": previews, "text": (summary,)})
