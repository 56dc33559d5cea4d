"""Learned words are plain words of a stock prompt."""

import re

import comfy.sd
import pytest
import torch
from clora_pack.clora_core.errors import ConceptError
from clora_pack.clora_core.model.concept import ConceptToken, word_pattern
from clora_pack.nodes.host import words
from clora_pack.nodes.host.starter import load_clip
from clora_pack.nodes.host.words import known_words, tokenizers, widths, with_words, without_words
from torch import Tensor

from .models import small_models

CAT, DOG = "<my-cat>", "sks"
ORDINARY = ("cat", "bear")  # one token each in every vocabulary here
FAMILIES = ["starter", "sd15", "sdxl"]
Row = list[tuple[int | Tensor, float]]


@pytest.fixture(scope="module", params=FAMILIES)
def clip(request: pytest.FixtureRequest) -> comfy.sd.CLIP:
    with torch.inference_mode():
        return load_clip() if request.param == "starter" else small_models(request.param)[1]


def token(clip: comfy.sd.CLIP, word: str, count: int = 1, seed: int = 0) -> ConceptToken:
    rng = torch.Generator().manual_seed(seed)
    return ConceptToken(
        word, {name: torch.randn(1, count, width, generator=rng) for name, width in widths(clip).items()}
    )


def shown(clip: comfy.sd.CLIP, prompt: str) -> dict[str, list[tuple[object, float]]]:
    """What the stock tokenizer makes of a prompt: ids, and "vector" with its first number for every learned one."""
    rows: dict[str, list[Row]] = clip.tokenize(prompt)
    return {
        encoder: [
            (
                piece
                if isinstance(piece, int)
                else ("vector", (piece["data"] if isinstance(piece, dict) else piece)[0].item()),
                weight,
            )
            for row in found
            for piece, weight in row
        ]
        for encoder, found in rows.items()
    }


def replaced(clip: comfy.sd.CLIP, prompt: str) -> dict[str, list[tuple[object, float]]]:
    """What the plain CLIP makes of a prompt, with the learned vectors put where the ordinary words are."""
    rows = shown(clip, prompt)
    for encoder, row in rows.items():
        vectors = {
            shown(clip, word)[encoder][1][0]: ("vector", token.vectors[f"clip_{encoder}"][0, 0, 0].item())
            for word, token in zip(ORDINARY, tokens(clip), strict=True)
        }
        row[:] = [(vectors.get(piece, piece), weight) for piece, weight in row]
    return rows


def tokens(clip: comfy.sd.CLIP) -> list[ConceptToken]:
    return [token(clip, CAT), token(clip, DOG, seed=1)]


@pytest.mark.parametrize(
    "prompt",
    [
        "{cat}",
        "a photo of {cat}",
        "a photo of ({cat}:1.2) in the snow",
        "a photo of ((({cat})), red:0.7) and {dog}",
        "{cat}, {dog}; {cat}. {dog}!",
        "({cat}) ({dog}:0.5)\n{cat}",
        "a {cat}'s hat, \\({dog}\\)",
        "photo,{cat},photo",
    ],
)
def test_word_takes_the_place_of_an_ordinary_word(clip: comfy.sd.CLIP, prompt: str):
    cat, bear = ORDINARY
    learned = shown(with_words(clip, tokens(clip)), prompt.format(cat=CAT, dog=DOG))
    assert learned == replaced(clip, prompt.format(cat=cat, dog=bear))
    assert len({piece for row in learned.values() for piece, _ in row if not isinstance(piece, int)}) > 0


def test_words_inside_other_words_are_ignored(clip: comfy.sd.CLIP):
    speaking = with_words(clip, [token(clip, DOG)])
    for prompt in ("masks and skss, sks_1", "a photo of tasksks", ""):
        assert shown(speaking, prompt) == shown(clip, prompt)


def test_a_word_of_several_vectors_takes_as_many_places(clip: comfy.sd.CLIP):
    three = token(clip, CAT, count=3)
    for name, row in shown(with_words(clip, [three]), f"red ({CAT}:1.5) red").items():
        values = three.vectors[f"clip_{name}"][0, :, 0].tolist()
        assert row[2:5] == [(("vector", value), 1.5) for value in values]


def test_prompt_is_encoded_with_the_vectors_of_the_word(clip: comfy.sd.CLIP):
    """The vectors of an existing word under a new name: the same states, and pooled vectors, as that word."""
    ids = {name: rows[0][1][0] for name, rows in clip.tokenize("red").items()}
    tables = {
        name: getattr(clip.cond_stage_model, f"clip_{name}").transformer.get_input_embeddings().weight for name in ids
    }
    red = ConceptToken(CAT, {f"clip_{name}": tables[name][ids[name]].float()[None, None] for name in ids})
    speaking = with_words(clip, [red])
    for learned, ordinary in ((f"a {CAT} hat", "a red hat"), (f"a ({CAT}:1.3) hat", "a (red:1.3) hat")):
        found, expected = (
            c.encode_from_tokens(c.tokenize(p), return_dict=True) for c, p in ((speaking, learned), (clip, ordinary))
        )
        for name in ("cond", "pooled_output"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


def test_word_pattern_is_built_once(clip: comfy.sd.CLIP, monkeypatch: pytest.MonkeyPatch):
    """ComfyUI tokenizes a prompt word by word, and a museum may hold thousands of words."""
    made: list[int] = []

    def counted(found: list[str]) -> re.Pattern[str]:
        made.append(len(found))
        return word_pattern(found)

    monkeypatch.setattr(words, "word_pattern", counted)
    speaking = with_words(clip, tokens(clip))
    shown(speaking, f"red {CAT} " * 50)
    assert len(made) == len(tokenizers(clip))


def test_input_clip_is_unchanged(clip: comfy.sd.CLIP):
    before = shown(clip, f"a photo of {CAT}")
    tokenizer = clip.tokenizer
    with_words(clip, [token(clip, CAT)])
    assert clip.tokenizer is tokenizer and shown(clip, f"a photo of {CAT}") == before
    assert known_words(clip) == {}


def test_calls_can_be_chained(clip: comfy.sd.CLIP):
    first, other, second = token(clip, CAT), token(clip, CAT, seed=5), token(clip, DOG)
    both = with_words(with_words(clip, [first]), [second])
    assert known_words(both) == {CAT: first, DOG: second}
    assert known_words(with_words(both, [other])) == {CAT: other, DOG: second}
    assert shown(both.clone(), f"{CAT} {DOG}") == shown(with_words(clip, [first, second]), f"{CAT} {DOG}")
    assert shown(without_words(both, [CAT]), f"{CAT} {DOG}") == shown(with_words(clip, [second]), f"{CAT} {DOG}")
    assert shown(without_words(both, [CAT, DOG]), f"{CAT} {DOG}") == shown(clip, f"{CAT} {DOG}")


def test_tokenizer_survives_lookup_and_recreation_by_the_host(clip: comfy.sd.CLIP):
    """As hiddenswitch's does: a piece of prompt that is one known word, and the tokenizer's class when it clones."""
    for name, tokenizer in tokenizers(with_words(clip, tokens(clip))).items():
        plain = tokenizers(clip)[name].tokenizer.get_vocab()
        assert set(plain) - set(tokenizer.tokenizer.get_vocab()) == {f"{DOG}</w>"} & set(plain)
        again = tokenizer.tokenizer_class.from_pretrained("anywhere", legacy=True)
        for piece, expected in zip(again(CAT)["input_ids"], tokenizer.tokenizer(CAT)["input_ids"], strict=True):
            vectors = [each["data"] if isinstance(each, dict) else torch.as_tensor(each) for each in (piece, expected)]
            assert torch.equal(*vectors)


def test_words_need_no_embeddings_folder_and_mark_their_places():
    clip = load_clip()
    clip.tokenizer.clip_l.embedding_directory = None
    speaking = with_words(clip, [token(clip, CAT)])
    (row,) = speaking.tokenize(f"red ({CAT}:1.1)", return_word_ids=True)["l"]
    assert [weight for _, weight, _ in row[1:3]] == [1.0, 1.1]
    assert [number for _, _, number in row[:4]] == [0, 1, 2, 0]


def test_embedding_files_work_together_with_words(tmp_path):
    from safetensors.torch import save_file

    clip = load_clip()
    clip.tokenizer.clip_l.embedding_directory = [str(tmp_path)]
    save_file({"clip_l": torch.full((1, 128), 7.0)}, tmp_path / "other.safetensors")
    pieces = shown(with_words(clip, [token(clip, CAT)]), f"red embedding:other {CAT}")["l"]
    assert pieces[2][0] == ("vector", 7.0) and pieces[3][0][0] == "vector"


def test_vectors_that_do_not_fit_are_refused(clip: comfy.sd.CLIP):
    wide = ConceptToken(CAT, {name: torch.zeros(1, 1, 999) for name in widths(clip)})
    with pytest.raises(ConceptError, match=r"'<my-cat>' has vectors for .*999 wide"):
        with_words(clip, [wide])
    other = ConceptToken(CAT, {"clip_x": torch.zeros(1, 1, 768)})
    with pytest.raises(ConceptError, match="this model's text encoders are"):
        with_words(clip, [other])


def test_unknown_word_is_reported_on_the_node_of_the_prompt(clip: comfy.sd.CLIP, monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr(words, "warn", messages.append)
    with_word = with_words(clip, [token(clip, "<my-cat>")])
    with_word.tokenize("a photo of (<my-cat>:1.2), embedding:none")
    assert not messages
    with_word.tokenize("a photo of <My-Cat> in the snow")
    assert set(messages) == {"The museum does not show <My-Cat>. Did you mean <my-cat>?"}
    clip.tokenize("a photo of <My-Cat>")
    assert len(set(messages)) == 1
