"""Why C-LoRA does not train some of ComfyUI's models, and what to use instead, by the class of the model.

What their text's keys and values are: ComfyUI's comfy/model_base.py and comfy/ldm.
"""

import comfy.model_base

MOVING = "It makes videos. Use a text-to-image model, or Wan's text-to-video model with 16 latent channels."
GIVEN_A_PICTURE = "It is conditioned on a picture. Use the text-to-image model that it was made from."
NOT_PICTURES = "It does not make pictures. Use a text-to-image model."
SHARED = "Text and picture share its keys and values, which are fewer than its queries. Use Z-Image or SDXL."

REASONS = {
    MOVING: (
        *("SVD_img2vid", "GenmoMochi", "LTXV", "HunyuanVideo", "CosmosVideo"),
        *("WAN21_Vace", "WAN21_Camera", "WAN21_HuMo", "WAN22_Animate", "WAN22_S2V", "WAN22"),
    ),
    GIVEN_A_PICTURE: ("Stable_Zero123", "Lotus", "HunyuanImage21Refiner", "Omnigen2"),
    NOT_PICTURES: ("StableAudio1", "ACEStep", "Hunyuan3Dv2", "Hunyuan3Dv2_1"),
    SHARED: ("Lumina2",),
    "Each of its blocks reads another layer of the text encoder, and a word has only one vector. Use FLUX.1.": (
        "HiDream",
    ),
    "Only four of its layers have keys and values of the text alone. Use SD3 or FLUX.1.": ("AuraFlow",),
    "Its text goes through a refiner that depends on the noise. Use FLUX.1 or Qwen-Image.": ("HunyuanImage21",),
    "It generates pixels without a VAE. Use Chroma.": ("ChromaRadiance",),
    "The refiner only finishes what the base model began. Use the SDXL base model, with a museum for it.": (
        "SDXLRefiner",
    ),
    "Its first stage makes latents for another model. Use SDXL.": ("StableCascade_C", "StableCascade_B"),
}
SUPPORTED = ("ZImage",)  # configurations
BY_CLASS = {name: reason for reason, names in REASONS.items() for name in names}


def why_refused(model: comfy.model_base.BaseModel) -> str:
    """The reason, by the nearest of the model's classes that has one; "" if none has.

    Some models have the class of another one, and a configuration of their own.
    """
    if type(getattr(model, "model_config", None)).__name__ in SUPPORTED:
        return ""
    return next((reason for kind in type(model).__mro__ if (reason := BY_CLASS.get(kind.__name__))), "")
