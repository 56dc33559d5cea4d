"""Two learned characters in one picture: how often does the judge recognise both, each in its half?

    python -m benchmarks.two_concepts --museums out/demo/museum.safetensors ...   museums of the demo, of any recipe

Starts a ComfyUI and runs the example workflow `4-two-concepts` with all pairs of a museum's first three words: both in
one plain prompt, and each with its own area. As a third method, each area uses its own exhibit only, through ComfyUI's
LoRA hooks and files that `export` writes for single exhibits, if possible.
Writes `benchmarks/results/two_concepts.json`, and `docs/two-concepts.png` of the first museum's first two words.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from clora_core.bench.measuring import machine
from clora_core.museum.file import export_lora, load_museum, read_header
from clora_core.pictures import as_floats
from clora_core.starter.judge import agreement, load_judge, read, recognised
from clora_core.starter.subjects import IDENTITIES
from tests.host.finding import find_host
from tests.host.prompts import node
from tests.host.server import Prompt, Server
from tests.host.workflow import as_prompt

ROOT = Path(__file__).parents[1]
RESULT, PICTURE = ROOT / "benchmarks/results/two_concepts.json", ROOT / "docs/two-concepts.png"
ASKED = ("<ada>", "<bo>")  # in the workflow
WAYS = {
    "plain": "both words in one prompt",
    "placed": "each word in its place",
    "hooked": "each place with its own exhibit only",
}
SHOWN, ZOOM, TITLE_PX = 6, 2, 26
Pictures = Mapping[str, np.ndarray]  # way → (n, 64, 128, 3) uint8
Scores = Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--museums",
        type=Path,
        nargs="+",
        required=True,
        help="files of three built-in characters or more, one a recipe",
    )
    parser.add_argument("--pictures", type=int, default=48, help="of each two, for each way (48)")
    arguments = parser.parse_args()
    host = find_host()
    if host is None:
        sys.exit("No ComfyUI was found. Set COMFYUI_PATH to the folder of its main.py.")
    first_pictures: dict[str, Pictures] = {}
    scores: dict[str, dict[str, dict[str, Scores]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(host, Path(folder))
        (server.folder / "models/loras/museums").mkdir(parents=True)
        museums = {recipe_of(path): copy_museum(path, server.folder / "models/loras") for path in arguments.museums}
        try:
            server.start()
            for recipe, words in museums.items():
                for pair in combinations(words[:3], 2):
                    pictures = generated(server, recipe, pair, arguments.pictures)
                    first_pictures.setdefault(recipe, pictures)
                    found: dict[str, Scores] = {way: scored(seen, pair) for way, seen in pictures.items()}
                    scores.setdefault(recipe, {})[" ".join(pair)] = found
                    print(recipe, *pair, found, flush=True)
        finally:
            server.stop()
    means = {recipe: over_pairs(pairs) for recipe, pairs in scores.items()}
    report = {"machine": machine(torch.device("cpu")), "pictures": arguments.pictures, "means": means, "pairs": scores}
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sheet(next(iter(first_pictures.values()))).save(PICTURE)
    for recipe, ways in means.items():
        for way, score in ways.items():
            print(f"{recipe:20}{WAYS[way]:40}" + "".join(f"{name} {share:5.2f}   " for name, share in score.items()))


def recipe_of(path: Path) -> str:
    return read_header(path).exhibits[0].recipe.method


def copy_museum(path: Path, loras: Path) -> tuple[str, ...]:
    """Write a museum, and its exhibits as single LoRA files if possible, to ComfyUI's folders."""
    header, recipe = read_header(path), recipe_of(path)
    shutil.copy(path, loras / f"museums/{recipe}.museum.safetensors")
    for exhibit in header.exhibits:
        if exhibit.ordinary:
            export_lora(load_museum(path, words=[exhibit.word]), loras / lora_of(recipe, exhibit.word))
    return header.words


def lora_of(recipe: str, word: str) -> str:
    return f"{recipe}-{word.strip('<>')}.safetensors"


def generated(server: Server, recipe: str, pair: Sequence[str], count: int) -> Pictures:
    """All from the same noise."""
    workflow = json.loads((ROOT / "example_workflows/4-two-concepts.json").read_text(encoding="utf-8"))
    prompt = as_prompt(workflow, server.get("/object_info"))
    files = [lora_of(recipe, word) for word in pair]
    if all((server.folder / "models/loras" / file).exists() for file in files):
        prompt = with_hooks(prompt, files)
    for entry in prompt.values():
        if entry["class_type"] == "CLIPTextEncode":
            for asked, word in zip(ASKED, pair, strict=True):
                entry["inputs"]["text"] = entry["inputs"]["text"].replace(asked, word)
        if entry["class_type"] == "CLoRA_LoadMuseum":
            entry["inputs"]["museum_name"] = f"{recipe}.museum.safetensors"
        if entry["class_type"] == "ImageScaleBy":
            entry["inputs"]["scale_by"] = 1.0
        if entry["class_type"] == "EmptyLatentImage":
            entry["inputs"]["batch_size"] = count
    run = server.run(prompt, seconds=1200)
    assert run.succeeded, run.error
    saving = {
        entry["inputs"]["filename_prefix"].removeprefix("two-concepts-"): id
        for id, entry in prompt.items()
        if entry["class_type"] == "SaveImage"
    }
    return {way: server.pictures(run, saving[way]) for way in WAYS if way in saving}


def over_pairs(pairs: Mapping[str, Mapping[str, Scores]]) -> dict[str, Scores]:
    ways = next(iter(pairs.values()))
    return {
        way: {name: statistics.fmean(scores[way][name] for scores in pairs.values()) for name in ways[way]}
        for way in ways
    }


def with_hooks(prompt: Prompt, files: Sequence[str]) -> Prompt:
    """The workflow, with additional areas that have a LoRA hook each, over a model without exhibits."""
    only = {kind: [id for id, entry in prompt.items() if entry["class_type"] == kind] for kind in kinds(prompt)}
    (loader,), (combine,) = only["CLoRA_LoadMuseum"], only["ConditioningCombine"]
    silent = {"class_type": "CLoRA_LoadMuseum", "inputs": prompt[loader]["inputs"] | {"strength": 0.0}}
    more: Prompt = {"silent": silent}
    for number, file in enumerate(files, 1):
        place = prompt[prompt[combine]["inputs"][f"conditioning_{number}"][0]]
        text = prompt[place["inputs"]["conditioning"][0]]["inputs"]["text"]
        more[f"text{number}"] = node("CLIPTextEncode", text=text, clip=["silent", 1])
        more[f"hook{number}"] = node("CreateHookLora", lora_name=file, strength_model=1.0, strength_clip=0.0)
        sources = {"cond_NEW": [f"text{number}", 0], "hooks": [f"hook{number}", 0]}
        more[f"hooked{number}"] = node("ConditioningSetProperties", **sources, strength=1.0, set_cond_area="default")
        more[f"place{number}"] = node(
            "ConditioningSetArea", **place["inputs"] | {"conditioning": [f"hooked{number}", 0]}
        )
    more["both"] = node("ConditioningCombine", conditioning_1=["place1", 0], conditioning_2=["place2", 0])
    (sampler,) = [id for id in only["KSampler"] if prompt[id]["inputs"]["positive"] == [combine, 0]]
    (decoder,) = [id for id in only["VAEDecode"] if prompt[id]["inputs"]["samples"] == [sampler, 0]]
    inputs = {"model": ["silent", 0], "positive": ["both", 0]}
    more["sampled"] = {"class_type": "KSampler", "inputs": prompt[sampler]["inputs"] | inputs}
    more["decoded"] = node("VAEDecode", samples=["sampled", 0], vae=prompt[decoder]["inputs"]["vae"])
    more["saved"] = node("SaveImage", images=["decoded", 0], filename_prefix="two-concepts-hooked")
    return prompt | more


def kinds(prompt: Prompt) -> set[str]:
    return {entry["class_type"] for entry in prompt.values()}


def scored(pictures: np.ndarray, words: Sequence[str]) -> dict[str, float]:
    """Shares of the pictures with both characters, each in its half; with both in any order; and of all traits.

    The recognised character is the one of ten whose traits are the most likely.
    """
    judge, names = load_judge(), [word.strip("<>") for word in words]
    pixels = as_floats(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    verdicts = [read(judge, half.contiguous()) for half in pixels.chunk(2, dim=3)]
    pairs = list(zip(*map(recognised, verdicts), strict=True))
    score = {
        "both": sum(list(pair) == names for pair in pairs) / len(pairs),
        "in either order": sum(sorted(pair) == sorted(names) for pair in pairs) / len(pairs),
    }
    halves = zip(names, verdicts, strict=True)
    found = [agreement(verdict, [IDENTITIES[name]] * len(pairs)).mean().item() for name, verdict in halves]
    return score | {"traits": statistics.fmean(found)}


def sheet(pictures: Pictures) -> Image.Image:
    """The first pictures of every way, a titled line each."""
    height, width = next(iter(pictures.values())).shape[1:3]
    line = TITLE_PX + ZOOM * height + 10
    paper = Image.new("RGB", (SHOWN * (ZOOM * width + 8) + 12, len(pictures) * line + 4), "white")
    pen = ImageDraw.Draw(paper)
    for row, (way, batch) in enumerate(pictures.items()):
        pen.text((10, row * line + 5), WAYS[way], "#1c2530", ImageFont.load_default(15))
        for column, picture in enumerate(batch[:SHOWN]):
            tile = Image.fromarray(picture).resize((ZOOM * width, ZOOM * height), Image.Resampling.NEAREST)
            paper.paste(tile, (10 + column * (ZOOM * width + 8), row * line + TITLE_PX))
    return paper


if __name__ == "__main__":
    main()
