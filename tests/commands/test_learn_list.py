"""`learn --list`: many concepts from one file give what single commands in a row give, also after a stop."""

import json
from pathlib import Path

import pytest

from clora_core.cli import main
from clora_core.learning.learn import Learning
from clora_core.museum.file import load_museum
from clora_core.starter.subjects import pictures
from tests.small import same_bits

from .test_commands import FEW, teach

WORDS = ("ada", "bo", "eve")


@pytest.fixture
def cast(tmp_path: Path) -> Path:
    """A list of three words with three pictures each; the second has options of its own."""
    for name in WORDS:
        folder = tmp_path / "cast" / name
        folder.mkdir(parents=True)
        for number, picture in enumerate(pictures(name, 3, seed=0)):
            picture.save(folder / f"{number}.png")
    entries: list[dict[str, object]] = [{"word": f"<{name}>", "images": name} for name in WORDS]
    entries[1] |= {"kind": "style", "steps": 3, "token_seed": 7, "flip": True}
    return written(tmp_path / "cast" / "cast.json", entries)


def written(path: Path, entries: object) -> Path:
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def learn(museum: Path, concepts: Path, *more: str) -> int:
    return main(["learn", "--base", "starter", "--museum", str(museum), "--list", str(concepts), *FEW, *more])


def test_a_list_gives_what_single_commands_give_also_after_a_stop(tmp_path, cast, capsys, monkeypatch):
    """Stopped in the second concept; the recipe protects earlier concepts, so each depends on those before it."""
    from clora_core.commands import resuming, training

    class Stopped(Learning):
        def run(self, *, report, **options):
            def once(progress):
                report(progress)
                if self.words == ("<bo>",):
                    raise KeyboardInterrupt

            return super().run(report=once, **options)

    single, listed, recipe = tmp_path / "a.safetensors", tmp_path / "b.safetensors", ("--recipe", "c-lora")
    own = {"bo": ("--kind", "style", "--steps", "3", "--token-seed", "7", "--flip")}
    for name in WORDS:
        assert teach(single, cast.parent / name, f"<{name}>", *recipe, *own.get(name, ())) == 0
    with monkeypatch.context() as patched:
        patched.setattr(resuming, "SAVE_EVERY", 1)
        patched.setattr(training, "Learning", Stopped)
        assert learn(listed, cast, *recipe) == 130
    assert load_museum(listed).words == ("<ada>",)
    capsys.readouterr()
    assert learn(listed, cast, *recipe) == 0
    output = capsys.readouterr().out
    assert "<ada> is already in the museum." in output and output.count("Resuming from step 1.") == 1
    one, other = load_museum(single), load_museum(listed)
    assert same_bits(one, other) and one.words == other.words
    for alone, in_list in zip(one.exhibits, other.exhibits, strict=True):
        assert (alone.recipe, alone.kind, alone.prompt) == (in_list.recipe, in_list.kind, in_list.prompt)
    assert not list(tmp_path.glob("b.*.learning.safetensors"))
    before = listed.read_bytes()
    assert learn(listed, cast, *recipe) == 0
    assert listed.read_bytes() == before


ADA, BO = {"word": "<ada>", "images": "ada"}, {"word": "<bo>", "images": "bo"}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("[", "cast.json is invalid JSON"),
        ({"word": "<ada>"}, "cast.json is {'word': '<ada>'}; it must be a list"),
        ([], "cast.json has no entries"),
        ([ADA, "bo"], "cast.json, entry 2: It is 'bo'; it must be an object"),
        ([ADA, {**BO, "wrod": 1}], "cast.json, entry 2: There is no option 'wrod'. An entry can have: word, images, "),
        ([{"images": "ada"}], "cast.json, entry 1: It has no word"),
        ([{**ADA, "images": ""}], "cast.json, entry 1: It has no images"),
        ([ADA, {**BO, "vectors": True}], "cast.json, entry 2: vectors is True; it must be a whole number"),
        ([ADA, {**BO, "images": ["bo"]}], "cast.json, entry 2: images is ['bo']; it must be a string"),
        ([ADA, {**BO, "steps": "10"}], "cast.json, entry 2 (<bo>): steps is '10'; it must be a whole number from 1"),
        ([ADA, {**BO, "kind": "person"}], "cast.json, entry 2 (<bo>): A concept's kind is 'object' or 'style'"),
        ([ADA, {**BO, "word": "a b"}], "cast.json, entry 2 (a b): 'a b' contains ' '"),
        ([ADA, {**BO, "images": "nowhere"}], "nowhere' is not a folder. Give the folder with the pictures, relative"),
        ([ADA, {**BO, "images": "empty"}], "cast.json, entry 2 (<bo>): There are no pictures in"),
        ([ADA, BO, {**ADA, "images": "eve"}], "cast.json, entry 3: Entry 1 has the word <ada> too"),
        (
            [{**ADA, "word": "cat-dog"}, {**BO, "word": "cat", "template": "one cat-dog"}],
            "cast.json, entry 2 (cat): In 'one cat-dog', 'cat' is only a part of another known word",
        ),
        ([ADA, {**BO, "resolution": 7}], "cast.json, entry 2 (<bo>): --resolution is 7"),
        ([ADA, {**BO, "start": "a red cat", "vectors": 1}], "cast.json, entry 2 (<bo>): 'a red cat' is 3 tokens long"),
    ],
)
def test_a_list_with_a_mistake_is_refused_before_anything_is_learned(tmp_path, cast, capsys, entries, said):
    (cast.parent / "empty").mkdir()
    assert learn(tmp_path / "m.safetensors", written(cast, entries)) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_words_come_from_the_list_or_from_the_command(tmp_path, cast, images, capsys):
    museum, folder = tmp_path / "m.safetensors", str(images)
    for more, said in (
        (["--list", str(cast), "--images", folder], "leave out --images"),
        (["--list", str(cast), "--also", "<x>", folder], "leave out --also"),
        (["--list", str(cast), "--replace"], "leave out --replace"),
        (["--word", "<ada>"], "--word needs --images"),
        (["--list", str(tmp_path / "none.json")], "none.json: No such file"),
    ):
        assert main(["learn", "--base", "starter", "--museum", str(museum), *more]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["learn", "--base", "starter", "--museum", str(museum), "--list", str(cast), "--word", "<ada>"])
