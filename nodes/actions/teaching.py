"""Teach inside the host: the engine's `learn`, and around it what a person sees and what is kept."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from ...clora_core.learning.effect import effect
from ...clora_core.learning.learn import Learning, Progress
from ...clora_core.learning.state import StateError
from ...clora_core.method.recipe import Recipe
from ...clora_core.model.concept import Concept, ConceptToken
from ...clora_core.model.sampling import Sampling, sample
from ...clora_core.museum.editing import dated
from ...clora_core.museum.museum import Exhibit, Museum, viewing
from ...clora_core.pictures import to_picture
from ..host.base import VAE, HostBase
from ..host.differentiable import ordinary_tensors
from ..host.folders import results_folder
from ..host.identity import identity
from ..host.memory import said
from ..host.model import ModelPatcher
from ..host.progress import Bar, check_interrupted, panel, say
from ..host.view import base_beneath, view, viewed
from ..host.words import CLIP
from ..log import log
from .diary import Diary
from .draft import Companion
from .pictures import from_images, in_8_bits, to_images
from .results import Result, Store

SAVE_EVERY = 50  # steps between two autosaves
SHOWN_AREA_PX, SHOWN_MOST = 512 * 512, 4  # at the end, as many pictures are sampled as this area has room for
NOT_KEPT = "what is put on this model cannot be read, so nothing is kept: the same step again learns anew"
LABELS = {"self_regularization": "forgetting"}  # what the parts of a loss are called on the node
SIDE_PX = 64  # sides of pictures become multiples of this: every VAE and UNet here can halve them often enough


def train(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    asked: Sequence[Companion],
    recipe: Recipe,
    museum: Museum | None = None,
    preview_every: int = 0,
    workflow: str = "",
) -> tuple[ModelPatcher, CLIP, Museum, dict[str, list[float]], Tensor]:
    """What a Train Step returns: the model and the CLIP that show the new museum, the museum, its losses, pictures.

    asked: the concept, after those that are learned together with it. museum: what was taught so far; None is what the
    model shows, or nothing yet. workflow: ComfyUI's id of the one that the node stands in, for its panel.
    """
    with ordinary_tensors():
        so_far = museum or viewed(model)
        bare_model, bare_clip = base_beneath(model, clip, so_far)
        base = HostBase(bare_model, bare_clip, vae)
        so_far = so_far or Museum(base.fingerprint)
        learning = Learning(base, so_far, tuple(_with_pictures(each, base) for each in asked), recipe)
        models = identity(bare_model, bare_clip, vae)
        with _store(NOT_KEPT if models is None else "") as store:
            diary = Diary(", ".join(learning.words), recipe.steps, panel(workflow))
            result = taught(base, learning, store, _digest(f"{learning.key} {models}"), diary, preview_every)
        if store.not_kept:
            say(store.not_kept)
            diary.close("learned", diary.effect, store.not_kept)
    new = so_far.with_exhibits(*result.exhibits)
    return *view(bare_model, bare_clip, new), new, {"loss": list(result.losses)}, to_images(result.pictures)


def taught(base: HostBase, learning: Learning, store: Store, key: str, diary: Diary, preview_every: int = 0) -> Result:
    """What came out of a learning. What is in the store is taken from there, whole or to go on from.

    key: of everything that decides what is learned. preview_every: a picture every so many steps, 0 for none; nothing
    of what is learned depends on it.
    """
    if result := store.result(key):
        Bar(learning.recipe.steps).at(learning.recipe.steps)
        say(f"{diary.word} was learned before, with the same pictures and numbers")
        diary.keep(result.diary)
        return result
    try:
        learned, losses = _learned(base, learning, store, key, diary, preview_every)
        diary.close("measuring")
        exhibits = tuple(dated(*each) for each in zip(learned, learning.concepts, strict=True))
        pictures = _pictures(base, learning, exhibits)
        diary.paste(pictures[0])
        diary.close("learned", effect(learning, exhibits[-1]))
    except BaseException as error:
        diary.close("stopped", note=str(error))
        raise
    result = Result(exhibits, losses, in_8_bits(pictures), diary.read())
    store.keep(key, learning.museum.base, result)
    return result


@contextmanager
def _store(not_kept: str) -> Iterator[Store]:
    """Where results are kept: on disk, or only until this step ends, for that reason or one that the disk has."""
    store = Store(results_folder())
    if reason := not_kept or store.refusal:
        with TemporaryDirectory() as folder:
            yield Store(Path(folder), not_kept=reason)
    else:
        yield store


def _learned(
    base: HostBase, learning: Learning, store: Store, key: str, diary: Diary, preview_every: int
) -> tuple[tuple[Exhibit, ...], tuple[float, ...]]:
    """The exhibits, and the loss of every step. However it is stopped, its state is kept."""
    concepts, recipe = learning.concepts, learning.recipe
    bar = Bar(recipe.steps)
    resume = store.state(key)
    losses = list(resume.losses) if resume else []
    height, width = concepts[-1].pictures.shape[-2:]
    last: Progress | None = None
    count = sum(len(each.pictures) for each in concepts)
    begin = f"teaching {diary.word} with {count} pictures · {said(base, recipe, height, width)}"
    begin += store.not_kept and f" · {store.not_kept}"
    log.info("C-LoRA: %s", begin)
    say(begin if resume is None else f"going on from step {resume.step} · {begin}")
    diary.begin(len(losses), begin)

    def report(progress: Progress) -> None:
        nonlocal last
        last = progress
        losses.append(progress.loss)
        if progress.step % SAVE_EVERY == 0 or progress.step == progress.steps:
            store.keep_state(key, progress.snapshot())
        diary.write(progress)
        say(described(progress, diary.seconds_left))
        picture = None
        if preview_every and progress.step % preview_every == 0:
            tokens = [*learning.museum.tokens, progress.trained.token(concepts[-1].word)]
            pixels = _sampled(base, [concepts[-1].prompt], tokens, height, width)[0]
            diary.paste(pixels)
            picture = to_picture(pixels)
        bar.at(progress.step, picture)

    try:
        return learning.run(report=report, resume=resume), tuple(losses)
    except StateError as error:
        store.refuse_state(key, error)
    except BaseException:
        if last:
            store.keep_state(key, last.snapshot())
        raise
    return _learned(base, learning, store, key, diary, preview_every)


def _pictures(base: HostBase, learning: Learning, exhibits: Sequence[Exhibit]) -> Tensor:
    """What the new words show, the last one first, (n, 3, height, width) in [-1, 1]."""
    concepts, museum = learning.concepts, learning.museum.with_exhibits(*exhibits)
    height, width = concepts[-1].pictures.shape[-2:]
    count = min(SHOWN_MOST, max(1, SHOWN_AREA_PX // (height * width)))
    prompts = [each.prompt for each in reversed(concepts)] * max(1, count // len(concepts))
    with viewing(base, museum.dense(), museum.gated):
        return _sampled(base, prompts, museum.tokens, height, width)


def described(progress: Progress, seconds_left: float) -> str:
    """ "step 120/400 · loss 0.081 · forgetting 0.002 · 41 s left" """
    parts = [f"step {progress.step}/{progress.steps}", f"loss {progress.loss:.3f}"]
    parts += [
        f"{LABELS.get(name, name.replace('_', ' '))} {value:.3f}"
        for name, value in progress.losses.items()
        if name != "diffusion"
    ]
    seconds = round(seconds_left)
    return " · ".join([*parts, f"{seconds} s left" if seconds < 120 else f"{seconds // 60} min left"])


def _sampled(base: HostBase, prompts: Sequence[str], tokens: Sequence[ConceptToken], height: int, width: int) -> Tensor:
    """Pictures (n, 3, height, width) in [-1, 1], sampled through the seam."""
    sampling = Sampling(guidance=base.family.guidance)
    shape = base.latent_shape(height, width)
    return sample(base, prompts, tokens, sampling, latent_shape=shape, report=lambda done, of: check_interrupted())


def _with_pictures(asked: Companion, base: HostBase) -> Concept:
    """The concept as the engine learns it. Raises for pictures that the model cannot take."""
    pictures = from_images(asked.images, multiple=SIDE_PX, resolution_px=base.resolution_px)
    base.latent_shape(*pictures.shape[-2:])
    return asked.draft.with_pictures(pictures, _lines(asked.captions))


def _lines(captions: Sequence[str]) -> tuple[str, ...]:
    lines = captions[0].splitlines() if len(captions) == 1 else captions
    return tuple(line.strip() for line in lines if line.strip())


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
