"""The nodes in this process, over real models in ComfyUI's own classes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from clora_pack.clora_core.errors import BaseModelError, CLoRAError, ConceptError, LearningError
from clora_pack.clora_core.learning.lesson import Lesson
from clora_pack.clora_core.method.recipe import DEFAULT_METHOD, RECIPES, shared_by
from clora_pack.clora_core.model.concept import Concept, ConceptToken
from clora_pack.clora_core.museum.museum import Museum
from clora_pack.clora_core.starter.course import starter_recipe
from clora_pack.nodes.actions.pictures import from_images, to_images
from clora_pack.nodes.host import folders, memory
from clora_pack.nodes.host.base import HostBase
from clora_pack.nodes.host.starter import load_starter
from clora_pack.nodes.host.view import same_museum, view

from .models import FAMILIES, INTERRUPTED, Models, ordinary, random_museum, recipe, small_models, taught

FEW = {"steps": 4, "learning_rate": 1e-2, "rank": 2, "batch_size": 2, "forgetting_weight": 1.0, "training_seed": 0}


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, own_results: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Results and museums of each test are its own."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "museums", ([str(tmp_path / "museums")], {".safetensors"}))
    yield tmp_path


@pytest.fixture(scope="module")
def starter() -> Models:
    with torch.inference_mode():
        return load_starter()


def images(count: int = 4, side: int = 64) -> torch.Tensor:
    return torch.rand(count, side, side, 3, generator=torch.Generator().manual_seed(0))


def concept(nodes: dict[str, Any], word: str = "<one>", **changes: Any) -> Any:
    given = {"kind": "object", "template": "a photo of {word}", "vectors": 1, "start": "", "token_seed": 0}
    return nodes["CLoRA_ConceptToken"].execute(word, **(given | changes)).args[0]


def train(nodes: dict[str, Any], models: Models, word: str = "<one>", **changes: Any) -> tuple:
    given = {"images": images(), "concept": concept(nodes, word), **FEW}
    model, clip, vae = models
    return nodes["CLoRA_TrainStep"].execute(**{"model": model, "clip": clip, "vae": vae} | given | changes).args


def companion(nodes: dict[str, Any], word: str, *before: Any, **changes: Any) -> Any:
    given = {"concept": concept(nodes, word), "images": images(3, 128)}
    return nodes["CLoRA_Companion"].execute(**given | changes, companions=before).args[0]


def forget() -> None:
    """Empty the store, so that the same step trains again."""
    for folder in (folders.results_folder(), folders.results_folder().with_name("kept")):
        for file in folder.iterdir():
            file.unlink()


def result_files() -> list[str]:
    return sorted(path.name.split(".")[1] for path in folders.results_folder().glob("*"))


@pytest.mark.parametrize("family", FAMILIES)
def test_train_step_works_in_every_family(nodes: dict[str, Any], family: str):
    model, clip, museum, loss, preview = train(nodes, small_models(family), steps=2, rank=1)
    assert museum.words == ("<one>",) and len(loss["loss"]) == 2
    assert preview.shape == (4, 64, 64, 3) and preview.isfinite().all()
    (tokens,) = {len(rows) for rows in clip.tokenize("a photo of <one>").values()}
    assert tokens == 1
    assert model is not None and museum.exhibits[0].thumbnail.startswith(b"\xff\xd8")


def test_previews_do_not_change_the_result(nodes: dict[str, Any], starter: Models):
    without = train(nodes, starter)
    forget()
    watched = train(nodes, starter, preview_every=1)
    assert without[3] == watched[3]
    assert same_museum(without[2], watched[2]) and torch.equal(without[4], watched[4])


@pytest.mark.parametrize("failure", [INTERRUPTED, RuntimeError])
def test_stopped_step_resumes_to_the_same_result(
    nodes: dict[str, Any], starter: Models, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
):
    whole = train(nodes, starter, training_seed=3)
    forget()
    predict, calls = HostBase.predict, iter(range(1000))

    def stopped(self: HostBase, *inputs: Any) -> torch.Tensor:
        if next(calls) == 2:
            raise failure("in the middle of the third step")
        return predict(self, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(HostBase, "predict", stopped)
        with pytest.raises(failure):
            train(nodes, starter, training_seed=3)
    assert result_files() == ["state"]
    resumed = train(nodes, starter, training_seed=3)
    assert result_files() == ["result"]
    assert resumed[3] == whole[3] and same_museum(resumed[2], whole[2])


def test_more_steps_continue_and_kept_steps_need_no_training(
    nodes: dict[str, Any], starter: Models, monkeypatch: pytest.MonkeyPatch
):
    whole = train(nodes, starter)
    forget()
    trained: list[int] = []
    step = Lesson.step
    monkeypatch.setattr(Lesson, "step", lambda self, number, state: trained.append(number) or step(self, number, state))
    train(nodes, starter, steps=3, keep_every=2)
    longer = train(nodes, starter)
    assert trained == [0, 1, 2, 3]
    assert longer[3] == whole[3] and same_museum(longer[2], whole[2])
    fewer = train(nodes, starter, steps=2)
    assert trained == [0, 1, 2, 3] and len(fewer[3]["loss"]) == 2 and fewer[2].exhibits[0].recipe.steps == 2


def test_fresh_nodes_use_automatic_numbers(nodes: dict[str, Any], starter: Models):
    """With the defaults of a new graph, except for the number of steps."""
    defaults = {
        socket.id: socket.default
        for socket in nodes["CLoRA_TrainStep"].GET_SCHEMA().inputs
        if getattr(socket, "default", None) is not None
    }
    token = {socket.id: socket.default for socket in nodes["CLoRA_ConceptToken"].GET_SCHEMA().inputs}
    word = nodes["CLoRA_ConceptToken"].execute(**token).args[0]
    model, clip, vae = starter
    taught = (
        nodes["CLoRA_TrainStep"]
        .execute(model=model, clip=clip, vae=vae, images=images(), concept=word, **(defaults | {"steps": 1}))
        .args[2]
    )
    (exhibit,) = taught.exhibits
    assert exhibit.token.words == 2
    assert exhibit.recipe == replace(starter_recipe(DEFAULT_METHOD), steps=1, schedule="constant")


def test_identical_step_is_read_from_disk(nodes: dict[str, Any], starter: Models, monkeypatch: pytest.MonkeyPatch):
    first = train(nodes, starter)
    with monkeypatch.context() as patch:
        patch.setattr(HostBase, "predict", None)  # nothing may be computed, and no weights be loaded for it
        patch.setattr("clora_pack.nodes.host.base.resident_model", None)
        patch.setattr("clora_pack.nodes.host.base.resident_clip", None)
        again = train(nodes, load_starter())
    assert again[3] == first[3] and torch.equal(again[4], first[4])
    assert same_museum(again[2], first[2]) and again[2].exhibits[0].facts == first[2].exhibits[0].facts


@pytest.mark.parametrize(
    "change",
    [
        {"training_seed": 1},
        {"images": images(5)},
        {"captions": "\n".join(["a {word}"] * 4)},
        {"forgetting_weight": 2.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_changed_input_trains_again(nodes: dict[str, Any], starter: Models, change: dict[str, Any]):
    train(nodes, starter, steps=1)
    train(nodes, starter, steps=1, **change)
    assert result_files() == ["result", "result"]


def test_chain_continues_from_the_model_or_the_base(nodes: dict[str, Any], starter: Models):
    model, clip, museum, _, _ = train(nodes, starter, "<one>")
    from_model = train(nodes, (model, clip, starter[2]), "<two>")
    from_both = train(nodes, (model, clip, starter[2]), "<two>", museum=museum)
    from_base = train(nodes, starter, "<two>", museum=museum)
    assert from_model[2].words == ("<one>", "<two>")
    assert same_museum(from_model[2], from_both[2]) and same_museum(from_model[2], from_base[2])
    assert result_files() == ["result", "result"]


def test_numbers_of_the_step_override_the_recipe(nodes: dict[str, Any], starter: Models):
    numbers = {"token_learning_rate": 0.03, "accumulation": 2, "clip_norm": 0.5, "schedule": "cosine", "flip": True}
    (given,) = nodes["CLoRA_Recipe"].execute("c-lora", **numbers).args
    used = train(nodes, starter, recipe=given, forgetting_weight=7.0, training_seed=5)[2].exhibits[0].recipe
    assert (used.steps, used.learning_rate, used.rank, used.batch_size, used.seed) == (4, 1e-2, 2, 2, 5)
    assert used.regularizers[0].weight == 7 * RECIPES["c-lora"].regularizers[0].weight
    assert {name: getattr(used, name) for name in numbers} == numbers


def test_captions_become_the_training_prompts(nodes: dict[str, Any], starter: Models):
    text = "\n".join(f"a {{word}} at the {place}" for place in ("beach", "forest", "city", "snow"))
    as_text = train(nodes, starter, captions=text + "\n")
    as_list = train(nodes, starter, captions=text.splitlines())
    plain = train(nodes, starter)
    assert as_text[3] == as_list[3] != plain[3]


def test_list_of_pictures_is_one_concept(nodes: dict[str, Any], starter: Models):
    """As stock nodes that read a folder return them: a batch for each file, and a list of captions."""
    stacks = [images(1, 64), images(2, 64), images(1, 128)]
    texts = ["a {word} here", "a {word} there", "{word}", "my {word}"]
    listed = train(nodes, starter, images=stacks, captions=texts, steps=[4], museum=[None])
    large = torch.stack([picture.read() for picture in from_images(stacks[2:], multiple=64, resolution_px=64)])
    whole = torch.cat([*stacks[:2], to_images(large)])
    together = train(nodes, starter, images=[whole], captions=["\n".join(texts)])
    assert listed[3]["loss"] == pytest.approx(together[3]["loss"], rel=1e-3)
    assert listed[2].exhibits[0].facts["pictures"] == 4
    (beside,) = companion(nodes, "<two>", images=stacks, captions=texts)
    assert [stack.shape[0] for stack in beside.images] == [1, 2, 1] and beside.captions == texts
    with pytest.raises(CLoRAError, match="'steps' is a list of 2"):
        train(nodes, starter, steps=[4, 5])


def test_another_template_is_another_result_even_with_captions(nodes: dict[str, Any], starter: Models):
    """The captions are the same; the prompt that is stored with the exhibit is not."""
    text = "\n".join(["a {word}"] * 4)
    for template in ("a photo of {word}", "a drawing of {word}"):
        told = train(nodes, starter, concept=concept(nodes, template=template), captions=text)
        assert told[2].exhibits[0].prompt == template.replace("{word}", "<one>")


WRONG = {
    "captions of another count": (ConceptError, {"captions": "a {word}\nthe {word}"}, "4 pictures but 2 captions"),
    "a caption without the word": (ConceptError, {"captions": "\n".join("abcd")}, "does not mention"),
    "no pictures": (ConceptError, {"images": torch.zeros(0, 64, 64, 3)}, "at least one picture"),
    "pictures of nothing": (ConceptError, {"images": torch.full((4, 64, 64, 3), torch.nan)}, "not finite"),
    "no VAE": (CLoRAError, {"vae": None}, "'vae' is None"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_raises_a_clear_error_and_stores_nothing(nodes: dict[str, Any], starter: Models, what: str):
    kind, change, sentence = WRONG[what]
    with pytest.raises(kind, match=sentence):
        train(nodes, starter, **change)
    assert result_files() == []


def test_non_finite_loss_stops_at_the_last_good_state(
    nodes: dict[str, Any], starter: Models, monkeypatch: pytest.MonkeyPatch
):
    predict, calls = HostBase.predict, iter(range(1000))

    def broken(self: HostBase, *inputs: Any) -> torch.Tensor:
        return predict(self, *inputs) * (torch.inf if next(calls) == 2 else 1)

    monkeypatch.setattr(HostBase, "predict", broken)
    with pytest.raises(LearningError, match="finite"):
        train(nodes, starter)
    assert result_files() == ["state"]


@pytest.mark.parametrize("word", ["", " ", "12", "-3.5", "my cat", "cat)", "a:b", "embedding,cat"])
def test_word_that_prompts_cannot_contain_is_refused(nodes: dict[str, Any], word: str):
    with pytest.raises(ConceptError):
        concept(nodes, word)


def test_a_template_has_to_mention_the_word(nodes: dict[str, Any]):
    with pytest.raises(ConceptError, match="does not mention"):
        concept(nodes, template="a photo of a cat")


def test_a_museum_of_another_base_is_refused(nodes: dict[str, Any], starter: Models):
    other = random_museum(HostBase(*small_models("sd15")), "<one>")
    with pytest.raises(CLoRAError, match="of the family 'sd15'"):
        train(nodes, starter, "<two>", museum=other)
    with pytest.raises(CLoRAError, match="of the family 'sd15'"):
        nodes["CLoRA_LoadMuseum"].execute(starter[0], starter[1], "", "", 1.0, other)


def test_a_model_that_shows_another_museum_is_refused(nodes: dict[str, Any], starter: Models):
    base = HostBase(*starter)
    shown = view(*starter[:2], random_museum(base, "<one>"))
    with pytest.raises(BaseModelError, match="already shows a museum"):
        train(nodes, (*shown, starter[2]), "<two>", museum=random_museum(base, "<other>"))


def test_style_has_its_own_default_template(nodes: dict[str, Any]):
    assert concept(nodes, kind="style").prompt == "a <one> style picture"
    assert concept(nodes, kind="style", template="art like {word}").prompt == "art like <one>"
    assert concept(nodes).prompt == "a photo of <one>"


def test_captions_of_built_in_styles_match_their_pictures(nodes: dict[str, Any], starter: Models):
    images, told = nodes["CLoRA_StarterPictures"].execute("neon", 64, 0)
    lines = told.splitlines()
    assert len(lines) == len(images) and all("{word}" in line for line in lines)
    prompts = [line.replace("{word}", "red red") for line in lines]  # a word of two vectors
    assert all(len(starter[1].tokenize(prompt)["l"]) == 1 for prompt in prompts)
    assert nodes["CLoRA_StarterPictures"].execute("ada", 2, 0)[1] == ""


def test_unknown_subject_raises_a_clear_error(nodes: dict[str, Any]):
    with pytest.raises(ConceptError, match="no built-in subject 'zoe'"):
        nodes["CLoRA_StarterPictures"].execute("zoe", 1, 0)


def test_memory_estimate_grows_with_the_settings(starter: Models):
    museum = Museum((base := HostBase(*small_models("sd15"))).fingerprint)
    small = memory.step_bytes(base, recipe(batch_size=1), museum, 512, 512)
    assert 1.3 * 2**30 < small < 1.5 * 2**30  # 0.69 GiB in 16 bits, counted on the real UNet's shape
    assert memory.step_bytes(base, recipe(batch_size=4), museum, 512, 512) > 3.9 * small
    assert memory.step_bytes(base, recipe(checkpointing=True), museum, 512, 512) < small
    assert "GiB on top of the models' " in memory.memory_note(base, recipe(batch_size=4), museum, 512, 512)


def test_memory_estimate_counts_converted_copies_of_weights():
    """As much as autograd really keeps for a UNet that is stored in float16 and computed in float32; for the text
    encoder it keeps nothing."""
    kept, said = [], []
    for stored in (torch.float32, torch.float16):
        model, clip, vae = small_models("sd15", stored, torch.float32)
        clip.cond_stage_model.to(stored)
        base = HostBase(model, clip, vae)
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with ordinary(), base.learning(precision="fp32", checkpointing=False):
            token = ConceptToken("<one>", {"clip_l": torch.zeros(1, 1, 768, requires_grad=True)})
            own = {weight.untyped_storage().data_ptr() for weight in all_weights(model, clip)}
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                conditioning = base.encode_prompts(["a <one>"], [token])
            text = sum(
                weight.numel() * 4
                for weight in clip.cond_stage_model.clip_l.transformer.text_model.encoder.parameters()
            )
            assert sum(size for place, size in storages.items() if place not in own) < text / 3, (
                "less than one of its three layers"
            )
            storages.clear()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                predicted = base.predict(torch.ones(1, 4, 8, 8), torch.tensor([500]), conditioning)
            kept.append(sum(size for place, size in storages.items() if place not in own))
            del predicted
        said.append(memory.step_bytes(base, recipe(), Museum(base.fingerprint), 64, 64))
    assert said[1] - said[0] == pytest.approx(kept[1] - kept[0], rel=0.1)


def all_weights(model: Any, clip: Any) -> list[torch.Tensor]:
    return [*model.model.diffusion_model.parameters(), *clip.cond_stage_model.parameters()]


def test_without_a_museum_a_new_one_begins(nodes: dict[str, Any], starter: Models):
    with ordinary():
        empty = Museum(HostBase(*starter).fingerprint)
    given, absent = train(nodes, starter, museum=empty), train(nodes, starter)
    assert same_museum(given[2], absent[2]) and len(result_files()) == 1


def test_companions_match_joint_learning_of_the_engine(nodes: dict[str, Any], starter: Models):
    companions = companion(nodes, "<three>", *companion(nodes, "<two>"))
    model, clip, museum, loss, preview = train(nodes, starter, companions=companions)
    assert museum.words == ("<two>", "<three>", "<one>") and preview.shape == (3, 64, 64, 3)
    chosen = {"steps": 4, "learning_rate": 1e-2, "rank": 2, "batch_size": 2, "schedule": "constant"}
    recipe = shared_by(replace(starter_recipe(DEFAULT_METHOD), **chosen), 3)
    with ordinary():
        base = HostBase(*starter)
        asked = [("<two>", images(3, 128)), ("<three>", images(3, 128)), ("<one>", images())]
        *others, one = [Concept(word, from_images([stack], multiple=64, resolution_px=64)) for word, stack in asked]
        expected = taught(base, Museum(base.fingerprint), one, recipe, companions=others)
    assert same_museum(museum, expected) and len(loss["loss"]) == 12
    assert museum.exhibits[2].rank == 6 and not museum.exhibits[0].deltas
    assert all(exhibit.thumbnail and exhibit.facts["date"] for exhibit in museum.exhibits)
    assert {len(rows) for rows in clip.tokenize("a photo of <one>, <two> and <three>").values()} == {1}
    assert model is not None


def test_companions_are_read_from_disk_and_belong_to_the_key(
    nodes: dict[str, Any], starter: Models, monkeypatch: pytest.MonkeyPatch
):
    first = train(nodes, starter, companions=companion(nodes, "<two>"))
    with monkeypatch.context() as patch:
        patch.setattr(HostBase, "predict", None)  # nothing may be computed
        again = train(nodes, starter, companions=companion(nodes, "<two>"))
    assert same_museum(again[2], first[2]) and again[3] == first[3] and torch.equal(again[4], first[4])
    assert [e.facts for e in again[2].exhibits] == [e.facts for e in first[2].exhibits]
    train(nodes, starter, companions=companion(nodes, "<two>", images=images(4, 128)))
    train(nodes, starter)
    assert result_files() == ["result"] * 3


def test_incompatible_companions_are_refused(nodes: dict[str, Any], starter: Models):
    with pytest.raises(ConceptError, match="Give each its own word"):
        train(nodes, starter, companions=companion(nodes, "<one>"))
    (gated,) = nodes["CLoRA_Recipe"].execute("word-gated").args
    with pytest.raises(LearningError, match="cannot act at the word of one"):
        train(nodes, starter, companions=companion(nodes, "<two>"), recipe=gated)
    with pytest.raises(ConceptError, match="3 pictures but 1 captions"):
        train(nodes, starter, companions=companion(nodes, "<two>", captions="a {word}"))
    assert result_files() == []
