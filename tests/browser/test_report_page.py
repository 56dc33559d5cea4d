"""A report's page, opened from its file."""

import re
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page

from clora_core.learning.learn import learn
from clora_core.method.recipe import recipe_named
from clora_core.model.concept import Concept
from clora_core.model.sampling import Sampling
from clora_core.museum.museum import Museum
from clora_core.over_diffusers.base import open_base
from clora_core.report.page import as_page
from clora_core.report.review import ReportSettings, make_report

HOSTILE = "<b>&\"'"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two concepts, one of which says something that must not become part of the page."""
    base = open_base("starter")
    museum = Museum(base.fingerprint)
    for number, template in enumerate(("a photo of {word}", "a photo of {word} " + HOSTILE)):
        pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(number)) * 2 - 1
        concept = Concept(f"<word-{number}>", pictures, template=template)
        museum = museum.with_exhibits(*learn(base, museum, [concept], recipe_named("c-lora", steps=2, batch_size=2)))
    report = make_report(base, museum, ReportSettings(1, 2, Sampling(1)), latent_shape=base.latent_shape(64, 64))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(as_page(report), encoding="utf-8")
    return path


@pytest.fixture(params=["light", "dark"])
def page(browser: Browser, file: Path, request: pytest.FixtureRequest):
    """Without a network: whatever else the page asked for is noted."""
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1280, "height": 800}, offline=True)
    page = context.new_page()
    page.asked = []
    page.on("request", lambda sent: page.asked.append(sent.url))
    page.goto(file.as_uri())
    yield page
    context.close()


def test_report_requests_only_its_own_file_and_draws_every_picture(page: Page, file: Path):
    outside = [url for url in page.asked if url != file.as_uri() and not url.startswith("data:")]
    assert not outside
    sizes = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(sizes) >= 4 and all(width > 0 for width in sizes)


def test_report_is_readable(page: Page):
    """No text leaves the window, prompts are text, and the contrast suffices (WCAG 2.2, 1.4.3: 4.5)."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "<word-0>" in page.inner_text("body") and HOSTILE in page.inner_text("body")
    ink, paper = page.evaluate(
        "(({ color, backgroundColor }) => [color, backgroundColor])(getComputedStyle(document.body))"
    )
    lighter, darker = sorted((luminance(ink), luminance(paper)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def luminance(color: str) -> float:
    """Of "rgb(r, g, b)", as WCAG defines it."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
