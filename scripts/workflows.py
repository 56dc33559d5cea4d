"""Write the workflows of example_workflows/: `python -m scripts.workflows`.

Starts a ComfyUI with this pack and asks it for its nodes. All numbers of training are automatic. The texts of the notes
are in scripts/notes/.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

from clora_core.starter.course import PICTURES
from tests.host.finding import find_host
from tests.host.server import Server

from .graphs import Graph, Json, Node, Out

FOLDER = Path(__file__).parents[1] / "example_workflows"
NOTES = Path(__file__).parent / "notes"
FIRST = "three-concepts"  # the museum that one workflow saves and the others load
SIDE = 64  # pixels, of the starter model's pictures

ENLARGED = 4  # times, without smoothing: the starter model's pictures as they are shown

NODE, SMALL, TEXT = (220, 200), (220, 110), (290, 100)
TRAIN, SAMPLER, DECODE, PREVIEW, KEPT = (300, 1100), (290, 270), (210, 80), (330, 340), (290, 200)
NOTE = 320  # wide

PROMPTS = ("a photo of <ada> wearing glasses", "a photo of <bo> at the beach", "a photo of <cleo> in the forest")
EVE_PROMPTS = ("a photo of <eve> in the forest", "a photo of <ada> wearing glasses")
STYLE_PROMPTS = (
    "a <duotone> style picture of a red house",
    "a <duotone> style picture of a white boat",
)


@dataclass(frozen=True)
class Model:
    """A model to teach own pictures. file: the whole checkpoint, or without its text encoders and VAE, if these are
    files of their own. kind: what the loader of the text encoders calls it."""

    family: str
    title: str
    side: int
    cfg: float
    file: str
    texts: tuple[str, ...] = ()
    kind: str = ""
    vae: str = ""


MODELS = (
    Model("sd15", "SD 1.5", 512, 7.0, "v1-5-pruned-emaonly-fp16"),
    Model("sdxl", "SDXL", 1024, 7.0, "sd_xl_base_1.0"),
    Model("anima", "Anima", 1024, 4.0, "anima-preview", ("qwen_3_06b_base",), "stable_diffusion", "qwen_image_vae"),
    Model(
        "qwen-image", "Qwen-Image", 1328, 4.0, "qwen_image_bf16", ("qwen_2.5_vl_7b",), "qwen_image", "qwen_image_vae"
    ),
    Model("flux", "FLUX.1", 1024, 1.0, "flux1-dev", ("clip_l", "t5xxl_fp16"), "flux", "ae"),
    Model("z-image", "Z-Image", 1024, 4.0, "z_image_bf16", ("qwen_3_4b",), "lumina2", "ae"),
)


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
    add_note(graph, 420, "three-concepts")
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
    add_note(graph, 300, "load-a-museum")
    models = museum_loader(graph, base)
    use(graph, models, base["vae"], PROMPTS)
    return graph


def add_a_concept(definitions: Mapping[str, Any]) -> Graph:
    graph = Graph("3-add-a-concept", definitions)
    base = starter(graph)
    add_note(graph, 420, "add-a-concept")
    models = museum_loader(graph, base)
    graph.group("Teach <eve>")
    models = train_step_node(graph, models, base["vae"], "eve", models["museum"])
    use(graph, models, base["vae"], EVE_PROMPTS, save_as="four-concepts")
    return graph


def styles(definitions: Mapping[str, Any]) -> Graph:
    graph = Graph("6-styles", definitions)
    base = starter(graph)
    add_note(graph, 600, "styles", "style-limits")
    graph.group("Teach the style <duotone>")
    models = train_step_node(graph, base, base["vae"], "duotone", None, kind="style")
    # At the characters' guidance of 5, the colors of styles burn out.
    use(graph, models, base["vae"], STYLE_PROMPTS, save_as="styles", cfg=3.0)
    return graph


def two_concepts(definitions: Mapping[str, Any]) -> Graph:
    graph = Graph("4-two-concepts", definitions)
    base = starter(graph)
    add_note(graph, 480, "two-concepts")
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
    add_note(graph, 420, "report")
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


def own_pictures(definitions: Mapping[str, Any], *, number: int, model: Model) -> Graph:
    graph = Graph(f"{number}-own-pictures-{model.family}", definitions)
    graph.group("1 · Your model")
    network, clip, vae = loaded(graph, model)
    texts = ("own-pictures", "experimental") if model.texts else ("own-pictures",)
    add_note(graph, 520, *texts, model=model.title, files="files" if model.texts else "checkpoint")
    graph.group("2 · Your pictures, your word")
    pictures = graph.add("CLoRA_LoadPictures", (320, 320), folder="my-cat")
    concept = graph.add("CLoRA_ConceptToken", (320, 200), word="<my-cat>")
    graph.group("3 · Teach")
    step = graph.add(
        "CLoRA_TrainStep",
        TRAIN,
        model=network,
        clip=clip,
        vae=vae,
        images=pictures["images"],
        concept=concept["concept"],
        captions=pictures["captions"],
        masks=pictures["masks"],
    )
    graph.column()
    graph.add("PreviewImage", (400, 440), images=step["preview"])
    graph.add("CLoRA_SaveMuseum", (400, 230), museum=step["museum"], name=f"my-{model.family}")
    prompts = ("a photo of <my-cat>", "a photo of <my-cat> in the snow")
    empty = "EmptySD3LatentImage" if model.texts else "EmptyLatentImage"
    use(graph, step, vae, prompts, side=model.side, cfg=model.cfg, empty=empty)
    return graph


def loaded(graph: Graph, model: Model) -> tuple[Out, Out, Out]:
    """The model, its text encoders and its VAE, from one file or several."""
    file, *texts, vae = (f"{name}.safetensors" for name in (model.file, *model.texts, model.vae))
    if not texts:
        whole = graph.add("CheckpointLoaderSimple", (NOTE, 100), ckpt_name=file)
        return whole["MODEL"], whole["CLIP"], whole["VAE"]
    names = ("clip_name",) if len(texts) == 1 else ("clip_name1", "clip_name2")
    inputs = dict(zip(names, texts, strict=True), type=model.kind)
    network = graph.add("UNETLoader", (NOTE, 82), unet_name=file)
    clip = graph.add("CLIPLoader" if len(texts) == 1 else "DualCLIPLoader", (NOTE, 130), **inputs)
    return network["MODEL"], clip["CLIP"], graph.add("VAELoader", (NOTE, 58), vae_name=vae)["VAE"]


STARTER = (three_concepts, load_a_museum, add_a_concept, two_concepts, evaluation, styles)
OWN = [partial(own_pictures, number=number, model=model) for number, model in enumerate(MODELS, len(STARTER) + 1)]


def starter(graph: Graph) -> Node:
    graph.group("The model")
    return graph.add("CLoRA_StarterModel", (NOTE, 80))


def add_note(graph: Graph, height: int, *names: str, **values: str) -> None:
    """A note with these texts of scripts/notes/, $name replaced by its value."""
    texts = [(NOTES / f"{name}.md").read_text(encoding="utf-8").strip() for name in names]
    graph.note(Template("\n\n".join(texts)).substitute(values), size=(NOTE, height))


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
