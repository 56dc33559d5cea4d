"""The documents: links have targets, named files exist, and lists are complete."""

import re
from pathlib import Path

import pytest

from clora_core.method.draft import AUTO
from clora_core.method.recipe import BASELINES, RECIPES

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
HELP = sorted(ROOT.glob("web/docs/*.md"))
CODE = re.compile(r"```.*?```|^    [^\n]*$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
README_WORDS = 1300


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """The text without code, in which links and markup mean nothing."""
    return CODE.sub("", text(path))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text(path), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_after(path: Path, heading: str) -> list[str]:
    """What the first cells of the first table after a heading name."""
    part = text(path).partition(f"\n{heading}\n")[2].partition("\n#")[0]
    return re.findall(r"^\| `([\w-]+)`", part, re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_have_targets(path: Path):
    for found in LINK.findall(prose(path)):
        target, _, anchor = "".join(found).partition("#")
        if target.startswith("https://"):
            continue
        there = path.parent / target if target else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


@pytest.mark.parametrize("path", [*DOCUMENTS, *HELP], ids=name)
def test_words_in_angle_brackets_are_code(path: Path):
    """As markup it would not be seen."""
    assert not re.findall(r"(?<!\\)<(?!img |https?:)[^>\s]+>", prose(path))


@pytest.mark.parametrize("path", [*DOCUMENTS, *HELP], ids=name)
def test_no_private_paths(path: Path):
    assert not re.search(r"/(?:home|root|tmp|work|Users)/|[A-Z]:\\", text(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_named_files_exist(path: Path):
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|json|md|png|yml))`", text(path))
    places = (ROOT, ROOT / "clora_core", ROOT / "nodes", ROOT / "nodes/host", ROOT / "clora_core/method")
    assert not [one for one in named if not any((place / one).exists() for place in places)]


def test_the_readme_is_short():
    assert len(text(ROOT / "README.md").split()) <= README_WORDS


def test_documents_list_all_recipes_and_baselines():
    document, page = ROOT / "docs/recipes.md", ROOT / "web/docs/CLoRA_Recipe.md"
    assert table_after(document, "## The six recipes") == list(RECIPES)
    assert table_after(document, "## Baselines") == list(BASELINES)
    assert re.findall(r"^\| `([\w-]+)`", text(page), re.MULTILINE) == [AUTO, *RECIPES]
    assert all(f"`{baseline}`" in text(page) for baseline in BASELINES)
