"""Progress bars and Ctrl-C for commands."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tqdm import tqdm

from ..learning.loop import Progress
from ..texts import printable

Say = Callable[[str], None]  # prints a message for the user; see `cli.main`


class Bar(tqdm):
    """A progress bar with the parts of the loss beside it."""

    def __init__(self, title: str, steps: int, *, shown: bool = True) -> None:
        super().__init__(total=steps, desc=printable(title), leave=False, dynamic_ncols=True, disable=not shown)

    def report(self, progress: Progress) -> None:
        """A `report` callback for `learn`."""
        self.at(progress.step, " ".join(f"{name} {value:.4f}" for name, value in progress.losses.items()))

    def at(self, done: int, text: str = "") -> None:
        """Set the progress."""
        self.set_postfix_str(text, refresh=False)
        self.update(done - self.n)

    def of(self, done: int, steps: int) -> None:
        """A `report` callback for `sample`."""
        self.total = steps
        self.at(done)


@contextmanager
def watched_bar(title: str, steps: int) -> Iterator[Callable[[Progress], None]]:
    """The `report` callback of a progress bar for `learn`."""
    with Bar(title, steps) as bar:
        yield bar.report


@contextmanager
def reading_bar(title: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """The `reading` callback for `run_resumably`: another bar, while prompts or pictures are read."""
    with ExitStack() as bars:
        bar: Bar | None = None

        def read(done: int, of: int) -> None:
            nonlocal bar
            bar = bar or bars.enter_context(Bar(title, of, shown=shown))
            bar.of(done, of)
            if done == of:
                bars.close()
                bar = None

        yield read


@contextmanager
def listening_for_ctrl_c(*, forwarded: bool = False) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that work can stop between steps. The second Ctrl-C stops at once.

    forwarded: a launcher sends every Ctrl-C once more, so only the first one counts.
    """
    pressed = threading.Event()

    def handle(number: int, frame: object) -> None:
        if pressed.is_set() and not forwarded:
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
