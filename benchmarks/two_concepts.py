"""Learned characters in one picture: how often does the judge recognize all of them, each in its part?

    python -m benchmarks.two_concepts --museums out/demo/museum.safetensors ...   museums of the demo, of any recipe

Starts a ComfyUI and runs the example workflow `4-two-concepts` with all pairs of a museum's first three words: both in
one plain prompt, the same with `keep_apart` of Load Museum, and each with its own area. As a fourth method, each area
uses its own exhibit only, through ComfyUI's LoRA hooks and files that `export` writes for single exhibits, if possible.
Then all three words in one prompt, plain and with `keep_apart`, for pictures of three times the width.
Writes `benchmarks/results/two_concepts.json`, where everything that was not measured again keeps its results, and, with
all ways, `docs/two-concepts.png` of the first museum's first two words.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from clora_core.bench.measuring import machine
from clora_core.museum.file import export_lora, load_museum, read_header
from clora_core.pictures import as_floats
from clora_core.starter.course import starter_recipe
from clora_core.starter.judge import agreement, identified, load_judge, read
from clora_core.starter.subjects import IDENTITIES
from tests.host.finding import required_host
from tests.host.prompts import node
from tests.host.server import Prompt, Server
from tests.host.workflow import as_prompt

ROOT = Path(__file__).parents[1]
RESULT, PICTURE = ROOT / "benchmarks/results/two_concepts.json", ROOT / "docs/two-concepts.png"
ASKED = ("<ada>", "<bo>")  # in the workflow
WAYS = {
    "plain": "both words in one prompt",
    "apart": "both words in one prompt, kept apart",
    "placed": "each word in its place",
    "hooked": "each place with its own exhibit only",
}
SHOWN, ZOOM, TITLE_PX = 6, 2, 26
SIDE_PX = 64
Pictures = Mapping[str, np.ndarray]  # way → (n, 64, 64 · words, 3) uint8
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
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="for two words (all)")
    arguments = parser.parse_args()
    host = required_host()
    report: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    report |= {"machine": machine(torch.device("cpu")), "pictures": arguments.pictures}
    first_pictures: Pictures = {}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(host, Path(folder))
        (server.folder / "models/loras/museums").mkdir(parents=True)
        museums = {recipe_of(path): copy_museum(path, server.folder / "models/loras") for path in arguments.museums}
        try:
            server.start()
            for recipe, words in museums.items():
                for some in (*combinations(words[:3], 2), words[:3]):
                    ways = arguments.ways if len(some) == 2 else ["plain", "apart"]
                    pictures = generated(server, recipe, some, ways, arguments.pictures)
                    first_pictures = first_pictures or pictures
                    found: dict[str, Scores] = {way: scored(seen, some) for way, seen in pictures.items()}
                    kind = report["pairs"] if len(some) == 2 else report.setdefault("three words", {})
                    kind.setdefault(recipe, {}).setdefault(" ".join(some), {}).update(found)
                    print(recipe, *some, found, flush=True)
        finally:
            server.stop()
    report["means"] = {recipe: over_pairs(pairs) for recipe, pairs in report["pairs"].items()}
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.ways == list(WAYS):
        sheet(first_pictures).save(PICTURE)
    for recipe, means in report["means"].items():
        for way, score in means.items():
            print(f"{recipe:20}{WAYS[way]:40}" + "".join(f"{name} {share:5.2f}   " for name, share in score.items()))


def recipe_of(path: Path) -> str:
    """The name of the recipe, with its steps if they are not the built-in model's default."""
    recipe = read_header(path).exhibits[0].recipe
    usual = recipe.steps == starter_recipe(recipe.method).steps
    return recipe.method if usual else f"{recipe.method}-{recipe.steps}"


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


def generated(server: Server, recipe: str, words: Sequence[str], ways: Sequence[str], count: int) -> Pictures:
    """All from the same noise."""
    workflow = json.loads((ROOT / "example_workflows/4-two-concepts.json").read_text(encoding="utf-8"))
    prompt = with_apart(as_prompt(workflow, server.get("/object_info")))
    files = [lora_of(recipe, word) for word in words]
    if "hooked" in ways and all((server.folder / "models/loras" / file).exists() for file in files):
        prompt = with_hooks(prompt, files)
    for way, id in saving(prompt).items():
        if way not in ways:
            del prompt[id]
    texts = {" and ".join(ASKED): " and ".join(words), **dict(zip(ASKED, words, strict=False))}
    for entry in prompt.values():
        if entry["class_type"] == "CLIPTextEncode":
            asked = next((asked for asked in texts if asked in entry["inputs"]["text"]), "")
            entry["inputs"]["text"] = entry["inputs"]["text"].replace(asked, texts.get(asked, ""))
        if entry["class_type"] == "CLoRA_LoadMuseum":
            entry["inputs"]["museum_name"] = f"{recipe}.museum.safetensors"
        if entry["class_type"] == "ImageScaleBy":
            entry["inputs"]["scale_by"] = 1.0
        if entry["class_type"] == "EmptyLatentImage":
            entry["inputs"] |= {"batch_size": count, "width": SIDE_PX * len(words)}
    run = server.run(prompt, seconds=1200)
    assert run.succeeded, run.error
    saved = saving(prompt)
    return {way: server.pictures(run, saved[way]) for way in WAYS if way in saved}


def saving(prompt: Prompt) -> dict[str, str]:
    """Way → the node that saves its pictures."""
    return {
        entry["inputs"]["filename_prefix"].removeprefix("two-concepts-"): id
        for id, entry in prompt.items()
        if entry["class_type"] == "SaveImage"
    }


def over_pairs(pairs: Mapping[str, Mapping[str, Scores]]) -> dict[str, Scores]:
    """Of the ways that every pair has."""
    first, *others = pairs.values()
    return {
        way: {name: statistics.fmean(scores[way][name] for scores in pairs.values()) for name in first[way]}
        for way in first
        if all(way in scores for scores in others)
    }


def with_apart(prompt: Prompt) -> Prompt:
    """The workflow, with the plain prompt once more, over a museum whose words are kept apart."""
    (loader,) = [entry for entry in prompt.values() if entry["class_type"] == "CLoRA_LoadMuseum"]
    (text,) = [entry for entry in prompt.values() if " and ".join(ASKED) in entry["inputs"].get("text", "")]
    more: Prompt = {
        "apart": {**loader, "inputs": loader["inputs"] | {"keep_apart": True}},
        "both words": node("CLIPTextEncode", text=text["inputs"]["text"], clip=["apart", 1]),
    }
    return prompt | more | resampled(prompt, "plain", "apart", model=["apart", 0], positive=["both words", 0])


def resampled(prompt: Prompt, way: str, name: str, **inputs: list[Any]) -> Prompt:
    """The nodes that sample like this way, with other inputs, and save under another name."""
    entry, chain = prompt[saving(prompt)[way]], []
    while entry["class_type"] != "KSampler":
        ((source, _),) = [link for key, link in entry["inputs"].items() if key in ("images", "image", "samples")]
        entry = prompt[source]
        chain.append(entry)
    decoder, sampler = chain[-2:]
    return {
        f"{name} sampled": {**sampler, "inputs": sampler["inputs"] | inputs},
        f"{name} decoded": node("VAEDecode", samples=[f"{name} sampled", 0], vae=decoder["inputs"]["vae"]),
        f"{name} saved": node("SaveImage", images=[f"{name} decoded", 0], filename_prefix=f"two-concepts-{name}"),
    }


def with_hooks(prompt: Prompt, files: Sequence[str]) -> Prompt:
    """The workflow, with additional areas that have a LoRA hook each, over a model without exhibits."""
    loader = next(entry for entry in prompt.values() if entry["class_type"] == "CLoRA_LoadMuseum")
    (combine,) = [id for id, entry in prompt.items() if entry["class_type"] == "ConditioningCombine"]
    silent = {**loader, "inputs": loader["inputs"] | {"strength": 0.0}}
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
    return prompt | more | resampled(prompt, "placed", "hooked", model=["silent", 0], positive=["both", 0])


def scored(pictures: np.ndarray, words: Sequence[str]) -> dict[str, float]:
    """Shares of the pictures with all characters, each in its part; with all in any order; and of all traits.

    The recognized character is the one of ten whose traits are the most likely.
    """
    judge, names = load_judge(), [word.strip("<>") for word in words]
    pixels = as_floats(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    verdicts = [read(judge, part.contiguous()) for part in pixels.chunk(len(words), dim=3)]
    groups = list(zip(*map(identified, verdicts), strict=True))
    score = {
        "both": sum(list(group) == names for group in groups) / len(groups),
        "in either order": sum(sorted(group) == sorted(names) for group in groups) / len(groups),
    }
    parts = zip(names, verdicts, strict=True)
    found = [agreement(verdict, [IDENTITIES[name]] * len(groups)).mean().item() for name, verdict in parts]
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
