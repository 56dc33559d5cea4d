"""What Museum Report does."""

from pathlib import Path

from torch import Tensor

from ...clora_core.museum.museum import Museum
from ...clora_core.report.figures import figures_of
from ...clora_core.report.page import as_page
from ...clora_core.report.review import ReportSettings, make_report
from ..host.base import VAE, HostBase
from ..host.differentiable import ordinary_tensors
from ..host.model import ModelPatcher
from ..host.output import new_output_path
from ..host.progress import Bar
from ..host.view import base_beneath
from ..host.words import CLIP
from .pictures import from_files


def reported(
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
    """The figures, a picture each as the host's, and where the page was written, in words.

    model: the base, or one that shows this museum or an earlier state of it.
    """
    path = new_output_path(name, ".html")
    bar: Bar | None = None

    def report(done: int, of: int) -> None:
        nonlocal bar
        bar = bar or Bar(of)
        bar.at(done)

    with ordinary_tensors():
        base = HostBase(*base_beneath(model, clip, museum), vae)
        settings = ReportSettings(pictures, everyday, sampling_steps, base.family.guidance, report_seed)
        shape = base.latent_shape(base.resolution_px, base.resolution_px)
        seen = make_report(base, museum, settings, latent_shape=shape, report=report)
    path.write_text(as_page(seen, title=Path(name).name), encoding="utf-8")
    figures = [from_files([figure]) for figure in figures_of(seen).values()]
    summary = f"{path}: {len(museum.exhibits)} exhibits · everyday prompts moved {seen.damage:.2f} from the base model"
    return figures, summary
