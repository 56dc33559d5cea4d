"""Edits change what they should and nothing else: all tensors stay the same, bit for bit, also in the file."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from clora_core.cli import main
from clora_core.errors import CLoRAError, ConceptError, MuseumError
from clora_core.method.recipe import recipe_named
from clora_core.model.base import Fingerprint
from clora_core.museum.editing import (
    edited,
    merged,
    removal_message,
    removed,
    renamed,
    reordered,
    with_strength,
    with_thumbnail,
)
from clora_core.museum.file import load_museum, read_header, save_museum
from clora_core.museum.file.backups import backups_of
from clora_core.museum.museum import Museum
from clora_core.museum.overlap import overlap_matrix
from clora_core.picture_files import upright
from clora_core.pictures import thumbnail
from tests.museums import assert_same, exhibit, museum, projections
from tests.small import bits, tensors_of


def through_a_file(whole: Museum, folder) -> Museum:
    save_museum(whole, folder / "edited.safetensors", overwrite=True)
    return load_museum(folder / "edited.safetensors")


def test_renaming_changes_the_word_and_the_prompts_only(tmp_path):
    after = through_a_file(renamed(museum(), "<my-cat>", "<tom>"), tmp_path)
    assert after.words == ("<tom>", "<ink>", "<bär>", "lonely")
    assert after.exhibits[0].prompt == "a photo of <tom>"
    back = renamed(after, "<tom>", "<my-cat>")
    assert_same(back, museum())


@pytest.mark.parametrize(
    ("word", "advice"),
    [("<My-ct>", r"Did you mean <my-cat>\?"), ("<zebra>", "It holds: <my-cat>, <ink>, <bär>, lonely")],
)
def test_a_missing_word_is_named_with_the_nearest_or_all(word: str, advice: str):
    with pytest.raises(MuseumError, match=f"There is no '{word}' in this museum. {advice}"):
        museum().exhibit(word)


def test_only_whole_words_of_a_prompt_are_renamed():
    one = exhibit("cat", [], seed=1, prompt="a cat, no cats, a tomcat, cat")
    assert renamed(Museum(museum().base, (one,)), "cat", "g<0>").exhibits[0].prompt == "a g<0>, no cats, a tomcat, g<0>"


def test_a_new_word_that_would_touch_other_letters_is_refused():
    one = exhibit("<my-cat>", [], seed=1, prompt="two <my-cat>s on a sofa")
    with pytest.raises(ConceptError, match="name it <tom>"):
        renamed(Museum(museum().base, (one,)), "<my-cat>", "tom")
    assert renamed(Museum(museum().base, (one,)), "<my-cat>", "<tom>").exhibits[0].prompt == "two <tom>s on a sofa"


def test_strength_is_set_where_the_weights_are():
    on, recipe = projections("sd15"), recipe_named("preservation", rank=4)
    pair = [exhibit(word, on if word == "<b>" else [], seed=1, recipe=recipe) for word in ("<a>", "<b>")]
    together = Museum(museum().base, tuple(pair))
    with pytest.raises(MuseumError, match="Set the strength of '<b>'"):
        with_strength(together, "<a>", 0.5)
    assert with_strength(together, "<b>", 0.5).exhibits[1].strength == 0.5


def test_a_word_is_also_renamed_in_the_prompts_of_other_exhibits():
    """Later concepts preserve these prompts; a prompt with an unknown word would be useless."""
    beside = exhibit("<dog>", [], seed=2, prompt="<dog> and two <my-cat>s, no my-cat")
    after = renamed(museum().with_exhibits(beside), "<my-cat>", "<tom>")
    assert after.exhibits[-1].prompt == "<dog> and two <tom>s, no my-cat" and after.exhibits[-1].word == "<dog>"


def test_a_rename_builds_one_new_museum_for_any_number_of_prompts(monkeypatch):
    one = exhibit("<my-cat>", [], seed=1)
    many = [replace(one, token=replace(one.token, word=f"<w{n}>"), prompt=f"<w{n}> <my-cat>") for n in range(200)]
    whole, made, check = Museum(museum().base, (one, *many)), [], Museum.__post_init__

    def counted(self: Museum) -> None:
        made.append(self)
        check(self)

    monkeypatch.setattr(Museum, "__post_init__", counted)
    after = renamed(whole, "<my-cat>", "<tom>")
    assert len(made) == 1
    assert [exhibit.prompt for exhibit in after.exhibits[1:]] == [f"<w{n}> <tom>" for n in range(200)]


@pytest.mark.parametrize("new", ["<ink>", "", "a b", "7", "x" * 65])
def test_a_taken_or_invalid_new_word_is_refused(new):
    with pytest.raises(CLoRAError):
        renamed(museum(), "<my-cat>", new)
    assert renamed(museum(), "<my-cat>", "<my-cat>").words == museum().words


@pytest.mark.parametrize("word", museum().words)
def test_removing_an_exhibit_leaves_the_others_unchanged(word, tmp_path):
    after = through_a_file(removed(museum(), word), tmp_path)
    assert_same(after, museum().only([other for other in museum().words if other != word]))


def test_the_removal_message_gives_the_overlap_with_later_exhibits():
    whole = museum()
    ink, bear, lonely = overlap_matrix(whole)[0, 1:].tolist()
    assert min(ink, bear) > 0.1 and lonely == 0
    assert f": <ink> {ink:.2f}, <bär> {bear:.2f}, lonely 0.00. " in removal_message(whole, "<my-cat>")
    for word in ("<bär>", "lonely"):
        assert "No later exhibit" in removal_message(whole, word)


def test_the_removal_message_compares_a_limited_number_of_exhibits():
    cat, *_ = museum().exhibits
    copies = [replace(cat, token=replace(cat.token, word=f"<{number}>")) for number in range(12)]
    message = removal_message(replace(museum(), exhibits=tuple(copies)), "<0>")
    assert message.count(" 1.00") == 8 and "<8> 1.00, and 3 more." in message
    apart = [copies[0], *(replace(copy, deltas={}) for copy in copies[1:9]), copies[9]]
    assert ": <9> 1.00, <1> 0.00" in removal_message(replace(museum(), exhibits=tuple(apart)), "<0>")


def test_the_removal_message_names_jointly_learned_exhibits():
    recipe = recipe_named("c-lora", rank=8)
    before, cat, *_ = museum().exhibits
    pair = (replace(before, deltas={}, recipe=recipe), replace(cat, recipe=recipe))
    together = replace(museum(), exhibits=pair)
    assert f"the weights that {before.word} learned together with it" in removal_message(together, cat.word)
    assert "together" not in removal_message(together, before.word)


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_moving_an_exhibit_keeps_the_sum_of_the_deltas(place, tmp_path):
    after = through_a_file(reordered(museum(), "<bär>", place), tmp_path)
    assert after.words[place - 1] == "<bär>"
    assert [word for word in after.words if word != "<bär>"] == ["<my-cat>", "<ink>", "lonely"]
    assert bits(tensors_of(after)) == bits(tensors_of(museum()))
    for projection, matrix in after.dense().items():
        torch.testing.assert_close(matrix, museum().dense()[projection], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("place", [0, 5, -1])
def test_moving_to_an_impossible_place_is_refused(place):
    with pytest.raises(MuseumError, match=r"cannot move to place.*1 to 4"):
        reordered(museum(), "<ink>", place)


def test_merging_appends_the_other_exhibits_and_loses_nothing(tmp_path):
    on = projections("sd15")
    others = (
        exhibit("<new>", on, seed=7, ranks=(3, 2)),
        with_strength(museum(), "<ink>", 0.5).exhibit("<ink>"),
        exhibit("<last>", on[:2], seed=8),
    )
    one, other = museum().only(["<my-cat>", "<bär>"]), Museum(museum().base, others)
    both = through_a_file(merged(one, other), tmp_path)
    assert both.words == ("<my-cat>", "<bär>", "<new>", "<ink>", "<last>")
    assert_same(both.only(one.words), one)
    assert_same(both.only(other.words), other)


def test_merging_keeps_common_exhibits_once():
    """Of two museums that were extended from the same start."""
    branch = museum().with_exhibits(exhibit("<new>", projections("sd15"), seed=9))
    assert merged(museum(), branch).words == merged(branch, museum()).words == branch.words


def test_merging_different_exhibits_of_one_word_is_refused_with_advice():
    other = Museum(museum().base, (exhibit("<ink>", projections("sd15"), seed=9), exhibit("<ink-2>", [], seed=1)))
    with pytest.raises(MuseumError, match=r"different exhibits named <ink>.*rename <ink> <ink-3>"):
        merged(museum(), other)
    stronger = with_strength(museum(), "<my-cat>", 2)
    with pytest.raises(MuseumError, match="<my-cat>"):
        merged(museum(), stronger)
    assert merged(renamed(museum(), "<ink>", "<ink-3>"), other).words[-2:] == ("<ink>", "<ink-2>")


def test_merging_museums_of_two_bases_is_refused():
    with pytest.raises(MuseumError, match="the same base"):
        merged(museum(), Museum(Fingerprint("sd15", "f" * 64)))


def test_edit_lines_do_the_same_as_the_functions():
    for line, after in (
        ("rename <ink> <tint>", renamed(museum(), "<ink>", "<tint>")),
        ("  move   <bär> 1 ", reordered(museum(), "<bär>", 1)),
        ("strength <my-cat> 0.8", with_strength(museum(), "<my-cat>", 0.8)),
        ("remove lonely", removed(museum(), "lonely")),
    ):
        changed, message = edited(museum(), line)
        assert_same(changed, after)
        assert line.split()[1] in message


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("", "rename <a> <b>"),
        ("delete <ink>", "'delete <ink>' is not a valid edit"),
        ("rename <ink>", "not a valid edit"),
        ("remove <ink> <bär>", "not a valid edit"),
        ("move <ink> first", "'first'.*not a whole number"),
        ("move <ink> 1.5", "'1.5'.*not a whole number"),
        ("strength <ink> much", "'much'.*not a number"),
        ("strength <ink> nan", "between"),
        ("strength <ink> 1e9", "between"),
        ("remove <dog>", "no '<dog>'.*<my-cat>"),
    ],
)
def test_invalid_edit_lines_are_refused_with_the_reason(line, rule):
    with pytest.raises(MuseumError, match=rule):
        edited(museum(), line)


def test_edits_do_not_change_their_input():
    whole = museum()
    before = bits(tensors_of(whole))
    renamed(whole, "<ink>", "<x>")
    reordered(whole, "<ink>", 1)
    with_strength(whole, "<ink>", 0.0).dense()
    with_thumbnail(whole, "<ink>", b"other")
    removed(whole, "<ink>")
    merged(whole, whole)
    assert_same(whole, museum())
    assert bits(tensors_of(whole)) == before


@pytest.fixture
def file(tmp_path):
    save_museum(museum(), tmp_path / "zoo.safetensors")
    return tmp_path / "zoo.safetensors"


def test_the_command_edits_in_the_given_order(file, tmp_path, capsys):
    Image.new("RGB", (600, 300), (250, 10, 10)).save(tmp_path / "red.png")
    other = Museum(museum().base, (exhibit("<ink>", projections("sd15"), seed=9),))
    save_museum(other, tmp_path / "other.safetensors")
    options = ["--rename", "<ink>", "<tint>", "--merge", str(tmp_path / "other.safetensors"), "--move", "<ink>", "1"]
    more = ["--strength", "<ink>", "-0.5", "--thumbnail", "<tint>", str(tmp_path / "red.png"), "--remove", "<my-cat>"]
    assert main(["edit", str(file), *options, *more]) == 0
    output = capsys.readouterr().out
    assert "<bär> 0." in output and "overlap" in output
    after = load_museum(file)
    assert after.words == ("<ink>", "<tint>", "<bär>", "lonely")
    assert after.exhibits[0].strength == -0.5
    assert after.exhibit("<tint>").thumbnail == thumbnail(upright(tmp_path / "red.png")) != b""
    assert bits(tensors_of(after.only(["<bär>"]))) == bits(tensors_of(museum().only(["<bär>"])))
    (backup,) = backups_of(file)
    assert_same(load_museum(backup), museum())


def test_the_command_replaces_a_file_only_with_overwrite(file, tmp_path, capsys):
    edit = ["edit", str(file), "--remove", "<ink>", "--to", str(tmp_path / "less.safetensors")]
    assert main(edit) == 0
    assert main(edit) == 1
    assert "already exists" in capsys.readouterr().err
    assert main([*edit, "--overwrite"]) == 0
    assert_same(load_museum(file), museum())
    assert load_museum(tmp_path / "less.safetensors").words == ("<my-cat>", "<bär>", "lonely")


def test_the_command_keeps_the_dtype_unless_a_merge_needs_a_wider_one(file, tmp_path):
    save_museum(museum(), tmp_path / "half.safetensors", dtype="float16")
    half = load_museum(tmp_path / "half.safetensors")
    assert main(["edit", str(tmp_path / "half.safetensors"), "--strength", "<ink>", "0.3"]) == 0
    assert read_header(tmp_path / "half.safetensors").dtype == "float16"
    assert_same(load_museum(tmp_path / "half.safetensors"), with_strength(half, "<ink>", 0.3))
    words = [option for word in museum().words for option in ("--rename", word, f"{word}2")]
    assert main(["edit", str(tmp_path / "half.safetensors"), *words, "--merge", str(file)]) == 0
    assert read_header(tmp_path / "half.safetensors").dtype == "float32"
    assert_same(load_museum(tmp_path / "half.safetensors").only(museum().words), museum())


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ([], "nothing to do"),
        (["--rename", "<ink>", "a b"], "'a b' contains ' '"),
        (["--remove", "<dog>"], "<dog>"),
        (["--merge", "nowhere.safetensors"], "nowhere"),
        (["--thumbnail", "<ink>", "nowhere.png"], "nowhere.png"),
        (["--strength", "<ink>", "much"], "much"),
    ],
)
def test_a_refused_command_changes_nothing(file, tmp_path, capsys, options, rule):
    before = file.read_bytes()
    assert main(["edit", str(file), "--remove", "lonely", *options] if options else ["edit", str(file)]) == 1
    assert rule in capsys.readouterr().err
    assert file.read_bytes() == before and [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("--remove", "<ink>", "--to", "{}/m.png"), "must end in"),
        (("--remove", "<ink>", "--to", "{}/none/m.safetensors"), "There is no folder"),
        (("--merge", "{}"), "It is a folder"),
        (("--thumbnail", "<ink>", "{}/a.png"), "cannot be read as a picture: No such file or directory."),
    ],
)
def test_a_refused_command_prints_only_the_reason(tmp_path, capsys, edit, said):
    save_museum(museum(), tmp_path / "m.safetensors")
    assert main(["edit", str(tmp_path / "m.safetensors"), *(part.format(tmp_path) for part in edit)]) == 1
    captured = capsys.readouterr()
    assert said in captured.err and not captured.out
