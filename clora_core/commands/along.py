"""What `learn` writes beside the museum: intermediate museums, sample pictures, and what changed at the end."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..errors import CLoRAError
from ..learning.effect import effect, passes
from ..learning.learn import Learning
from ..learning.loop import Progress
from ..museum.editing import dated
from ..museum.file import save_museum
from ..museum.museum import STOPPED, Exhibit
from ..pictures import from_thumbnail, to_picture
from ..report.before_after import compared, sampled_before, sampled_now
from ..sheets import thumbnail_sheet, write_picture
from .progress import Bar, Say


@dataclass(frozen=True, eq=False)
class Along:
    """keep_every, preview_every: steps between two copies of the museum, and between two sample pictures; 0 for none.
    Steps count per concept."""

    learning: Learning
    path: Path
    keep_every: int
    preview_every: int
    say: Say

    def begin(self) -> None:
        """Draw the word before it is learned."""
        if self.preview_every:
            self._draw(0, sampled_before(self.learning))

    def step(self, progress: Progress) -> None:
        if self._due(self.keep_every, progress.step) and progress.step < progress.steps:
            target = self._beside(f"-{progress.step}{self.path.suffix}")
            pairs = zip(self.learning.exhibits_at(progress), self.learning.concepts, strict=True)
            new = [dated(*pair) for pair in pairs]
            save_museum(self.learning.museum.with_exhibits(*new), target, overwrite=True)
            self.say(f"{target} is the museum after step {progress.step}.")
        if self._due(self.preview_every, progress.step):
            token = progress.trained.token(self.learning.words[-1])
            self._draw(progress.step, sampled_now(self.learning, token))

    def end(self, exhibits: Sequence[Exhibit]) -> None:
        """Say what learning changed, and draw exhibits before and after."""
        learning = self.learning
        with Bar("measuring", passes(learning.museum)) as bar:
            measured = effect(learning, exhibits[-1], bar.of)
        if stopped := exhibits[-1].facts.get(STOPPED):
            self.say(str(stopped))
        self.say(f"Loss on its own pictures: {measured.loss_before:.3f} before, {measured.loss_after:.3f} after.")
        if moved := measured.moved:
            most = max(moved, key=lambda word: moved[word])
            mean = sum(moved.values()) / len(moved)
            self.say(f"Earlier words moved by {mean:.1%} (0% is unchanged); most: {most}, {moved[most]:.1%}.")
        if self.preview_every:
            self._compare(exhibits)

    def _compare(self, exhibits: Sequence[Exhibit]) -> None:
        with Bar("drawing", 1) as bar:
            rows = compared(self.learning, exhibits, bar.of)
        pictures = [
            (f"{row.word} {title}", picture)
            for row in rows
            for title, picture in (
                ("real", from_thumbnail(row.real) if row.real else Image.new("RGB", (1, 1), "white")),
                ("when learned", to_picture(row.then)),
                ("now", to_picture(row.now)),
            )
        ]
        if self._saved(thumbnail_sheet(pictures, columns=3), target := self._beside(".png")):
            self.say(f"{target} shows exhibits when they were learned, and now.")

    def _draw(self, step: int, picture: Tensor) -> None:
        self._saved(to_picture(picture), self._beside(f"-{step:04}.png"))

    def _saved(self, picture: Image.Image, target: Path) -> bool:
        """Whether the picture could be written. If not, a message says so, and learning continues."""
        try:
            write_picture(picture, target)
        except CLoRAError as error:
            self.say(str(error))
            return False
        return True

    def _due(self, every: int, step: int) -> bool:
        return bool(every) and step % (every * len(self.learning.concepts)) == 0

    def _beside(self, end: str) -> Path:
        word = re.sub(r"[^\w-]", "", self.learning.words[-1])
        return self.path.with_name(f"{self.path.stem}.{word}{end}")
