"""Importing LoRAs and embeddings: what is supported, what is refused, and learning on top of them."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clora_core.errors import CLoRAError, ConceptError, MuseumError
from clora_core.museum.file import export, imported, load_museum, read_embedding, read_lora, save_museum
from clora_core.museum.museum import Museum
from tests.families import FAMILIES, small_pipeline
from tests.museums import assert_same, exhibit, museum, projections, replace_somewhere
from tests.small import C_LORA, bits, short, small_concept, taught, tensors_of

WORDS = {"sd15": {"clip_l": 768}, "sd2": {"clip_h": 1024}, "sdxl": {"clip_l": 768, "clip_g": 1280}}
STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
OTHERS = {
    "a text encoder": (
        {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": ()},
        r"1 tensor of text encoders \('[^…]*'\)",
    ),
    "SDXL's second text encoder": ({"lora_te2_text_model_x.lora_up.weight": (4, 1)}, "of text encoders"),
    "diffusers' text encoder": ({"text_encoder.text_model.x.lora_A.weight": (4, 1)}, "of text encoders"),
    "self-attention": ({f"{STEM}_attn1_to_k.lora_up.weight": (8, 2)}, "1 tensor of other layers"),
    "queries": ({f"{STEM}_attn2_to_q.lora_up.weight": (8, 2)}, "attn2_to_q"),
    "outputs": ({f"{STEM}_attn2_to_out_0.lora_up.weight": (8, 2)}, "attn2_to_out"),
    "convolutions": ({"lora_unet_conv_in.lora_down.weight": (4, 4, 3, 3)}, "conv_in"),
    "DoRA": (
        {f"{STEM}_attn2_to_v.dora_scale": (8, 1)},
        "3 tensors of key and .* not a plain LoRA",
    ),
    "LoHa": ({f"{STEM}_attn2_to_v.hada_w1_a": (8, 2)}, "not a plain LoRA"),
    "LoKr": ({f"{STEM}_attn2_to_v.lokr_w1": (8, 2)}, "not a plain LoRA"),
    "a whole difference": ({f"{STEM}_attn2_to_v.diff": (8, 768)}, "not a plain LoRA"),
    "Tucker's middle": ({f"{STEM}_attn2_to_v.lora_mid.weight": (2, 2)}, "not a plain LoRA"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_unsupported_tensors_are_named_and_refused_or_left_out(what, tmp_path):
    more, named = OTHERS[what]
    plain = {f"{STEM}_attn2_to_{role}": (torch.randn(8, 2), torch.randn(2, 768)) for role in "kv"}
    tensors = {f"{stem}.lora_up.weight": up for stem, (up, _) in plain.items()}
    tensors |= {f"{stem}.lora_down.weight": down for stem, (_, down) in plain.items()}
    save_file(tensors | {name: torch.ones(shape) for name, shape in more.items()}, tmp_path / "a.safetensors")
    with pytest.raises(MuseumError, match=named) as refused:
        read_lora(tmp_path / "a.safetensors")
    assert "--skip-others" in str(refused.value) and next(iter(more)) in str(refused.value)
    lora = read_lora(tmp_path / "a.safetensors", skip_others=True)
    assert [re.search(named, left_out) is not None for left_out in lora.left_out] == [True]
    whole = {"key"} if "not a plain LoRA" in named else {"key", "value"}
    assert {projection.role for projection in lora.deltas} == whole


def test_a_lora_that_changes_nothing_is_refused(tmp_path: Path):
    stem = f"{STEM}_attn2_to_k"
    factors = {f"{stem}.lora_up.weight": torch.ones(8, 2), f"{stem}.lora_down.weight": torch.ones(2, 768)}
    save_file(factors | {f"{stem}.alpha": torch.tensor(0.0)}, tmp_path / "a.safetensors")
    with pytest.raises(MuseumError, match="changes nothing"):
        read_lora(tmp_path / "a.safetensors")


def written(path: Path, **tensors: Tensor) -> Path:
    """A file of one key projection, changed by the given parts of it."""
    parts = {"lora_up.weight": torch.ones(8, 2), "lora_down.weight": torch.ones(2, 768), "alpha": torch.tensor(1.0)}
    parts |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({f"{STEM}_attn2_to_k.{name}": tensor for name, tensor in parts.items()}, path)
    return path


def test_broken_loras_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "a.safetensors"
    nan = torch.full((8, 2), torch.nan)
    for make, rule in (
        (lambda: written(path, lora_up__weight=nan), "not finite"),
        (lambda: written(path, lora_up__weight=torch.ones(8, 3)), r"\(8, 3\) and \(2, 768\)"),
        (lambda: written(path, lora_up__weight=torch.ones(8, 2, 1, 1)), r"not \(out, rank\)"),
        (lambda: written(path, lora_up__weight=torch.ones(8, 0), lora_down__weight=torch.ones(0, 768)), "shapes"),
        (lambda: written(path, alpha=torch.ones(2)), "one number"),
        (lambda: written(path, alpha=torch.tensor(torch.inf)), "not finite"),
        (lambda: written(path, lora_up__weight=torch.ones(8, 2, dtype=torch.int32)), "floating point"),
        (lambda: written(path, lora_down__weight=torch.ones(2, 999)), "999"),
        (lambda: written(path, lora_B__weight=torch.ones(8, 2)), "are the same"),
        (lambda: save_file({"x": torch.ones(1)}, path), "no plain LoRA .*attn2.to_k"),
        (lambda: save_file({}, path), "It has no tensors"),
        (lambda: path.write_bytes(b"\x80\x02}q\x00."), "safetensors"),
        (lambda: save_museum(museum(), path, overwrite=True), "is a museum.*--merge"),
    ):
        make()
        with pytest.raises(MuseumError, match=rule) as refused:
            read_lora(path)
        assert str(refused.value).startswith("a.safetensors")
    with pytest.raises(MuseumError, match=r"Only \.safetensors"):
        read_lora(path.rename(tmp_path / "a.pt"))


def test_corrupted_loras_and_embeddings_raise_only_museum_errors(tmp_path):
    """After a harmless change, the file is read and all its numbers are finite."""
    path, refused = tmp_path / "a.safetensors", 0
    save_file({"<cat>": torch.ones(2, 768)}, path, {"name": "cat"})
    embedding = path.read_bytes()
    lora = written(path).read_bytes()
    for seed in range(300):
        rng, raw = random.Random(seed), (lora, embedding)[seed % 2]
        size = 8 + int.from_bytes(raw[:8], "little")
        if seed % 3:
            header = json.loads(raw[8:size])
            replace_somewhere(header, rng)
            text = json.dumps(header).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + raw[size:])
        else:
            flipped = bytearray(raw)
            for _ in range(4):
                flipped[rng.randrange(size + 64)] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
        try:
            if seed % 2:
                assert all(vectors.isfinite().all() for vectors in read_embedding(path).values())
            else:
                assert all(delta.dense().isfinite().all() for delta in read_lora(path).deltas.values())
        except MuseumError as error:
            refused += 1
            assert str(error).startswith("a.safetensors") and len(str(error)) < 1000
    assert refused > 150


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ("[", "invalid JSON"),
        ("[]", "an object"),
        ('{"lora_alpha": "1"}', "lora_alpha"),
        ('{"lora_alpha": 1, "alpha_pattern": {"(a+)+$": 1}}', "not a plain path"),
        ('{"lora_alpha": 1, "alpha_pattern": {"attn2": true}}', "finite number"),
        ('{"lora_alpha": NaN}', "invalid JSON"),
        (" " * 2**21, "adapter_config"),
    ],
)
def test_an_invalid_peft_config_is_refused(config, rule, tmp_path):
    path = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{path}.lora_B.weight": torch.ones(8, 2), f"{path}.lora_A.weight": torch.ones(2, 768)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(MuseumError, match=rule):
        read_lora(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_in_every_layout_are_read(family, tmp_path):
    path = tmp_path / "cat.safetensors"
    vectors = {name: torch.randn(3, width) for name, width in WORDS[family].items()}
    kinds = [vectors]
    if len(vectors) == 1:
        (only,) = vectors.values()
        kinds += [{"emb_params": only}, {"<cat>": only}, {"<cat>": only.half()}, {"<cat>": only[0].clone()}]
    for kind in kinds:
        save_file(kind, path)
        for name, tensor in read_embedding(path).items():
            (given,) = kind.values() if len(kind) == 1 else (kind[name],)
            assert set(WORDS[family]) == set(read_embedding(path))
            assert torch.equal(tensor[0], given.float().reshape(-1, given.shape[-1]))


@pytest.mark.parametrize("family", ["sd15", "sd2"])
def test_embeddings_saved_by_diffusers_are_read(family, tmp_path):
    """As its textual inversion scripts save them: rows of the encoder's table under the word."""
    table = small_pipeline(family).text_encoder.get_input_embeddings().weight.detach()
    save_file({"<cat>": table[40:42].clone()}, tmp_path / "learned_embeds.safetensors")
    (vectors,) = read_embedding(tmp_path / "learned_embeds.safetensors").values()
    assert torch.equal(vectors[0], table[40:42])


def test_an_embedding_for_one_encoder_is_refused_for_sdxl(tmp_path):
    save_file({"<cat>": torch.ones(1, 768)}, tmp_path / "a.safetensors")
    with pytest.raises(MuseumError, match=r"clip_g of sdxl.*both files"):
        imported(museum("sdxl").base, "<c>", read_embedding(tmp_path / "a.safetensors"), known=())


@pytest.mark.parametrize(
    ("tensors", "rule"),
    [
        ({"a": torch.ones(2, 999)}, "999"),
        ({"a": torch.ones(1, 768), "b": torch.ones(1, 768)}, "matches no known family"),
        ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 768)}, "matches no known family"),
        ({"clip_g": torch.ones(1, 1280)}, "matches no known family"),
        ({str(n): torch.ones(1, 768) for n in range(4)}, "4 tensors"),
        ({"a": torch.ones(1, 1, 768)}, r"\(words, width\)"),
        ({"a": torch.ones(0, 768)}, r"\(words, width\)"),
        ({"a": torch.full((1, 768), torch.nan)}, "not finite"),
        ({"a": torch.ones(1, 768, dtype=torch.int64)}, "floating point"),
        ({}, "no tensors"),
    ],
)
def test_files_without_an_embedding_are_refused(tensors, rule, tmp_path):
    save_file(tensors, tmp_path / "cat.safetensors")
    with pytest.raises(MuseumError, match=rule):
        read_embedding(tmp_path / "cat.safetensors")


@pytest.mark.parametrize("encoders", [{"emb_params": 768}, {"clip_l": 768, "clip_g": 1280}], ids=["sd15", "sdxl"])
def test_output_embeddings_are_refused_alone_and_skipped_beside_others(encoders, tmp_path):
    """OneTrainer can save both."""
    path, inner = tmp_path / "a.safetensors", {name: torch.randn(2, width) for name, width in encoders.items()}
    outer = {f"{name}_out": torch.randn(2, width) for name, width in encoders.items()}
    save_file(outer, path)
    with pytest.raises(MuseumError, match=r"has only '.*_out', an embedding of the text encoder's output"):
        read_embedding(path)
    save_file(outer | inner, path)
    read = list(read_embedding(path).values())
    assert all(any(torch.equal(found[0], given) for given in inner.values()) for found in read) and len(read) == len(
        inner
    )


@pytest.mark.parametrize(
    ("name", "tensors"), [("a.pt", "string_to_param"), ("a.bin", "items()"), ("a.ckpt", "items()")]
)
def test_pickle_formats_are_refused_with_conversion_advice(name, tensors, tmp_path):
    torch.save({"string_to_param": {"*": torch.ones(2, 768)}}, tmp_path / name)
    with pytest.raises(MuseumError, match=r"can run code\. To convert") as refused:
        read_embedding(tmp_path / name)
    assert f"torch.load('{name}', weights_only=True)" in str(refused.value) and tensors in str(refused.value)
    with pytest.raises(MuseumError, match=r"save_file\(\{k: v"):
        read_lora(tmp_path / name)


@pytest.mark.parametrize("adapter", ["default", "default_0", "my-cat"])
def test_tensor_names_may_contain_the_adapter_name_of_peft(adapter, tmp_path):
    on, rng = projections("sd15"), torch.Generator().manual_seed(0)
    factors = {p: (torch.randn(p.shape[0], 4, generator=rng), torch.randn(4, p.shape[1], generator=rng)) for p in on}
    named = {
        f"unet.{p.path}.lora_{letter}.{adapter}.weight": factor
        for p, (up, down) in factors.items()
        for letter, factor in (("B", up), ("A", down))
    }
    save_file(named, tmp_path / "a.SAFETENSORS")
    deltas = read_lora(tmp_path / "a.SAFETENSORS").deltas
    assert set(deltas) == set(on) and all(torch.equal(deltas[p].up, up) for p, (up, _) in factors.items())
    other = {name.replace(f".{adapter}.", ".other."): tensor.clone() for name, tensor in named.items()}
    save_file(named | other, tmp_path / "a.safetensors")
    with pytest.raises(MuseumError, match=f"several adapters: {adapter}, other"):
        read_lora(tmp_path / "a.safetensors")


def test_embeddings_for_two_encoders_need_equally_many_vectors(tmp_path):
    save_file({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(2, 1280)}, tmp_path / "a.safetensors")
    with pytest.raises(CLoRAError, match="shapes"):
        imported(museum("sdxl").base, "<c>", read_embedding(tmp_path / "a.safetensors"), known=())


def test_exports_can_be_imported(tmp_path):
    """Deltas and words come back bit for bit; the words of the LoRA's bundle equal those of the embedding files."""
    whole = museum()
    files = export(whole, tmp_path, separate=True).files
    again = Museum(whole.base)
    loras = {path.stem: read_lora(path) for path in files if path.parent.name == "loras"}
    for each, path in zip(whole.exhibits, files[len(loras) :], strict=True):
        lora, vectors = loras.get(path.stem), read_embedding(path)
        if lora:
            assert torch.equal(lora.bundled[each.word]["clip_l"], vectors["clip_l"])
        again = again.with_exhibits(imported(whole.base, each.word, vectors, lora, known=projections("sd15")))
    assert bits(tensors_of(again)) == bits(tensors_of(whole))
    assert again.exhibits[0].prompt == "a photo of <my-cat>" and again.exhibits[0].recipe.method == "imported"
    save_museum(again, tmp_path / "again.safetensors")
    assert_same(again, load_museum(tmp_path / "again.safetensors"))


def test_a_lora_of_another_model_is_refused(tmp_path):
    save_file({"x": torch.ones(1, 768)}, tmp_path / "word.safetensors")
    vectors = read_embedding(tmp_path / "word.safetensors")
    export(museum("sdxl"), tmp_path / "xl", separate=True)
    sdxl = read_lora(tmp_path / "xl" / "loras" / "ink.safetensors")
    with pytest.raises(MuseumError, match=r"LoRA for sdxl, .*sd15"):
        imported(museum().base, "<x>", vectors, sdxl, known=projections("sd15"))
    other = read_lora(written(tmp_path / "a.safetensors"))
    with pytest.raises(MuseumError, match=r"\(8, 768\).*not a known projection"):
        imported(museum().base, "<x>", vectors, other, known=projections("sd15"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.bfloat16, torch.float64])
def test_alpha_may_have_any_dtype(dtype, tmp_path):
    """Some trainers write it as an integer; the factors may not be integers."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    up, down = torch.ones(320, 2), torch.ones(2, 768)
    tensors = {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": down,
        f"{name}.alpha": torch.tensor(6, dtype=dtype),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    (delta,) = read_lora(tmp_path / "a.safetensors").deltas.values()
    assert torch.equal(delta.dense(), 6 / 2 * up @ down)
    save_file(tensors | {f"{name}.lora_up.weight": up.to(torch.int64)}, tmp_path / "b.safetensors")
    with pytest.raises(MuseumError, match="floating point"):
        read_lora(tmp_path / "b.safetensors")


def test_a_missing_file_is_reported_instead_of_its_format(tmp_path):
    for path in (tmp_path / "a.pt", tmp_path / "cat"):
        with pytest.raises(MuseumError, match="no such file"):
            read_lora(path)
        with pytest.raises(MuseumError, match="no such file"):
            read_embedding(path)
    with pytest.raises(MuseumError, match="It is a folder"):
        read_embedding(tmp_path)


def test_a_template_without_the_word_is_refused():
    vectors = museum().exhibits[0].token.vectors
    with pytest.raises(ConceptError, match="'a photo' does not mention the new word"):
        imported(museum().base, "<x>", vectors, known=(), template="a photo")


def test_learning_continues_after_an_import(base, tmp_path):
    """The imported tensors stay equal bit for bit, and the penalty protects the weights that they change."""
    made = exhibit("<old>", list(base.slots), seed=4, ranks=(3,), architecture="starter")
    export(Museum(base.fingerprint, (made,)), tmp_path)
    lora = read_lora(tmp_path / "loras" / "museum.safetensors")
    small = {p: delta.scaled(1e-3) for p, delta in lora.deltas.items()}
    lora = type(lora)(small)
    vectors = read_embedding(tmp_path / "embeddings" / "old.safetensors")
    old = imported(base.fingerprint, "<old>", vectors, lora, known=base.slots)
    whole = Museum(base.fingerprint, (old,))
    kept = bits(tensors_of(whole))
    penalties = []
    learned = taught(
        base,
        whole,
        small_concept("<new>"),
        short(C_LORA, steps=2),
        report=lambda progress: penalties.append(progress.losses["self_regularization"]),
    )
    assert learned.words == ("<old>", "<new>")
    assert bits(tensors_of(learned.only(["<old>"]))) == kept
    assert penalties[0] == 0 < penalties[-1]
    alone = taught(base, Museum(base.fingerprint), small_concept("<new>"), short(C_LORA, steps=2))
    assert not alone.exhibits[0].same_as(learned.exhibits[1])
