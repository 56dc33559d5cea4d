"""Write the workflows of example_workflows/: `python -m scripts.workflows`.

Starts a ComfyUI with this pack and asks it for its nodes. All numbers of training are automatic.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clora_core.starter.course import PICTURES
from tests.host.finding import find_host
from tests.host.server import Server

from .graphs import Graph, Json, Node, Out

FOLDER = Path(__file__).parents[1] / "example_workflows"
FIRST = "three-concepts"  # the museum that one workflow saves and the others load
SIDE = 64  # pixels, of the starter model's pictures

ENLARGED = 4  # times, without smoothing: the starter model's pictures as they are shown

NODE, SMALL, TEXT = (220, 200), (220, 110), (290, 100)
TRAIN, SAMPLER, DECODE, PREVIEW, KEPT = (300, 1100), (290, 270), (210, 80), (330, 340), (290, 200)
NOTE = 320  # wide


def main() -> None:
    with started() as server:
        write_workflows(server.get("/object_info"))


@contextmanager
def started() -> Iterator[Server]:
    """A ComfyUI with this pack, in a folder of its own that holds ComfyUI's example picture."""
    host = find_host()
    if host is None:
        raise SystemExit("There is no ComfyUI: set COMFYUI_PATH.")
    with TemporaryDirectory() as folder:
        server = Server(host, Path(folder))
        shutil.copy(host / "input/example.png", server.folder / "input")
        try:
            server.start()
            yield server
        finally:
            server.stop()


def write_workflows(definitions: Mapping[str, Any]) -> None:
    """Write all workflows for a host with these node definitions."""
    for make in (*STARTER, *OWN):
        graph = make(definitions)
        text = json.dumps(graph.workflow(), indent=1, ensure_ascii=False) + "\n"
        (FOLDER / f"{graph.name}.json").write_text(text, encoding="utf-8")


def three_concepts(definitions: Mapping[str, Any]) -> Graph:
    graph = Graph("1-three-concepts", definitions)
    base = starter(graph)
    graph.note(
        "# Three concepts, one after another\n\nNothing to download: the model and the pictures are built in.\n\n"
        "1. Press **Run**. Each *C-LoRA Train Step* teaches one made-up character. Without a GPU, each takes a few "
        "minutes.\n"
        f"2. *Save Museum* writes `models/loras/museums/{FIRST}.museum.safetensors`. The other examples load it.\n"
        "3. Use `<ada>`, `<bo>` and `<cleo>` in any prompt in the second row.\n\n"
        "You can press **Cancel** at any time; Run resumes from there. Another Run does not train again.\n\n"
        f"{LIMITS}",
        size=(NOTE, 560),
    )
    models, museum = base, None
    for number, subject in enumerate(("ada", "bo", "cleo"), 1):
        graph.group(f"{number} · Teach <{subject}>")
        models = train_step_node(graph, models, base["vae"], subject, museum)
        museum = models["museum"]
    use(graph, models, base["vae"], PROMPTS, save_as=FIRST)
    return graph


def load_a_museum(definitions: Mapping[str, Any]) -> Graph:
    graph = Graph("2-load-a-museum", definitions)
    base = starter(graph)
    graph.note(
        f"# Load a saved museum\n\nRun the example *1-{FIRST}* first: it saves the museum that is loaded here.\n\n"
        "The museum's words work in every prompt. To show only some exhibits, switch the others off in the list, or "
        "name them in *exhibits*, one per line, with an optional strength: `<ada>: 0.8`.\n\n"
        f"{LIMITS}",
        size=(NOTE, 420),
    )
    models = museum_loader(graph, base)
    use(graph, models, base["vae"], PROMPTS)
    return graph


def add_a_concept(definitions: Mapping[str, Any]) -> Graph:
    graph = Graph("3-add-a-concept", definitions)
    base = starter(graph)
    graph.note(
        f"# One more concept\n\nRun the example *1-{FIRST}* first.\n\n"
        "This loads a museum, teaches one more concept with a *Train Step*, and saves the larger museum under another "
        "name. It does not need the pictures of the earlier concepts: their deltas are in the museum.\n\n"
        "Load **all** exhibits (leave *exhibits* empty). Any others would be missing from the saved museum.",
        size=(NOTE, 420),
    )
    models = museum_loader(graph, base)
    graph.group("Teach <eve>")
    models = train_step_node(graph, models, base["vae"], "eve", models["museum"])
    use(graph, models, base["vae"], EVE_PROMPTS, save_as="four-concepts")
    return graph


def styles(definitions: Mapping[str, Any]) -> Graph:
    graph = Graph("6-styles", definitions)
    base = starter(graph)
    graph.note(
        "# Styles\n\nA concept can be a **style**: set *kind* of the Concept Token to *style*. In the Train Step's "
        "*captions*, describe what is in each picture: “a {word} style picture of a red boat”. Anything you caption is "
        "not absorbed into the style. (Starter Pictures outputs such captions.)\n\n**Put the style's word first**, "
        "before the content: “a <word> style picture of a cat”. Text encoders read from left to right, so the word "
        "affects everything after it, and several styles stay apart.\n\nIf you want the word at the end, use the "
        "method *word-gated-onwards* in the *C-LoRA Recipe*.\n\n"
        f"{STYLE_LIMITS}",
        size=(NOTE, 600),
    )
    graph.group("Teach the style <duotone>")
    models = train_step_node(graph, base, base["vae"], "duotone", None, kind="style")
    # At the characters' guidance of 5, the colors of styles burn out.
    use(graph, models, base["vae"], STYLE_PROMPTS, save_as="styles", cfg=3.0)
    return graph


def two_concepts(definitions: Mapping[str, Any]) -> Graph:
    graph = Graph("4-two-concepts", definitions)
    base = starter(graph)
    graph.note(
        f"# Two concepts in one picture\n\nRun the example *1-{FIRST}* first.\n\n"
        "Two learned words in **one** prompt mix their traits, with every method that learns words. The left group "
        "uses such a prompt.\n\nIn the right group, each word has its own prompt **and area**. *Conditioning (Set "
        "Area)* sets the area of a prompt, and *Conditioning (Combine)* combines both; they are stock nodes. For areas "
        "of any shape, use *Conditioning (Set Mask)*.\n\nWith other models, let the areas overlap by some pixels, and "
        "add a third prompt for the whole picture at a low strength, so that both areas form one scene.",
        size=(NOTE, 480),
    )
    models = museum_loader(graph, base)
    graph.group("The size")
    wide = graph.add("EmptyLatentImage", SMALL, width=2 * SIDE, height=SIDE, batch_size=4)
    nothing = graph.add("CLIPTextEncode", TEXT, title="empty prompt", text="", clip=models["clip"])
    graph.row()
    graph.group("Plain: both words in one prompt")
    plain = graph.add("CLIPTextEncode", TEXT, text="a photo of <ada> and <bo>", clip=models["clip"])
    add_sampler(graph, models, base["vae"], plain["CONDITIONING"], nothing, wide, "two-concepts-plain")
    graph.group("Each word in its place")
    places = []
    for word, left in (("<ada>", 0), ("<bo>", SIDE)):
        text = graph.add("CLIPTextEncode", TEXT, text=f"a photo of {word}", clip=models["clip"])
        area = {"width": SIDE, "height": SIDE, "x": left, "y": 0, "strength": 1.0}
        places.append(graph.add("ConditioningSetArea", (290, 160), conditioning=text["CONDITIONING"], **area))
    graph.column()
    first, second = (place["CONDITIONING"] for place in places)
    both = graph.add("ConditioningCombine", (240, 50), conditioning_1=first, conditioning_2=second)
    add_sampler(graph, models, base["vae"], both["CONDITIONING"], nothing, wide, "two-concepts-placed")
    return graph


def evaluation(definitions: Mapping[str, Any]) -> Graph:
    graph = Graph("5-report", definitions)
    base = starter(graph)
    graph.note(
        f"# Evaluate a museum\n\nRun the example *1-{FIRST}* first.\n\n"
        "*Museum Report* samples every exhibit as it was when learned and as it is now, and samples prompts without "
        "trigger words. It measures how far the model's predictions moved, and how much the exhibits overlap.\n\nIt "
        "writes one self-contained HTML file to `output/`; the node's *Open report* shows it.",
        size=(NOTE, 420),
    )
    models = museum_loader(graph, base)
    graph.group("Report")
    report = graph.add(
        "CLoRA_MuseumReport",
        (420, 620),
        model=models["model"],
        clip=models["clip"],
        vae=base["vae"],
        museum=models["museum"],
        name="museum-report",
    )
    graph.row()
    graph.group("Its figures")
    for name in ("exhibits", "overlap", "moved"):
        graph.add("PreviewImage", (400, 400), images=report[name], title=name)
        if name != "moved":
            graph.column()
    return graph


def own_pictures(
    definitions: Mapping[str, Any],
    *,
    number: int,
    family: str,
    example: str,
    side: int,
    cfg: float = 7.0,
    checkpoint: str = "",
    files: Mapping[str, str] | None = None,
) -> Graph:
    """checkpoint: one file; otherwise `files`: the inputs of the loaders of model, text encoders and VAE."""
    graph = Graph(f"{number}-own-pictures-{family}", definitions)
    graph.group("1 · Your model")
    if checkpoint:
        base = graph.add("CheckpointLoaderSimple", (NOTE, 100), ckpt_name=checkpoint)
        model, clip, vae = (base[name] for name in ("MODEL", "CLIP", "VAE"))
    else:
        model, clip, vae = loaded_parts(graph, files or {})
    graph.note(
        f"# Your own pictures, {example}\n\n"
        f"1. Choose your {'checkpoint' if checkpoint else 'files'}.\n"
        "2. Put 4 to 10 pictures of one thing, animal, person or style into a folder in ComfyUI's *input* folder, "
        "press R, and choose the folder. Pictures keep their shapes; text files with their names are captions.\n"
        "3. Choose a trigger word and press **Run**.\n"
        f"4. To teach another concept, add another *Train Step* after this one, as in *1-{FIRST}*; or load the "
        "saved museum and continue from there, as in *3-add-a-concept*.\n\n"
        "All numbers are automatic: the node shows them and how much memory it needs. They are a starting point: watch "
        "the previews. They were **not measured** on real checkpoints, which were not available during development."
        + ("" if checkpoint else f"\n\n{EXPERIMENTAL}"),
        size=(NOTE, 520),
    )
    graph.group("2 · Your pictures, your word")
    pictures = graph.add("CLoRA_LoadPictures", (320, 320), folder="my-cat")
    concept = graph.add("CLoRA_ConceptToken", (320, 200), word="<my-cat>")
    graph.group("3 · Teach")
    step = graph.add(
        "CLoRA_TrainStep",
        TRAIN,
        model=model,
        clip=clip,
        vae=vae,
        images=pictures["images"],
        concept=concept["concept"],
        captions=pictures["captions"],
        masks=pictures["masks"],
    )
    graph.column()
    graph.add("PreviewImage", (400, 440), images=step["preview"])
    graph.add("CLoRA_SaveMuseum", (400, 230), museum=step["museum"], name=f"my-{family}")
    prompts = ("a photo of <my-cat>", "a photo of <my-cat> in the snow")
    empty = "EmptyLatentImage" if checkpoint else "EmptySD3LatentImage"
    use(graph, step, vae, prompts, side=side, cfg=cfg, empty=empty)
    return graph


def loaded_parts(graph: Graph, files: Mapping[str, str]) -> tuple[Out, Out, Out]:
    """Model, CLIP and VAE from files of their own."""
    texts = {name: value for name, value in files.items() if name not in ("unet_name", "vae_name")}
    model = graph.add("UNETLoader", (NOTE, 82), unet_name=files["unet_name"])
    clip = graph.add("DualCLIPLoader" if "clip_name1" in texts else "CLIPLoader", (NOTE, 130), **texts)
    vae = graph.add("VAELoader", (NOTE, 58), vae_name=files["vae_name"])
    return model["MODEL"], clip["CLIP"], vae["VAE"]


def own_pictures_sd15(definitions: Mapping[str, Any]) -> Graph:
    checkpoint = "v1-5-pruned-emaonly-fp16.safetensors"
    return own_pictures(definitions, number=7, family="sd15", checkpoint=checkpoint, side=512, example="SD 1.5")


def own_pictures_sdxl(definitions: Mapping[str, Any]) -> Graph:
    checkpoint = "sd_xl_base_1.0.safetensors"
    return own_pictures(definitions, number=8, family="sdxl", checkpoint=checkpoint, side=1024, example="SDXL")


def own_pictures_anima(definitions: Mapping[str, Any]) -> Graph:
    files = {
        "unet_name": "anima-preview.safetensors",
        **{"clip_name": "qwen_3_06b_base.safetensors", "type": "stable_diffusion"},
        "vae_name": "qwen_image_vae.safetensors",
    }
    return own_pictures(definitions, number=9, family="anima", files=files, side=1024, cfg=4.0, example="Anima")


def own_pictures_qwen_image(definitions: Mapping[str, Any]) -> Graph:
    files = {
        "unet_name": "qwen_image_bf16.safetensors",
        **{"clip_name": "qwen_2.5_vl_7b.safetensors", "type": "qwen_image"},
        "vae_name": "qwen_image_vae.safetensors",
    }
    return own_pictures(
        definitions, number=10, family="qwen-image", files=files, side=1328, cfg=4.0, example="Qwen-Image"
    )


def own_pictures_flux(definitions: Mapping[str, Any]) -> Graph:
    files = {
        "unet_name": "flux1-dev.safetensors",
        **{"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"},
        "vae_name": "ae.safetensors",
    }
    return own_pictures(definitions, number=11, family="flux", files=files, side=1024, cfg=1.0, example="FLUX.1")


def own_pictures_z_image(definitions: Mapping[str, Any]) -> Graph:
    files = {
        "unet_name": "z_image_bf16.safetensors",
        **{"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"},
        "vae_name": "ae.safetensors",
    }
    return own_pictures(definitions, number=12, family="z-image", files=files, side=1024, cfg=4.0, example="Z-Image")


STARTER = (three_concepts, load_a_museum, add_a_concept, two_concepts, evaluation, styles)
OWN = (
    *(own_pictures_sd15, own_pictures_sdxl),
    *(own_pictures_anima, own_pictures_qwen_image, own_pictures_flux, own_pictures_z_image),
)
PROMPTS = ("a photo of <ada> wearing glasses", "a photo of <bo> at the beach", "a photo of <cleo> in the forest")
EVE_PROMPTS = ("a photo of <eve> in the forest", "a photo of <ada> wearing glasses")
STYLE_PROMPTS = (
    "a <duotone> style picture of a red house",
    "a <duotone> style picture of a white boat",
)
LIMITS = (
    "**What does not hold:** `<ada>` at a place (“at the beach”, “in the snow”) loses her long hair and her blue skin. "
    "`<bo>` and `<cleo>` keep their looks there."
)
EXPERIMENTAL = "**Experimental**: this kind of model was tried with random weights only. *Train Step*'s help says more."
STYLE_LIMITS = (
    "**What does not hold:** this small model learns colors better than lines. Faces and trees blur, and of the "
    "style *blueprint* it draws white blobs."
)


def starter(graph: Graph) -> Node:
    graph.group("The model")
    return graph.add("CLoRA_StarterModel", (NOTE, 80))


def museum_loader(graph: Graph, base: Node) -> Node:
    """A Load Museum with the saved museum over the starter model."""
    graph.group("The model, showing a museum")
    museum = f"{FIRST}.museum.safetensors"
    return graph.add("CLoRA_LoadMuseum", (360, 420), model=base["model"], clip=base["clip"], museum_name=museum)


def train_step_node(
    graph: Graph,
    models: Node,
    vae: Out,
    subject: str,
    museum: Out | None,
    *,
    kind: str = "object",
) -> Node:
    """A Train Step for a built-in subject."""
    pictures = graph.add("CLoRA_StarterPictures", SMALL, subject=subject, count=PICTURES)
    concept = graph.add("CLoRA_ConceptToken", NODE, word=f"<{subject}>", kind=kind)
    graph.column()
    return graph.add(
        "CLoRA_TrainStep",
        TRAIN,
        title=f"Teach <{subject}>",
        model=models["model"],
        clip=models["clip"],
        vae=vae,
        images=pictures["images"],
        concept=concept["concept"],
        museum=museum,
        captions=pictures["captions"] if kind == "style" else None,
        preview_every=50,
    )


def use(
    graph: Graph,
    models: Node,
    vae: Out,
    prompts: Sequence[str],
    *,
    save_as: str = "",
    side: int = SIDE,
    cfg: float = 5.0,
    empty: str = "EmptyLatentImage",
) -> None:
    """A row of stock nodes that sample pictures, one group per prompt. save_as: the museum's name, to save it first."""
    graph.row()
    clip = models["clip"]
    if save_as:
        graph.group("Save it")
        graph.add("CLoRA_SaveMuseum", KEPT, museum=models["museum"], name=save_as, overwrite=True)
        graph.below("For all prompts")
    else:
        graph.group("For all prompts")
    latent = graph.add(empty, TEXT, width=side, height=side, batch_size=4 if side == SIDE else 1)
    nothing = graph.add("CLIPTextEncode", TEXT, small=True, title="empty prompt", text="", clip=clip)
    for prompt in prompts:
        graph.group(f"“{prompt}”")
        text = graph.add("CLIPTextEncode", TEXT, text=prompt, clip=clip)
        add_sampler(graph, models, vae, text["CONDITIONING"], nothing, latent, "c-lora", cfg=cfg, enlarged=side == SIDE)


def add_sampler(
    graph: Graph,
    models: Node,
    vae: Out,
    positive: Out,
    nothing: Node,
    latent: Node,
    prefix: str,
    *,
    cfg: float = 5.0,
    enlarged: bool = True,
) -> None:
    """Stock nodes that sample a prompt and show the pictures."""
    samples = graph.add("KSampler", SAMPLER, **sampler_inputs(models, positive, nothing, latent), cfg=cfg)
    graph.column()
    picture = graph.add("VAEDecode", DECODE, small=True, samples=samples["LATENT"], vae=vae)
    if enlarged:
        large = {"upscale_method": "nearest-exact", "scale_by": ENLARGED}
        picture = graph.add("ImageScaleBy", DECODE, small=True, image=picture["IMAGE"], **large)
    graph.add("SaveImage", PREVIEW, images=picture["IMAGE"], filename_prefix=prefix)


def sampler_inputs(models: Node, positive: Out, nothing: Node, latent: Node) -> Json:
    """The inputs of every KSampler here. Timesteps trail, as in the engine."""
    model = models["model"] if "CLoRA" in models.entry["type"] else models["MODEL"]
    inputs = {
        "model": model,
        "positive": positive,
        "negative": nothing["CONDITIONING"],
        "latent_image": latent["LATENT"],
    }
    return inputs | {"seed": 1, "steps": 20, "sampler_name": "euler", "scheduler": "sgm_uniform"}


if __name__ == "__main__":
    main()
