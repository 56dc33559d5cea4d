"""Graphs in the form that ComfyUI's API takes, made of the pack's nodes and stock ones."""

from typing import Any

from .server import Prompt

SUBJECTS = ("ada", "bo", "cleo", "eve", "finn")
QUICK = {"steps": 4, "learning_rate": 4e-3, "rank": 2, "batch_size": 4, "forgetting_weight": 3.0}
QUICK |= {"training_seed": 0, "preview_every": 0}
PROMPT = "a photo of <ada> and (<bo>:1.2), <ada>!"


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def starter() -> Prompt:
    return {"base": node("CLoRA_StarterModel")}


def checkpoint(name: str) -> Prompt:
    return {"base": node("CheckpointLoaderSimple", ckpt_name=name)}


def concept(word: str, **changes: Any) -> dict[str, Any]:
    inputs = {
        "word": word,
        "kind": "object",
        "template": "a photo of {word}",
        "vectors": 1,
        "start": "",
        "token_seed": 0,
    }
    return node("CLoRA_ConceptToken", **(inputs | changes))


def chain(count: int, *, base: Prompt | None = None, **numbers: Any) -> Prompt:
    """`count` concepts, one after another; each Train Step takes what the one before returned."""
    prompt = dict(base or starter())
    model, clip, museum = ["base", 0], ["base", 1], None
    for number, subject in enumerate(SUBJECTS[:count], 1):
        prompt[f"pictures{number}"] = node("CLoRA_StarterPictures", subject=subject, count=6, picture_seed=0)
        prompt[f"concept{number}"] = concept(f"<{subject}>")
        links = {"model": model, "clip": clip, "vae": ["base", 2]}
        links |= {"images": [f"pictures{number}", 0], "concept": [f"concept{number}", 0]}
        if museum:
            links["museum"] = museum
        prompt[step := f"train{number}"] = node("CLoRA_TrainStep", **links, **(QUICK | numbers))
        model, clip, museum = [step, 0], [step, 1], [step, 2]
    return prompt


def shown(text: str, model: list, clip: list, *, seed: int = 1, name: str = "show") -> Prompt:
    """Stock nodes that sample a prompt, under names that begin with `name`."""
    return {
        f"{name}.positive": node("CLIPTextEncode", text=text, clip=clip),
        f"{name}.negative": node("CLIPTextEncode", text="", clip=clip),
        f"{name}.latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        f"{name}.sampler": node(
            "KSampler",
            model=model,
            positive=[f"{name}.positive", 0],
            negative=[f"{name}.negative", 0],
            latent_image=[f"{name}.latent", 0],
            seed=seed,
            steps=4,
            cfg=3.0,
            sampler_name="ddim",
            scheduler="sgm_uniform",
            denoise=1.0,
        ),
        f"{name}.decoded": node("VAEDecode", samples=[f"{name}.sampler", 0], vae=["base", 2]),
        name: node("SaveImage", images=[f"{name}.decoded", 0], filename_prefix="test"),
    }


def saved_chain(count: int, name: str, text: str = PROMPT, **changes: Any) -> Prompt:
    """A chain whose museum is saved, and stock nodes that sample a prompt with it."""
    prompt = chain(count, **changes)
    last = f"train{count}"
    prompt["save"] = node("CLoRA_SaveMuseum", museum=[last, 2], name=name, overwrite=False)
    return prompt | shown(text, [last, 0], [last, 1])


def loaded(name: str, text: str = PROMPT, *, base: Prompt | None = None) -> Prompt:
    """Stock nodes that sample a prompt with a saved museum."""
    prompt = (base or starter()) | shown(text, ["load", 0], ["load", 1])
    prompt["load"] = node(
        "CLoRA_LoadMuseum",
        model=["base", 0],
        clip=["base", 1],
        museum_name=f"{name}.museum.safetensors",
        exhibits="",
        strength=1.0,
    )
    return prompt
