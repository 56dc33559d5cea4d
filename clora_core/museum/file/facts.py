"""The metadata that LoRA managers show: kohya's `ss_*` keys and Stability's ModelSpec 1.0.1.

Keys and values follow kohya-ss/sd-scripts (train_network.py, library/sai_model_spec.py). Their readers:
- A1111 and Forge (the Lora extension's network.py and ui_edit_user_metadata.py): base, words, pictures and hash.
- ComfyUI-Lora-Manager (py/utils): the base from `ss_base_model_version`, where it only knows ostris/ai-toolkit's name
  of SD1.5; the words from the first group of `ss_tag_frequency`, so all words are in one group.
- Civitai: the first twelve digits of the hash, which it calls AutoV3.

Dates come from the exhibits' facts, not from a clock.
"""

import json

from ...pictures import as_uri
from ..museum import PHRASE
from .header import Header


def lora_facts(header: Header, name: str, content_hash: str) -> dict[str, str]:
    """The metadata of a LoRA file called `name`. Training numbers are those of the newest exhibit."""
    family, published = header.family, header.family.published
    side = next(iter(family.resolutions.values()))
    rank = max((rank for _, rank in header.total_ranks()), default=0)
    pictures = {exhibit.word: _count(exhibit.facts.get("pictures")) for exhibit in header.exhibits}
    facts = {
        "ss_base_model_version": published.version,
        "ss_v2": str(published.v2),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_output_name": name,
        "ss_num_train_images": str(sum(pictures.values())),
        "ss_dataset_dirs": json.dumps({"museum": {"n_repeats": 1, "img_count": sum(pictures.values())}}),
        "ss_tag_frequency": json.dumps({"museum": {word: count or 1 for word, count in pictures.items()}}),
        "ss_training_comment": "C-LoRA museum: " + ", ".join(header.words),
        "sshs_model_hash": content_hash,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{published.architecture}/lora",
        "modelspec.implementation": published.implementation,
        "modelspec.title": name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.trigger_phrase": ", ".join(str(e.facts.get(PHRASE, e.word)) for e in header.exhibits),
        "modelspec.hash_sha256": f"0x{content_hash}",
    }
    if header.exhibits:
        recipe = header.exhibits[-1].recipe
        facts |= {
            "ss_steps": str(sum(exhibit.recipe.steps for exhibit in header.exhibits)),
            "ss_max_train_steps": str(recipe.steps),
            "ss_learning_rate": str(recipe.learning_rate),
            "ss_unet_lr": str(recipe.learning_rate),
            "ss_lr_scheduler": recipe.schedule,
            "ss_gradient_accumulation_steps": str(recipe.accumulation),
            "ss_seed": str(recipe.seed),
            "modelspec.description": "; ".join(exhibit.prompt for exhibit in header.exhibits if exhibit.prompt),
        }
    if dates := [date for exhibit in header.exhibits if isinstance(date := exhibit.facts.get("date"), str)]:
        facts["modelspec.date"] = max(dates)
    if thumbnails := [exhibit.thumbnail for exhibit in header.exhibits if exhibit.thumbnail]:
        facts["modelspec.thumbnail"] = as_uri(thumbnails[-1])
    return facts


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
