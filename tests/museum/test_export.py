"""Exported files in other programs' own loaders."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from clora_core.cli import main
from clora_core.errors import MuseumError
from clora_core.method.recipe import recipe_named
from clora_core.model.families import find_projections
from clora_core.museum.file import export, export_embeddings, export_lora, save_museum
from clora_core.museum.file.backups import backups_of
from clora_core.museum.file.export import file_stems
from clora_core.museum.museum import Museum
from tests.families import small_pipeline
from tests.museums import exhibit, museum, projections

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

WIDE = {"sd15": 768, "sdxl": 2048}


def small_unet(architecture: str) -> torch.nn.Module:
    """A UNet with the block structure of the real one and hardly any channels."""
    torch.manual_seed(0)
    levels = {
        "sd15": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "sdxl": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    }[architecture]
    up = tuple(name.replace("Down", "Up") for name in reversed(levels))
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8,) * len(levels),
        down_block_types=levels,
        up_block_types=up,
        cross_attention_dim=WIDE[architecture],
        attention_head_dim=4,
        norm_num_groups=4,
        transformer_layers_per_block=1 if architecture == "sd15" else (1, 2, 3),
    )


def museum_for(unet: torch.nn.Module, architecture: str, *, same_rank: bool) -> Museum:
    """Three exhibits over this UNet's projections; without `same_rank`, their ranks differ between projections."""
    on = list(find_projections(unet))
    own = {"architecture": architecture}
    exhibits = (
        exhibit("<cat>", on, seed=1, **own),
        exhibit("<dog>", on if same_rank else on[1::3], seed=2, ranks=(3,), **own),
        exhibit("<ink>", on, seed=3, ranks=(2,) if same_rank else (2, 5), **own),
    )
    return Museum(museum(architecture).base, exhibits)


def moved_by_diffusers(unet: torch.nn.Module, source: object, architecture: str) -> dict[str, torch.Tensor]:
    """path → how diffusers' own LoRA loader and peft change each key and value projection of the UNet."""
    loader = {
        "sd15": diffusers.loaders.StableDiffusionLoraLoaderMixin,
        "sdxl": diffusers.loaders.StableDiffusionXLLoraLoaderMixin,
    }[architecture]
    before = {p.path: module.weight.detach().clone() for p, module in find_projections(unet).items()}
    state, alphas = loader.lora_state_dict(source, unet_config=unet.config)[:2]
    loader.load_lora_into_unet(state, alphas, unet)
    unet.fuse_lora()
    unet.unload_lora()
    after = {p.path: module.weight.detach() for p, module in find_projections(unet).items()}
    return {path: after[path] - before[path] for path in before}


def added_up(whole: Museum, path: str) -> torch.Tensor:
    deltas = [d for each in whole.exhibits for p, d in each.deltas.items() if p.path == path]
    return sum((d.up.double() @ d.down.double() for d in deltas), torch.zeros(())).float()


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_diffusers_loads_the_museum_from_its_file(architecture, tmp_path):
    unet = small_unet(architecture)
    whole = museum_for(unet, architecture, same_rank=True)
    save_museum(whole, tmp_path / "museum.safetensors")
    tensors = load_file(tmp_path / "museum.safetensors")
    factors = {name: tensor for name, tensor in tensors.items() if not name.startswith("bundle_emb.")}
    moved = moved_by_diffusers(unet, factors, architecture)
    assert len(moved) == len({p for each in whole.exhibits for p in each.deltas}) > 20
    for path, change in moved.items():
        torch.testing.assert_close(change, added_up(whole, path), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_diffusers_reads_an_exported_lora_file(architecture, tmp_path):
    unet = small_unet(architecture)
    whole = museum_for(unet, architecture, same_rank=False)
    export_lora(whole, tmp_path / "plain.safetensors", for_diffusers=True)
    moved = moved_by_diffusers(unet, str(tmp_path / "plain.safetensors"), architecture)
    for path, change in moved.items():
        torch.testing.assert_close(change, added_up(whole, path), atol=2e-5, rtol=1e-4)


def test_an_exported_lora_has_no_museum_header(tmp_path):
    export_lora(museum(), tmp_path / "plain.safetensors")
    with safe_open(tmp_path / "plain.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert not [key for key in metadata if key.startswith("clora.")]
    assert metadata["ss_network_module"] == "networks.lora"
    assert "bundle_emb.<my-cat>.string_to_param.*" in names
    save_museum(museum(), tmp_path / "museum.safetensors")
    whole, plain = load_file(tmp_path / "museum.safetensors"), load_file(tmp_path / "plain.safetensors")
    assert set(whole) == set(plain)
    assert all(torch.equal(whole[name], plain[name]) for name in whole)


def test_diffusers_loads_the_words_of_sd15_embedding_files(tmp_path):
    """diffusers' textual inversion reads `emb_params`, one token per vector."""
    transformers = pytest.importorskip("transformers")
    files = export_embeddings(museum(), tmp_path)
    config = transformers.CLIPTextConfig(
        vocab_size=20, hidden_size=768, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    encoder = transformers.CLIPTextModel(config)

    class Words(diffusers.loaders.TextualInversionLoaderMixin):
        """The part of a pipeline that the loader needs."""

    states = diffusers.loaders.textual_inversion.load_textual_inversion_state_dicts([str(path) for path in files])
    words = [each.word for each in museum().exhibits]
    found = Words._extend_tokens_and_embeddings
    tokens, vectors = Words._retrieve_tokens_and_embeddings(words, states, _Vocabulary())
    assert tokens == words
    for each, vector in zip(museum().exhibits, vectors, strict=True):
        ours = each.token.vectors["clip_l"][0]
        assert torch.equal(vector.reshape(ours.shape), ours)
        assert vector.shape[-1] == encoder.get_input_embeddings().weight.shape[1]
    spread, rows = found(tokens, vectors, _Vocabulary())
    assert len(spread) == len(rows) == sum(each.token.words for each in museum().exhibits)


class _Vocabulary:
    """A tokenizer that knows no word yet."""

    def get_vocab(self) -> dict[str, int]:
        return {}


def test_sdxl_embedding_files_have_both_encoders(tmp_path):
    whole = museum("sdxl")
    for path, each in zip(export_embeddings(whole, tmp_path), whole.exhibits, strict=True):
        tensors = load_file(path)
        assert set(tensors) == {"clip_l", "clip_g"}
        for encoder, vectors in each.token.vectors.items():
            assert torch.equal(tensors[encoder], vectors[0])


def test_diffusers_loads_the_words_of_sdxl_embedding_files(tmp_path):
    """As diffusers documents it: each encoder gets its own tensor of the file."""
    pipeline, whole = small_pipeline("sdxl"), museum("sdxl")
    for path, each in zip(export_embeddings(whole, tmp_path), whole.exhibits, strict=True):
        tensors = load_file(path)
        for name, suffix in (("clip_l", ""), ("clip_g", "_2")):
            encoder, tokenizer = getattr(pipeline, f"text_encoder{suffix}"), getattr(pipeline, f"tokenizer{suffix}")
            given = {each.word: tensors[name]}
            pipeline.load_textual_inversion(given, token=each.word, text_encoder=encoder, tokenizer=tokenizer)
            tokens = [each.word, *(f"{each.word}_{index}" for index in range(1, each.token.words))]
            rows = encoder.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(tokens)]
            assert torch.equal(rows, each.token.vectors[name][0])


def test_export_writes_the_reported_files(tmp_path):
    files = export(museum(), tmp_path / "out").files
    assert [str(path.relative_to(tmp_path / "out").as_posix()) for path in files] == [
        "loras/museum.safetensors",
        "embeddings/my-cat.safetensors",
        "embeddings/ink.safetensors",
        "embeddings/bär.safetensors",
        "embeddings/lonely.safetensors",
    ]
    assert all(path.is_file() for path in files)
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(files)


def test_export_of_single_exhibits_holds_only_their_deltas(tmp_path):
    files = export(museum(), tmp_path, words=["<my-cat>", "<ink>"], separate=True).files
    assert [path.name for path in files] == ["my-cat.safetensors", "ink.safetensors"] * 2
    ink = museum().exhibit("<ink>")
    tensors = load_file(files[1])
    factors = [name for name in tensors if name.endswith(".lora_up.weight")]
    assert len(factors) == len(ink.deltas)
    assert all(tensors[name].shape[1] == 3 for name in factors)


def test_export_checks_for_existing_files_before_it_writes_any(tmp_path):
    (tmp_path / "embeddings").mkdir()
    taken = tmp_path / "embeddings" / "lonely.safetensors"
    taken.write_bytes(b"precious")
    with pytest.raises(MuseumError, match="lonely"):
        export(museum(), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [taken]
    export(museum(), tmp_path, overwrite=True)
    (backup,) = backups_of(tmp_path / "embeddings" / "lonely.safetensors")
    assert backup.read_bytes() == b"precious"


def test_an_exhibit_without_deltas_gets_no_lora_file(tmp_path):
    files = export(museum(), tmp_path, separate=True, for_diffusers=True).files
    assert [path.stem for path in files if path.parent.name == "loras"] == ["my-cat", "ink", "bär"]
    lonely = museum().only(["lonely"])
    assert [path.name for path in export(lonely, tmp_path / "word").files] == ["lonely.safetensors"]


def matrices(path) -> dict[str, torch.Tensor]:
    """What each projection's key of a LoRA file adds to it, in float64."""
    tensors = {name: tensor.double() for name, tensor in load_file(path).items()}
    stems = [name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")]
    return {
        stem: tensors[f"{stem}.alpha"]
        / tensors[f"{stem}.lora_down.weight"].shape[0]
        * (tensors[f"{stem}.lora_up.weight"] @ tensors[f"{stem}.lora_down.weight"])
        for stem in stems
    }


@pytest.mark.parametrize("rank", [1, 5, 9])
def test_a_lower_rank_has_the_smallest_possible_error_and_reports_it(rank, tmp_path):
    export_lora(museum(), tmp_path / "whole.safetensors")
    lost = export_lora(museum(), tmp_path / "small.safetensors", rank=rank)
    whole, small = matrices(tmp_path / "whole.safetensors"), matrices(tmp_path / "small.safetensors")
    squares = {}
    for stem, matrix in whole.items():
        values = torch.linalg.svdvals(matrix)
        squares[stem] = (values[rank:].square().sum().item(), values.square().sum().item())
        assert torch.linalg.matrix_rank(small[stem]) <= rank
        assert (matrix - small[stem]).square().sum().item() == pytest.approx(squares[stem][0], rel=1e-3, abs=1e-4)
    shares = [(least / size) ** 0.5 for least, size in squares.values()]
    total = (sum(least for least, _ in squares.values()) / sum(size for _, size in squares.values())) ** 0.5
    assert lost.total == pytest.approx(total, rel=1e-4)
    assert lost.worst == pytest.approx(max(shares), rel=1e-4)
    worst = list(squares)[shares.index(max(shares))]
    assert worst == "lora_unet_" + lost.worst_path.replace(".", "_")
    with safe_open(tmp_path / "small.safetensors", framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == str(rank)


def test_a_sufficient_rank_loses_nothing(tmp_path):
    export_lora(museum(), tmp_path / "whole.safetensors")
    lost = export_lora(museum(), tmp_path / "same.safetensors", rank=12)
    assert (lost.total, lost.worst) == (0, 0)
    whole, same = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "same.safetensors")
    assert set(whole) == set(same) and all(torch.equal(whole[name], same[name]) for name in whole)


def test_diffusers_loads_a_lora_of_lower_rank(tmp_path):
    unet = small_unet("sd15")
    whole = museum_for(unet, "sd15", same_rank=False)
    lost = export_lora(whole, tmp_path / "small.safetensors", rank=3, for_diffusers=True)
    moved = moved_by_diffusers(unet, str(tmp_path / "small.safetensors"), "sd15")
    error = sum((change - added_up(whole, path)).square().sum().item() for path, change in moved.items())
    size = sum(added_up(whole, path).square().sum().item() for path in moved)
    assert lost.total == pytest.approx((error / size) ** 0.5, rel=1e-3)


def test_each_lora_reports_its_own_error(tmp_path):
    exported = export(museum(), tmp_path, rank=3, separate=True)
    losses = {path.stem: lost.total for path, lost in exported.lost.items()}
    assert set(losses) == {"my-cat", "ink", "bär"}
    assert losses["ink"] == 0 and 0 < losses["my-cat"] < 1
    assert losses["bär"] == export_lora(museum().only(["<bär>"]), tmp_path / "a.safetensors", rank=3).total


def test_layer_wise_exhibits_are_left_out_and_named(tmp_path):
    layered = museum().with_exhibits(exhibit("<deep>", projections("sd15"), seed=9, layers=16))
    exported = export(layered, tmp_path / "all")
    plain = export(museum(), tmp_path / "plain")
    assert set(exported.left_out) == {"<deep>"} and "16 embeddings, one per layer" in exported.left_out["<deep>"]
    assert [path.name for path in exported.files] == [path.name for path in plain.files]
    for one, other in zip(exported.files, plain.files, strict=True):
        ours, theirs = load_file(one), load_file(other)
        assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(MuseumError, match=r"nothing to export.*one per layer"):
        export(layered.only(["<deep>"]), tmp_path / "none")


def test_gated_exhibits_are_left_out_and_named(tmp_path):
    """Other programs would apply them everywhere."""
    gated = exhibit("<shy>", projections("sd15"), seed=9, recipe=recipe_named("word-gated"))
    exported = export(museum().with_exhibits(gated), tmp_path / "all")
    plain = export(museum(), tmp_path / "plain")
    assert set(exported.left_out) == {"<shy>"} and "is word-gated" in exported.left_out["<shy>"]
    for one, other in zip(exported.files, plain.files, strict=True):
        ours, theirs = load_file(one), load_file(other)
        assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for for_diffusers in (False, True):
        with pytest.raises(MuseumError, match="'<shy>' is word-gated"):
            export_lora(museum().with_exhibits(gated), tmp_path / "a.safetensors", for_diffusers=for_diffusers)


def test_the_command_reports_the_error_of_a_rank_and_omitted_exhibits(tmp_path, capsys):
    layered = museum().with_exhibits(exhibit("<deep>", projections("sd15"), seed=9, layers=16))
    save_museum(layered, tmp_path / "zoo.safetensors")
    command = ["export", str(tmp_path / "zoo.safetensors"), "--to", str(tmp_path / "out"), "--rank", "2"]
    assert main(command) == 0
    output = capsys.readouterr().out
    lost = export(museum(), tmp_path / "again", rank=2).lost[tmp_path / "again" / "loras" / "museum.safetensors"]
    assert f"loses {lost.total:.2%}" in output and f"worst {lost.worst:.2%} on {lost.worst_path}" in output
    assert "Left out: '<deep>'" in output and "my-cat.safetensors" in output
    assert main(command) == 1
    assert main([*command, "--overwrite"]) == 0


def test_the_command_reports_exhibits_without_the_one_that_holds_their_deltas(tmp_path, capsys):
    """As concepts that were learned together share them."""
    first, second, *_ = museum().exhibits
    pair = (replace(first, deltas={}), replace(second, recipe=first.recipe))
    path = save_museum(replace(museum(), exhibits=pair), tmp_path / "pair.safetensors")
    needed = f"Note: {first.word} was learned together with {second.word}"
    for number, (options, said) in enumerate(
        [([], False), (["--separate"], True), (["--exhibits", first.word], True), (["--exhibits", second.word], False)]
    ):
        assert main(["export", str(path), "--to", str(tmp_path / str(number)), *options]) == 0
        assert (needed in capsys.readouterr().out) == said, options


def test_impossible_exports_are_refused(tmp_path):
    layered = museum().with_exhibits(exhibit("<deep>", projections("sd15"), seed=9, layers=16))
    for attempt, rule in (
        (lambda: export(layered, tmp_path, words=["<ink>", "<deep>"]), "<deep>.*one per layer"),
        (lambda: export(museum(), tmp_path, rank=0), "rank is 0"),
        (lambda: export_embeddings(layered, tmp_path), "<deep>.*one per layer"),
        (lambda: export_lora(layered, tmp_path / "a.safetensors"), "<deep>.*one per layer"),
        (lambda: export(museum(), tmp_path, words=[]), "nothing to export"),
        (lambda: export(museum(), tmp_path, words=["<dog>"]), "<dog>"),
        (lambda: export(museum(), tmp_path / "no" / "where"), "where"),
        (lambda: export_lora(Museum(museum().base), tmp_path / "a.safetensors"), "nothing to export"),
        (lambda: export_lora(museum().only(["lonely"]), tmp_path / "a.safetensors"), "nothing to export"),
    ):
        with pytest.raises(MuseumError, match=rule):
            attempt()
    assert not list(tmp_path.iterdir())
    export_lora(layered, tmp_path / "a.safetensors", for_diffusers=True)


def test_file_names_are_safe_and_unique():
    words = [
        "<my-cat>",
        "my-cat",
        "MY-CAT",
        "../../etc/passwd",
        "CON",
        "<nul>",
        "a*b?c",
        "<.a.>",
        "木",
        "😀" * 63 + "x",
        "..a",
    ]
    stems = file_stems(words)
    assert len({stem.casefold() for stem in stems}) == len(words)
    for stem in stems:
        assert 0 < len(os.fsencode(stem)) < 140
        assert not set(stem) & set('<>:"/\\|?*')
        assert stem == stem.strip(". ")
    assert stems[:2] == ["my-cat", "my-cat-2"]
    assert stems[4:6] == ["CON_", "nul_"]
    assert stems[8] == "木"
