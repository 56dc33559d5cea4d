"""The built-in model: its world, its words, its weights, its judge."""

import random

import pytest
import torch

from clora_core.model.families.starter import STARTER
from clora_core.pictures import as_floats, to_bytes
from clora_core.starter.draw import draw
from clora_core.starter.judge import agreement, identified, load_judge, read
from clora_core.starter.layout import END, TOKENS, UNKNOWN, WEIGHTS
from clora_core.starter.model import build_tokenizer, load_starter_parts
from clora_core.starter.styles import BASE, HELD_BACK, SPARE
from clora_core.starter.subjects import (
    ALL_IDENTITIES,
    CROWD,
    IDENTITIES,
    SPARE_IDENTITIES,
    STYLES,
    candidates,
    captions,
    pictures,
    scenes,
)
from clora_core.starter.world import (
    BASE_STYLES,
    IDENTITY,
    PORTRAIT,
    UNSAYABLE,
    Scene,
    caption,
    describe,
    imagine,
    imagine_portrait,
)


def stacked(drawn):
    return as_floats(torch.stack([to_bytes(picture) for picture in drawn]))


def test_the_same_picture_is_always_drawn_the_same_way():
    picture, _ = imagine(random.Random(4))
    assert draw(picture).tobytes() == draw(picture).tobytes()


def test_every_value_of_every_attribute_changes_the_picture():
    """Changing one attribute of a portrait changes the picture."""
    plain = {name: values[0] for name, values in PORTRAIT.items()} | {"hairstyle": "short", "eyes": "big"}
    for name, values in PORTRAIT.items():
        drawn = [draw(Scene(plain | {name: value})).tobytes() for value in values]
        assert len(set(drawn)) == len(values), name


def test_no_caption_mentions_an_unsayable_attribute():
    rng = random.Random(1)
    for number in range(200):
        portrait = imagine_portrait(rng)
        other = portrait | {name: rng.choice(PORTRAIT[name]) for name in UNSAYABLE}
        texts = [caption(Scene(attributes), random.Random(number)) for attributes in (portrait, other)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("group", [IDENTITIES, CROWD])
def test_every_identity_shares_four_traits_with_at_least_two_others(group):
    for name, traits in group.items():
        others = [other for key, other in group.items() if key != name]
        shared = [sum(traits[trait] == other[trait] for trait in IDENTITY) for other in others]
        assert sum(count >= 4 for count in shared) >= 2 and max(shared) <= 5, name


def test_the_groups_are_disjoint_and_every_identity_has_candidates():
    groups = (IDENTITIES, SPARE_IDENTITIES, CROWD)
    assert len(ALL_IDENTITIES) == sum(map(len, groups)) == 33
    assert len({tuple(traits.values()) for traits in ALL_IDENTITIES.values()}) == 33
    assert all(name in candidates(name) and len(candidates(name)) >= 10 for name in ALL_IDENTITIES)


def test_captions_never_describe_an_identity_in_full():
    """The longest caption also fits identities that differ in unsayable attributes."""
    for traits in ALL_IDENTITIES.values():
        others = [traits | {name: value} for name in UNSAYABLE for value in PORTRAIT[name] if value != traits[name]]
        clothes = imagine_portrait(random.Random(0))
        assert {describe(clothes | other) for other in others} == {describe(clothes | traits)}


def test_every_caption_fits_and_has_only_known_words():
    rng, tokenizer = random.Random(2), build_tokenizer()
    unknown = tokenizer.convert_tokens_to_ids(UNKNOWN)
    for _ in range(500):
        ids = tokenizer(imagine(rng)[1]).input_ids
        assert len(ids) <= TOKENS and unknown not in ids


def test_everyday_captions_of_the_starter_do_not_change():
    """Existing museums were learned with these captions."""
    rng = random.Random(7)
    assert STARTER.captions == ("", *(imagine(rng)[1] for _ in range(159)))


def test_the_tokenizer_pads_with_the_end_token():
    tokenizer = build_tokenizer()
    ids = tokenizer("A cat", padding="max_length", max_length=TOKENS).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:5] == ["<|startoftext|>", "a", "cat", END, END]


def test_pictures_of_an_identity_differ_and_are_reproducible():
    for traits in ALL_IDENTITIES.values():
        assert all(traits[name] in PORTRAIT[name] for name in IDENTITY)
    first, again, other = (pictures("ada", 4, seed=seed) for seed in (0, 0, 1))
    assert [p.tobytes() for p in first] == [p.tobytes() for p in again]
    assert len({p.tobytes() for p in first + other}) == 8


def test_styles_to_learn_are_not_styles_of_the_base():
    assert len(STYLES) >= 5 and not set(HELD_BACK) & set(BASE) and set(BASE_STYLES) == {"plain", *BASE}
    plain = draw(imagine(random.Random(0))[0])
    assert (
        len({style(plain).tobytes() for style in (BASE | HELD_BACK | SPARE).values()})
        == len(BASE | HELD_BACK | SPARE)
        == 12
    )


def test_captions_of_a_style_describe_the_content_of_its_pictures():
    lines, drawn = captions("neon", 40, seed=3), scenes("neon", 40, seed=3)
    for line, picture in zip(lines, drawn, strict=True):
        kind = picture.attributes.get("kind") or picture.attributes["thing"]
        assert line.startswith("a {word} style picture of a ") and kind in line.split()
    assert captions("ada", 4, seed=3) == ()


def test_an_unknown_subject_is_refused():
    with pytest.raises(ValueError, match="no built-in subject"):
        pictures("nobody", 1, seed=0)


def test_the_weights_are_small_and_load():
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.glob("*.safetensors")}
    assert sizes["judge.safetensors"] <= 2 * 2**20
    assert sum(sizes.values()) - sizes["judge.safetensors"] <= 12 * 2**20
    starter = load_starter_parts()
    assert not any(parameter.requires_grad for parameter in starter.unet.parameters())


def test_the_vae_keeps_the_attributes_that_the_judge_reads():
    """After encoding and decoding, the judge still finds nearly all that it finds on the drawings."""
    rng, judge, vae = random.Random(9), load_judge(), load_starter_parts().vae
    portraits = [imagine_portrait(rng) for _ in range(128)]
    real = stacked([draw(Scene(attributes, seed=i)) for i, attributes in enumerate(portraits)])
    with torch.no_grad():
        again = vae.decode(vae.encode(real).latents).sample
    assert agreement(read(judge, again), portraits).mean() >= 0.9 * agreement(read(judge, real), portraits).mean()


def test_the_judge_recognizes_every_identity_on_real_pictures():
    judge = load_judge()
    for name in ALL_IDENTITIES:
        found = identified(read(judge, stacked(pictures(name, 24, seed=77))), candidates(name))
        assert found.count(name) >= 22, name
