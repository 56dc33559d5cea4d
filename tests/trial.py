"""A trial model family, as in a file of `clora_core/model/families/`."""

import importlib

import pytest

TEXT_WIDTH = 96
ENCODER = "clip_t"


def added(monkeypatch: pytest.MonkeyPatch, core: str = "clora_core") -> None:
    """Add the trial family to the catalogue of that copy of the engine, for one test."""
    families = importlib.import_module(f"{core}.model.families")
    parts = importlib.import_module(f"{core}.model.families.family")
    unet = importlib.import_module(f"{core}.model.families.unet")
    trial = parts.Family(
        name="trial",
        title="Trial",
        structure=unet.UNet(),
        text_width=TEXT_WIDTH,
        encoders={ENCODER: TEXT_WIDTH},
        latent_channels=4,
        resolutions={"epsilon": 64},
        published=parts.Published("trial_v1", "trial-diffusion-v1"),
        kept_bytes=30_000,
        checkpointed=0.5,
        guidance=3.0,
        captions=("", "a photo of a house", "a red car"),
        checkpoint=parts.Checkpoint(
            encoders={ENCODER: parts.StoredEncoder("cond_stage_model.transformer.")}, scaling_factor=0.5, heads=4
        ),
    )
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, trial))
