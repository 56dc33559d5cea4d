"""`import`, as a person types it, on the built-in model."""

import pytest
import torch
from safetensors.torch import save_file

from clora_core.cli import main
from clora_core.museum.file import load_museum
from clora_core.over_diffusers.base import DiffusersBase, open_base
from clora_core.starter.subjects import pictures
from tests.small import bits, tensors_of

TEXT = "red cat"


@pytest.fixture(scope="module")
def starter() -> DiffusersBase:
    return open_base("starter")


@pytest.fixture
def lora(starter, tmp_path):
    """A LoRA as kohya's trainer names it, with a text encoder's part, and nothing of ours."""
    rng, tensors = torch.Generator().manual_seed(0), {}
    for projection in starter.slots:
        stem, (rows, columns) = "lora_unet_" + projection.path.replace(".", "_"), projection.shape
        tensors[f"{stem}.lora_up.weight"] = 1e-2 * torch.randn(rows, 4, generator=rng)
        tensors[f"{stem}.lora_down.weight"] = torch.randn(4, columns, generator=rng)
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


@pytest.fixture
def museum(tmp_path):
    return tmp_path / "zoo.safetensors"


def bring(museum, word, *options) -> int:
    return main(["import", "--museum", str(museum), "--word", word, *map(str, options)])


def test_imported_lora_acts_as_its_trigger_words(starter, lora, museum, capsys):
    known = ["--lora", lora, "--start", TEXT, "--base", "starter"]
    assert bring(museum, "<tom>", *known) == 1
    assert "--skip-others" in capsys.readouterr().err and not museum.exists()
    assert bring(museum, "<tom>", *known, "--skip-others") == 0
    assert "Left out: 1 tensor of text encoders" in capsys.readouterr().out
    (tom,) = load_museum(museum).exhibits
    assert (tom.rank, tom.recipe.method, tom.facts["imported"]) == (4, "imported", ["cat.safetensors"])
    prompts = [f"a photo of {TEXT} on a beach"], [f"a photo of {tom.word} on a beach"]
    text, word = (starter.encode_prompts(prompt, [tom.token]).states for prompt in prompts)
    assert torch.equal(text, word)


def test_learning_continues_after_an_import(starter, lora, museum, tmp_path, capsys):
    bring(museum, "<tom>", "--lora", lora, "--start", "cat", "--base", "starter", "--skip-others")
    before = bits(tensors_of(load_museum(museum)))
    (tmp_path / "ada").mkdir()
    for number, picture in enumerate(pictures("ada", 2, seed=0)):
        picture.save(tmp_path / "ada" / f"{number}.png")
    options = ["--base", "starter", "--museum", str(museum), "--word", "<ada>", "--images", str(tmp_path / "ada")]
    assert main(["learn", *options, "--steps", "2", "--rank", "2", "--batch-size", "2"]) == 0
    learned = load_museum(museum)
    assert learned.words == ("<tom>", "<ada>")
    assert bits(tensors_of(learned.only(["<tom>"]))) == before


def test_existing_museum_needs_no_model(lora, museum, tmp_path, capsys):
    bring(museum, "<tom>", "--lora", lora, "--start", "cat", "--base", "starter", "--skip-others")
    save_file({"emb_params": torch.ones(2, 128)}, tmp_path / "word.safetensors")
    assert bring(museum, "<kit>", "--lora", lora, "--embedding", tmp_path / "word.safetensors", "--skip-others") == 0
    assert bring(museum, "<word>", "--embedding", tmp_path / "word.safetensors", "--kind", "style") == 0
    both = load_museum(museum)
    assert both.words == ("<tom>", "<kit>", "<word>") and not both.exhibits[2].deltas
    assert both.exhibits[2].prompt == "a <word> style picture"
    for projection, delta in both.exhibits[0].deltas.items():
        assert torch.equal(delta.up, both.exhibits[1].deltas[projection].up)
    assert bring(museum, "<kit>", "--embedding", tmp_path / "word.safetensors") == 1
    assert "<kit>" in capsys.readouterr().err and load_museum(museum).words == both.words


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--base", "starter"], "nothing to import"),
        (["--lora", "LORA", "--skip-others"], "--base"),
        (["--lora", "LORA", "--skip-others", "--base", "starter"], "--start"),
        (["--lora", "LORA", "--skip-others", "--base", "starter", "--start", "zyzzyva"], "zyzzyva"),
        (["--lora", "nowhere.safetensors", "--base", "starter"], "nowhere"),
        (["--embedding", "LORA", "--base", "starter"], "tensors"),
        (["--embedding", "LORA", "--base", "nowhere"], "tensors"),
    ],
)
def test_invalid_import_raises_a_clear_error_and_writes_no_file(lora, museum, capsys, options, rule):
    assert bring(museum, "<tom>", *[lora if option == "LORA" else option for option in options]) == 1
    assert rule in capsys.readouterr().err and not museum.exists()


def test_one_bundled_word_is_imported_and_the_others_are_named(starter, lora, museum, capsys):
    from safetensors.torch import load_file

    tensors = {name: tensor for name, tensor in load_file(lora).items() if "lora_te" not in name}
    words = {"tom": torch.ones(1, 128), "kit": torch.zeros(1, 128), "ann": torch.ones(2, 128)}
    save_file(tensors | {f"bundle_emb.{word}.string_to_param.*": value for word, value in words.items()}, lora)
    assert bring(museum, "<kit>", "--lora", lora, "--base", "starter") == 0
    output = capsys.readouterr()
    assert "Not imported, other words of this LoRA: ann, tom." in " ".join((output.out + output.err).split())
    assert torch.equal(load_museum(museum).exhibit("<kit>").token.vectors["clip_l"], torch.zeros(1, 1, 128))
    assert bring(museum, "<leo>", "--lora", lora, "--base", "starter") == 1
    assert "has vectors for the words ann, kit, tom" in capsys.readouterr().err
