"""The small transformers follow prompts, and learn as the built-in model does: only words and deltas move."""

import pytest
import torch

from clora_core.bench.small_transformers import WEIGHTS, SmallBase, open_small
from clora_core.learning.learn import learn
from clora_core.museum.museum import Museum, viewing
from clora_core.starter.course import starter_recipe
from clora_core.starter.exam import Examiner, captioned, concept_of, plain_requests
from clora_core.starter.judge import agreement, load_judge, read

NAMES = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


@pytest.fixture(scope="module", params=NAMES)
def small(request: pytest.FixtureRequest) -> SmallBase:
    return open_small(request.param)


def test_pictures_show_their_own_prompt_rather_than_another(small: SmallBase):
    judge, count = load_judge(), 16
    _, pictures = Examiner(small, judge).plain_prompts(Museum(small.fingerprint), count=count)
    asked = [captioned(scene) for _, scene in plain_requests(count, seed=0)]
    verdict = read(judge, pictures)
    own, other = (agreement(verdict, wanted).mean().item() for wanted in (asked, asked[4:] + asked[:4]))
    assert own > 0.7 and own > other + 0.2


def test_learning_changes_no_weight_and_a_gated_word_no_other_prompt(small: SmallBase):
    before = {name: value.clone() for name, value in small.network.state_dict().items()}
    empty = Museum(small.fingerprint)
    concept = concept_of("kim", 4, seed=0, vectors=2)
    museum = empty.with_exhibits(*learn(small, empty, [concept], starter_recipe("word-gated-onwards", steps=3)))
    assert all(value.equal(before[name]) for name, value in small.network.state_dict().items())

    latents = torch.randn(1, *small.latent_shape(64, 64), generator=torch.Generator().manual_seed(2))

    def predicted(prompt: str, shown: Museum) -> torch.Tensor:
        with viewing(small, shown.dense(), shown.gated), torch.no_grad():
            return small.predict(latents, torch.tensor([700]), small.encode_prompts([prompt], museum.tokens))

    plain, own = "a photo of a smiling cat", "a photo of <kim>"
    assert predicted(plain, museum).equal(predicted(plain, empty))
    assert not predicted(own, museum).equal(predicted(own, empty))
