"""`report`: look at all of a museum, and write down what was seen."""

import argparse
import json
from pathlib import Path

from ..errors import CLoRAError
from ..museum.file import load_museum
from ..report import Looks, Report, as_page, exhibits_figure, moved_figure, overlap_figure, reviewed
from .model import add_base, open_chosen
from .progress import Bar, Say


def add(commands: argparse._SubParsersAction) -> None:
    usual = Looks()
    parser = commands.add_parser(
        "report",
        help="look at all of a museum: pictures, overlaps, what is forgotten",
        description="Sample every exhibit as it was when it was learned and as it is now, and prompts without any of "
        "the museum's words; measure how far the model's predictions moved. Writes report.html, which needs no other "
        "file, its figures as pictures, and report.json.",
    )
    add_base(parser)
    parser.add_argument("--museum", type=Path, required=True, help="museum file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--pictures", type=int, default=usual.pictures, help=f"per exhibit ({usual.pictures})")
    parser.add_argument("--everyday", type=int, default=usual.everyday, help=f"everyday prompts ({usual.everyday})")
    parser.add_argument("--steps", type=int, default=usual.steps, help=f"sampling steps ({usual.steps})")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance, 1 is none (7.5; 5 on the starter)")
    parser.add_argument("--seed", type=int, default=usual.seed, help=f"of the noise ({usual.seed})")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels (the base's own)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    museum = load_museum(arguments.museum)
    base = open_chosen(arguments)
    size = arguments.size or base.resolution_px
    guidance = base.family.guidance if arguments.guidance is None else arguments.guidance
    looks = Looks(arguments.pictures, arguments.everyday, arguments.steps, guidance, arguments.seed)
    with Bar("looking", 1) as bar:
        report = reviewed(base, museum, looks, latent_shape=base.latent_shape(size, size), report=bar.of)
    written = write(report, arguments.out, title=arguments.museum.name)
    for word, moved in zip(museum.words, report.forgetting, strict=True):
        say(f"{word}: moved {moved:.2f} since it was learned")
    say(f"everyday prompts: moved {report.damage:.2f} from the base model")
    say(f"Files: {', '.join(map(str, written))}")


def write(report: Report, folder: Path, *, title: str) -> list[Path]:
    """The report's files, the page first."""
    figures = {"exhibits": exhibits_figure, "overlap": overlap_figure, "moved": moved_figure}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page, numbers = folder / "report.html", folder / "report.json"
        page.write_text(as_page(report, title=title), encoding="utf-8")
        numbers.write_text(json.dumps(report.numbers(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, figure in figures.items():
            figure(report).save(folder / f"{name}.png")
    except OSError as error:
        raise CLoRAError(f"The report cannot be written to '{folder}': {error}.") from error
    return [page, numbers, *(folder / f"{name}.png" for name in figures)]
