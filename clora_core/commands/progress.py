"""Progress bars and Ctrl-C for commands."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

from ..learning.learn import Progress

Say = Callable[[str], None]  # prints a message for the user; see `cli.main`


class Bar:
    """A progress bar with the parts of the loss beside it."""

    def __init__(self, title: str, steps: int) -> None:
        self._bar = tqdm(total=steps, desc=title, leave=False, dynamic_ncols=True)

    def report(self, progress: Progress) -> None:
        """A `report` callback for `learn`."""
        self.at(progress.step, " ".join(f"{name} {value:.4f}" for name, value in progress.losses.items()))

    def at(self, done: int, text: str = "") -> None:
        """Set the progress."""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def of(self, done: int, steps: int) -> None:
        """A `report` callback for `sample`."""
        self._bar.total = steps
        self.at(done)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


@contextmanager
def watched_bar(title: str, steps: int) -> Iterator[Callable[[Progress], None]]:
    """The `report` callback of a progress bar for `learn`."""
    with Bar(title, steps) as bar:
        yield bar.report


@contextmanager
def listening_for_ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that work can stop between steps. The second Ctrl-C stops at once."""
    pressed = threading.Event()

    def handle(number: int, frame: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
