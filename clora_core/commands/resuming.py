"""Training in a command: a progress bar, autosave beside the museum, Ctrl-C, and resuming."""

import glob
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import Cancelled, LearningError, MuseumError
from ..learning.loop import Progress
from ..learning.processes import ALONE, Processes, launched_count
from ..learning.state import SAVE_EVERY, LearningState, StateError, StoppedError, load_state, save_state
from ..model.text_states import Report
from ..museum.file.replacing import read_if_intact, set_aside
from .progress import Bar, Say, listening_for_ctrl_c

Learned = TypeVar("Learned")


def run_resumably(
    run: Callable[..., Learned],
    path: Path,
    say: Say,
    steps: int,
    *,
    title: str,
    along: Callable[[Progress], None] = lambda progress: None,
    reading: Report | None = None,
    processes: Processes = ALONE,
    shown: bool = True,
) -> Learned:
    """Learn with a progress bar, autosave to `path`, and resume from it. A damaged state is set aside.

    run: `Learning.run`, or another with its `report` and `resume`. along: called after every update. reading: if given,
    `run` takes it too. Of several processes, only the first one writes. shown: whether there is a bar.
    """
    first = processes.first
    resume = _resumable(path, say) if first else None
    processes.wait()
    if not first and path.exists():
        resume = load_state(path)
    if resume and resume.step > steps:
        raise LearningError(
            f"'{path}' holds this training at step {resume.step}, more than {steps}. Choose at least as many --steps, "
            "or delete the file."
        )
    forwarded = launched_count() > 1
    with listening_for_ctrl_c(forwarded=forwarded) as pressed, Bar(title, steps, shown=shown) as bar:

        def report(progress: Progress) -> None:
            stop = processes.any(pressed.is_set())
            if first:
                bar.report(progress)
                along(progress)
                if stop or progress.step % SAVE_EVERY == 0 or progress.step == progress.steps:
                    try:
                        save_state(progress.snapshot(), path)
                    except MuseumError as error:
                        if stop:
                            raise
                        say(f"The progress up to step {progress.step} could not be saved: {error}")
            if stop:
                raise Cancelled(f"Stopped at step {progress.step}. The same command resumes from {path}.")

        def heard(reading: Report) -> Report:
            def read(done: int, of: int) -> None:
                if pressed.is_set() and processes.count == 1:  # several stop together, after a step
                    raise Cancelled("Stopped while reading. The same command continues.")
                reading(done, of)

            return read

        more = {"reading": heard(reading)} if reading else {}
        try:
            return run(report=report, resume=resume, **more)
        except StateError as error:
            if first:
                set_aside(path, error, say)
        except StoppedError as error:
            if first and error.state.step:
                save_state(error.state, path)
            raise
    return run_resumably(
        run, path, say, steps, title=title, along=along, reading=reading, processes=processes, shown=shown
    )


def state_path(museum: Path, name: str, key: str) -> Path:
    """Where the unfinished training of this name, with these pictures and numbers, is kept: beside the museum."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return museum.with_name(f"{museum.stem}.{digest}.{key[:8]}.learning.safetensors")


def _resumable(path: Path, say: Say) -> LearningState | None:
    if path.exists():
        if state := read_if_intact(path, load_state, say):
            say(f"Resuming from step {state.step}.")
        return state
    same_word, *_ = path.name.rsplit(".", 3)
    for other in sorted(path.parent.glob(f"{glob.escape(same_word)}.*.learning.safetensors")):
        say(f"{other} holds an unfinished training of this name with other inputs. It is kept.")
    return None
