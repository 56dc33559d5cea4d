"""Another checkpoint of the same family is noticed; learning over it needs permission."""

import dataclasses

import pytest
import torch

from clora_core.errors import BaseModelError
from clora_core.learning.learn import Learning
from clora_core.model.base import Base, Fingerprint, fingerprint
from clora_core.museum.museum import Museum
from tests.small import museum_of, short, small_base, small_concept


@pytest.fixture(scope="module")
def other() -> Base:
    return small_base(seed=7)


def test_every_weight_of_the_projections_changes_the_fingerprint():
    base = small_base()
    before = fingerprint(base.family, base.slots)
    module = list(base.slots.values())[3].module
    with torch.no_grad():
        module.weight[5, 6] += 0.25
        changed = fingerprint(base.family, base.slots)
        module.weight[5, 6] -= 0.25
    assert changed != before == fingerprint(base.family, base.slots)
    assert changed.digest[:64] == before.digest[:64], "its first row is the same"


def test_fingerprints_are_equal_across_precisions_and_older_museums():
    base = small_base()
    whole = fingerprint(base.family, base.slots)
    base.unet.half()
    half = fingerprint(base.family, base.slots)
    base.unet.float()
    assert half == whole == fingerprint(base.family, base.slots)
    assert Fingerprint(whole.family, whole.digest[:64]) == whole and len({whole, half}) == 1
    assert Fingerprint("sd15", whole.digest) != whole


def test_another_checkpoint_needs_permission(base: Base, other: Base):
    museum, concept, recipe = museum_of(base, "<one>"), small_concept("<two>", seed=1), short()
    with pytest.raises(BaseModelError, match="--other-checkpoint"):
        Learning(other, museum, (concept,), recipe)
    learning = Learning(other, museum, (concept,), recipe, "tuned.safetensors", other_checkpoint=True)
    assert str(other.fingerprint) in learning.notes[0] and str(base.fingerprint) in learning.notes[0]
    (exhibit,) = learning.run()
    assert exhibit.facts["checkpoint"] == f"tuned.safetensors · {other.fingerprint.digest[:8]}"
    assert museum.exhibits[0].facts["checkpoint"] == base.fingerprint.digest[:8]
    assert learning.key != Learning(base, museum, (concept,), recipe).key

    foreign = dataclasses.replace(museum, base=Fingerprint("sd15", "0" * 64))
    with pytest.raises(BaseModelError, match="sd15"):
        Learning(other, foreign, (concept,), recipe, other_checkpoint=True)


def test_everyday_captions_are_part_of_the_key(base: Base):
    key = Learning(base, Museum(base.fingerprint), (small_concept(),), short()).key
    reworded = small_base()
    reworded.family = dataclasses.replace(base.family, captions=("a red thing",))
    assert Learning(reworded, Museum(base.fingerprint), (small_concept(),), short()).key != key
