"""What Museum Report does."""

from pathlib import Path

from torch import Tensor

from ...clora_core.model.sampling import Sampling
from ...clora_core.museum.museum import Museum
from ...clora_core.report.figures import figures_of
from ...clora_core.report.page import as_page
from ...clora_core.report.review import ReportSettings, make_report
from ..host.base import VAE, HostBase
from ..host.differentiable import ordinary_tensors
from ..host.folders import new_output_path, output_folder, short
from ..host.model import ModelPatcher
from ..host.progress import NodeProgress, say
from ..host.view import base_beneath
from ..host.words import CLIP
from .pictures import from_files


def write_report(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    museum: Museum,
    name: str,
    *,
    pictures: int,
    everyday: int,
    sampling_steps: int,
    report_seed: int,
) -> tuple[list[Tensor], str]:
    """The figures as ComfyUI images, and a summary with the path of the page, which is also shown on the node.

    model: the base, or a model that shows this museum or an earlier state of it.
    """
    path = new_output_path(name, ".html")
    with ordinary_tensors():
        base = HostBase(*base_beneath(model, clip, museum), vae)
        settings = ReportSettings(pictures, everyday, Sampling(sampling_steps, base.family.guidance, report_seed))
        shape = base.latent_shape(base.resolution_px, base.resolution_px)
        review = make_report(base, museum, settings, latent_shape=shape, report=NodeProgress().update)
    figures = [from_files([figure]) for figure in figures_of(review).values()]
    try:
        path.write_text(as_page(review, title=Path(name).name), encoding="utf-8")
    except OSError as error:
        return figures, say(f"The page could not be written to '{path}': {error.strerror}. The figures are complete.")
    summary = f"{len(museum.exhibits)} exhibits · everyday prompts moved {review.damage:.2f} from the base model"
    page = path.relative_to(output_folder()).as_posix()
    return figures, say(f"{path}: {summary}", short=f"{short(path)}: {summary}", page=page)
