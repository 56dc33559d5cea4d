"""`report`: sample and measure a whole museum, and write a report."""

import argparse
import json
import os
from pathlib import Path

from ..errors import CLoRAError
from ..museum.file import check_names, load_museum
from ..report.figures import figures_of
from ..report.page import as_page
from ..report.review import Report, ReportSettings, make_report
from .model import add_base, add_sampling, open_chosen, sampling_of
from .progress import Bar, Say


def add(commands: argparse._SubParsersAction) -> None:
    defaults = ReportSettings()
    parser = commands.add_parser(
        "report",
        help="report on a museum: pictures, overlaps and forgetting",
        description="Sample every exhibit as it was when it was learned and as it is now, and everyday prompts without "
        "any of the museum's words; measure how far the model's predictions moved. Writes a self-contained "
        "report.html, the figures as pictures, and report.json.",
    )
    add_base(parser)
    parser.add_argument("--museum", type=Path, required=True, help="museum file")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--pictures", type=int, default=defaults.pictures, help="per exhibit (%(default)s)")
    parser.add_argument("--everyday", type=int, default=defaults.everyday, help="everyday prompts (%(default)s)")
    add_sampling(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, say: Say) -> None:
    check_names(arguments.out)
    museum = load_museum(arguments.museum)
    _create(arguments.out)
    base = open_chosen(arguments)
    sampling, shape = sampling_of(arguments, base)
    settings = ReportSettings(arguments.pictures, arguments.everyday, sampling)
    with Bar("sampling", 1) as bar:
        report = make_report(base, museum, settings, latent_shape=shape, report=bar.of)
    files = _write(report, arguments.out, title=arguments.museum.name)
    for word, moved in zip(museum.words, report.moved, strict=True):
        say(f"{word}: moved {moved:.2f} since it was learned")
    say(f"everyday prompts: moved {report.damage:.2f} from the base model")
    say(f"Files: {', '.join(map(str, files))}")


def _create(folder: Path) -> None:
    """Create the output folder before the work. Raises CLoRAError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CLoRAError(
            f"The folder '{folder}' for the report cannot be created: {error.strerror}. Choose another."
        ) from error
    if not os.access(folder, os.W_OK):
        raise CLoRAError(f"You have no permission to write to '{folder}'. Choose another folder.")


def _write(report: Report, folder: Path, *, title: str) -> list[Path]:
    """Write the report and return its files, the page first."""
    page, numbers = folder / "report.html", folder / "report.json"
    figures = {folder / f"{name}.png": figure for name, figure in figures_of(report).items()}
    try:
        page.write_text(as_page(report, title=title), encoding="utf-8")
        numbers.write_text(json.dumps(report.numbers(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for path, figure in figures.items():
            figure.save(path)
    except OSError as error:
        raise CLoRAError(f"The report cannot be written to '{folder}': {error}.") from error
    return [page, numbers, *figures]
