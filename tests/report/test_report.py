"""Reports: the measurements, and that the page is a single harmless file."""

import base64
import dataclasses
import io
import json
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from clora_core.cli import main
from clora_core.errors import BaseModelError, MuseumError, RecipeError
from clora_core.method.recipe import recipe_named
from clora_core.model.base import Base
from clora_core.model.concept import ConceptToken
from clora_core.model.low_rank import LowRank
from clora_core.model.sampling import Sampling, sample
from clora_core.museum.editing import edited
from clora_core.museum.file import save_museum
from clora_core.museum.museum import TOGETHER, Exhibit, Museum, learned_with, missing_partners, viewing
from clora_core.pictures import thumbnail, to_picture
from clora_core.report.comparing import LEVELS, State, displacements, levels
from clora_core.report.figures import exhibits_figure, moved_figure, overlap_figure
from clora_core.report.page import as_page
from clora_core.report.review import Report, ReportSettings, everyday_prompts, make_report, prompt_of
from clora_core.sheets import font_for
from tests.small import LATENT_SHAPE, random_deltas

QUICK = ReportSettings(1, 2, Sampling(1, 3.0))
TURNED = "\u202egpj.cat\x1b"
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def exhibit(base: Base, word: str, *, seed: int = 0, size: float = 0.1, method: str = "c-lora", **more) -> Exhibit:
    vectors = {"clip_l": torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(seed)) * 0.02}
    deltas = random_deltas(base, size=size, seed=seed)
    return Exhibit(ConceptToken(word, vectors), deltas, recipe_named(method), **more)


def museum(base: Base, *exhibits: Exhibit) -> Museum:
    return Museum(base.fingerprint, exhibits)


def look(base: Base, seen: Museum, settings: ReportSettings = QUICK):
    return make_report(base, seen, settings, latent_shape=LATENT_SHAPE)


@pytest.fixture(scope="module")
def report(base: Base) -> Report:
    """Of two exhibits, one with hostile text and one with a first picture."""
    return look(
        base,
        museum(
            base,
            exhibit(base, "<script>", prompt=f"a photo of <script> {EVIL}", facts={EVIL: EVIL, TURNED: [TURNED]}),
            exhibit(base, "<b>", seed=1, thumbnail=thumbnail(torch.ones(3, 64, 64))),
        ),
    )


def test_joint_concepts_have_not_moved(base: Base):
    """The last of several joint concepts has their deltas; a word alone has none."""
    together = recipe_named("c-lora", rank=8)
    alone = dataclasses.replace(exhibit(base, "<alone>"), deltas={}, recipe=recipe_named("textual-inversion"))
    one = dataclasses.replace(exhibit(base, "<one>", seed=1), deltas={}, recipe=together)
    two = dataclasses.replace(exhibit(base, "<two>", seed=2), recipe=together)
    seen = museum(base, alone, one, two)
    assert [learned_with(seen.exhibits, place) for place in range(3)] == [0, 2, 2]
    assert missing_partners(seen.exhibits, ["<alone>", "<one>"]).startswith("<one> was learned together with <two>,")
    assert missing_partners(seen.exhibits, ["<one>", "<two>"]) == missing_partners(seen.exhibits, ["<two>"]) == ""
    moved_alone, *moved_together = look(base, seen).moved
    assert moved_alone > 0 and moved_together == [0, 0]
    another = dataclasses.replace(exhibit(base, "<another>", seed=3), deltas={}, recipe=alone.recipe)
    assert learned_with((alone, another), 0) == 0
    assert learned_with((one, exhibit(base, "<stranger>")), 0) == 0, "what it was learned with was removed"
    assert look(base, museum(base, one, two, exhibit(base, "<next>"))).moved[0] > 0


def test_joint_concepts_find_each_other_in_any_order(base: Base):
    """After `move`, and between others that were learned together with the same recipe."""
    together = recipe_named("c-lora", rank=8)
    one, two, three, four = (
        dataclasses.replace(exhibit(base, f"<{n}>", seed=n), recipe=together, facts={TOGETHER: group})
        for n, group in enumerate(("a", "a", "b", "b"))
    )
    one, three = (dataclasses.replace(own, deltas={}) for own in (one, three))
    moved = edited(museum(base, one, two, three, four), "move <1> 4")[0]
    assert moved.words == ("<0>", "<2>", "<3>", "<1>")
    assert [learned_with(moved.exhibits, place) for place in range(4)] == [3, 2, 2, 3]
    assert "<0> was learned together with <1>" in missing_partners(moved.exhibits, ["<0>", "<3>"])
    assert "<0> learned together with it; they lose" in edited(moved, "remove <1>")[1]
    with pytest.raises(MuseumError, match="'<1>', which holds the weights of both"):
        edited(moved, "strength <0> 0.5")
    assert look(base, edited(moved, "move <1> 1")[0]).moved[1] > 0, "it was complete before the other two"
    assert missing_partners(edited(moved, "remove <1>")[0].exhibits, ["<0>"]) == ""


def test_moved_matches_its_equation(base: Base):
    then, now = museum(base, exhibit(base, "<a>")), museum(base, exhibit(base, "<a>"), exhibit(base, "<b>", seed=1))
    prompts = ["a photo of <a>", "a cat"]
    rng = torch.Generator().manual_seed(3)
    latents, noise = torch.randn(2, 2, *LATENT_SHAPE, generator=rng)
    found = displacements(State(base, then), State(base, now), prompts, latents, noise)
    for row, prompt in enumerate(prompts):
        change = effect = 0.0
        for level in range(LEVELS):
            time = int((level + 0.5) * 1000 / LEVELS)
            alpha = base.schedule.levels[time]
            noisy = (alpha.sqrt() * latents[row] + (1 - alpha).sqrt() * noise[row])[None]

            def predicted(state: Museum, text: str, noisy=noisy, time=time) -> torch.Tensor:
                with torch.no_grad(), viewing(base, state.deltas()):
                    return base.predict(noisy, torch.tensor([time]), base.encode_prompts([text], state.tokens))

            asked = predicted(then, prompt)
            change += float((predicted(now, prompt) - asked).double().square().sum())
            effect += float((asked - predicted(then, "")).double().square().sum())
        assert found[row].item() == pytest.approx((change / effect) ** 0.5, rel=1e-3)


def test_removing_the_prompt_is_a_displacement_of_one(base: Base):
    """Without its word's effect, the prediction is that of the empty prompt: a displacement of 1."""

    class Deaf:
        def __getattr__(self, name):
            return getattr(base, name)

        def encode_prompts(self, prompts, tokens):
            return base.encode_prompts([""] * len(prompts), tokens)

    then = museum(base)
    latents, noise = torch.randn(2, 1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(3))
    found = displacements(State(base, then), State(Deaf(), then), ["a photo of a cat"], latents, noise)
    assert found.item() == pytest.approx(1, abs=1e-5)


def test_levels_are_middles_of_equal_parts():
    assert levels(1000) == [125, 375, 625, 875] and levels(LEVELS) == [0, 1, 2, 3]


def test_every_exhibit_is_sampled_then_and_now(base: Base):
    first, second = exhibit(base, "<a>"), exhibit(base, "<b>", seed=1)
    report = look(base, museum(base, first, second))
    for state, pictures in ((museum(base, first), "then"), (museum(base, first, second), "now")):
        with viewing(base, state.dense()):
            prompts = ["a photo of <a>"]
            expected = sample(base, prompts, state.tokens, QUICK.sampling, latent_shape=LATENT_SHAPE)
        assert getattr(report.exhibits[0], pictures) == tuple(map(to_picture, expected))
    assert report.moved[0] > 0.01 and report.moved[1] == 0
    assert report.exhibits[1].then == report.exhibits[1].now


def test_unchanged_museum_has_zero_displacement(base: Base):
    still = exhibit(base, "<b>", seed=1)
    still = dataclasses.replace(
        still, deltas={p: LowRank(torch.zeros_like(d.up), d.down) for p, d in still.deltas.items()}
    )
    report = look(base, museum(base, exhibit(base, "<a>"), still))
    assert report.moved == [0, 0] and report.damage > 0.01
    assert report.exhibits[0].then == report.exhibits[0].now


def test_word_gated_exhibits_leave_everyday_prompts_alone(base: Base):
    report = look(base, museum(base, exhibit(base, "<a>", method="word-gated", size=1.0)))
    assert report.damage == 0 and report.everyday.then == report.everyday.now


def test_report_is_deterministic_and_reports_progress(base: Base):
    seen = museum(base, exhibit(base, "<a>", thumbnail=thumbnail(torch.zeros(3, 64, 64))), exhibit(base, "<b>", seed=1))
    heard: list[tuple[int, int]] = []
    one = make_report(base, seen, QUICK, latent_shape=LATENT_SHAPE, report=lambda done, of: heard.append((done, of)))
    assert as_page(one) == as_page(look(base, seen))
    assert [done for done, _ in heard] == list(range(1, heard[-1][1] + 1))
    assert {of for _, of in heard} == {heard[-1][1]}


def test_a_report_can_be_stopped(base: Base):
    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_report(base, museum(base, exhibit(base, "<a>")), QUICK, latent_shape=LATENT_SHAPE, report=stop)
    assert all(not slot.module._forward_hooks for slot in base.slots.values())


class Page(HTMLParser):
    """The tags of a page, and what they point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_page_is_one_file_and_shows_hostile_words_as_text(report: Report):
    text = as_page(report, title=EVIL + TURNED)
    page = Page(text)
    assert "script" not in page.tags and "<script>" in page.text and EVIL in page.text
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert len(page.sources) == page.tags.count("img") == 2 * 2 + 1 + 2 * 2
    assert TURNED not in text and r"\u202e" in page.text
    assert "url(" not in text and "@import" not in text and "http-equiv" in text
    for source in page.sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert picture.format == "JPEG" and picture.size == (64, 64)


def test_overlap_figure_is_darker_for_larger_overlaps(report: Report):
    def inked(overlap: float) -> list[int]:
        return (
            overlap_figure(dataclasses.replace(report, overlap=torch.tensor([[1, overlap], [overlap, 1]])))
            .convert("L")
            .histogram()
        )

    least, more, most = (sum(shade * count for shade, count in enumerate(inked(value))) for value in (0.0, 0.2, 0.4))
    assert least > more > most


@pytest.mark.parametrize("letters", ["кт", "苹果"])
def test_figures_write_words_in_other_letters(report: Report, letters: str):
    if font_for(letters, 15).getname() == font_for("a", 15).getname():
        pytest.skip("no font of this machine has them")
    first, *others = report.museum.exhibits

    def of_word(word: str) -> Report:
        renamed = dataclasses.replace(first, token=dataclasses.replace(first.token, word=word))
        return dataclasses.replace(report, museum=dataclasses.replace(report.museum, exhibits=(renamed, *others)))

    for figure in (exhibits_figure, moved_figure, overlap_figure):
        one, other = (figure(of_word(f"<{letter * 3}>")).crop((0, 80, 10_000, 10_000)) for letter in letters)
        assert one.tobytes() != other.tobytes(), "both words are drawn as boxes"


def test_figures_have_a_row_for_every_exhibit_and_prompt(report: Report):
    alone = Report(
        dataclasses.replace(report.museum, exhibits=report.museum.exhibits[:1]),
        report.exhibits[:1],
        report.everyday,
        torch.ones(1, 1),
    )
    for figure in (exhibits_figure, moved_figure, overlap_figure):
        assert figure(report).height > figure(alone).height


def test_report_says_if_there_are_too_many_exhibits_for_pairs(report: Report):
    many = dataclasses.replace(report, overlap=None)
    assert many.numbers()["overlap"] is None
    assert "too many" in as_page(many) and overlap_figure(many) != overlap_figure(report)


def test_prompt_contains_the_word(base: Base):
    assert prompt_of(exhibit(base, "<a>", prompt="<a> on a sofa")) == "<a> on a sofa"
    assert prompt_of(exhibit(base, "<a>", prompt="a sofa", kind="style")) == "a <a> style picture"


def test_everyday_prompts_are_spread_over_the_captions():
    assert everyday_prompts(["", *"abcdefgh"], 4) == ["a", "c", "e", "g"]
    assert everyday_prompts(["", "a"], 9) == ["a"]


def test_impossible_reports_are_refused(base: Base):
    with pytest.raises(MuseumError, match="empty"):
        look(base, museum(base))
    other = Museum(dataclasses.replace(base.fingerprint, digest="0"), (exhibit(base, "<a>"),))
    with pytest.raises(BaseModelError, match="made for"):
        look(base, other)
    with pytest.raises(RecipeError, match="0"):
        ReportSettings(pictures=0)


def test_a_broken_thumbnail_is_refused_before_sampling(base: Base):
    """It begins like a JPEG, which is all that is checked when a museum is read."""
    seen, heard = museum(base, exhibit(base, "<a>", thumbnail=b"\xff\xd8\xff\xe0 and no more")), []
    with pytest.raises(MuseumError, match="cannot be read as a JPEG"):
        make_report(base, seen, QUICK, latent_shape=LATENT_SHAPE, report=lambda done, of: heard.append(done))
    assert not heard


def test_command_writes_page_figures_and_numbers(tmp_path, capsys):
    from clora_core.over_diffusers.base import open_base

    starter = open_base("starter")
    seen = museum(starter, exhibit(starter, "<a>"), exhibit(starter, "<b>", seed=1))
    file, out = save_museum(seen, tmp_path / "my.museum.safetensors"), tmp_path / "out"
    few = ["--pictures", "1", "--everyday", "1", "--steps", "1"]
    assert main(["report", "--base", "starter", "--museum", str(file), "--out", str(out), *few]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("exhibits.png", "moved.png", "overlap.png", "report.html", "report.json")
    ]
    numbers = json.loads((out / "report.json").read_text())
    assert [entry["word"] for entry in numbers["exhibits"]] == ["<a>", "<b>"]
    assert numbers["exhibits"][0]["moved"] > 0 == numbers["exhibits"][1]["moved"]
    assert len(numbers["everyday"]["prompts"]) == 1 and len(numbers["overlap"]) == 2
    assert f"{numbers['everyday']['moved']:.2f}" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    main(["report", "--base", "starter", "--museum", str(file), "--out", str(out), *few])
    assert (out / "report.html").read_text() == page
