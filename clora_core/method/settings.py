"""The settings of a recipe that users can change: the same, in the same words, in the nodes and in `learn`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """A field of `Recipe`. meaning: a phrase for help. most, least: the limits of a node's input.

    step: what one click adds. finest: what values are rounded to, if not to the step.
    """

    meaning: str
    most: float = 1.0
    step: float | None = None
    least: float = 0
    finest: float | None = None


SETTINGS = {
    "rank": Option("capacity of the change. Higher holds more detail and makes the museum file larger", 256),
    "steps": Option(
        "number of updates. More learn the concept better; too many copy the pictures. With a constant learning rate "
        "and stop_when_learned off, raising it continues the earlier training",
        100_000,
    ),
    "learning_rate": Option("size of each update. Higher is faster but less stable", step=1e-5, finest=1e-7),
    "token_learning_rate": Option(
        "learning rate of the trigger word's vectors. Higher is faster but less stable", step=1e-5, finest=1e-7
    ),
    "batch_size": Option("pictures per batch. More is more stable, but slower and needs more memory", 256),
    "accumulation": Option("batches accumulated per update: a larger batch in the same memory, but slower", 256),
    "clip_norm": Option("maximum gradient norm of an update. Lower is more stable", 1000.0, 0.01, least=1e-4),
    "weight_decay": Option("how strongly the weight changes are pulled towards zero. 0 turns it off", step=1e-4),
    "schedule": Option(
        "learning rate schedule: constant, or decaying to zero (cosine or linear). With auto, it is constant if "
        "you set the steps"
    ),
    "warmup": Option("fraction of the steps during which the learning rates rise from zero", step=0.01),
    "flip": Option("mirror half of the pictures. Leave it off for faces, letters and logos"),
    "min_snr_gamma": Option("min-SNR weighting of the timesteps. 5 is common; 0 turns it off", 100.0, 0.1),
    "precision": Option(
        "precision of the model during training. bf16 and fp16 need less memory and are faster on a GPU; fp32 is the "
        "most exact"
    ),
    "checkpointing": Option(
        "gradient checkpointing: needs much less memory and about a third more time, with the same result. Turned on "
        "automatically if memory would not suffice without it"
    ),
    "shuffle_tags": Option("put the tags of a caption (the parts between commas) in a random order every time"),
    "keep_tokens": Option("number of tags at the start of a caption that are neither shuffled nor dropped", 1000),
    "tag_dropout": Option(
        "share of the tags that are dropped at random. A tag with the trigger word always stays", step=0.01
    ),
    "caption_dropout": Option("share of the captions that are replaced by the concept's template at random", step=0.01),
    "caption_lines": Option(
        "use each line of a caption file as a caption, drawn at random. Otherwise, the whole file is one caption"
    ),
    "stop_when_learned": Option(
        "stop early, when the error on a held-out picture no longer falls. With "
        "fewer than 5 pictures, only the noise is held out"
    ),
    "token": Option(
        "learned: train the trigger word. frozen: it stands for known words (start, or its own name), and the text "
        "encoder is not needed during training. With auto, it is frozen for models with a large text encoder"
    ),
    "seed": Option("seed of the noise and the picture order"),
}
BASIC = ("steps", "learning_rate", "rank", "batch_size")  # inputs of a Train Step, which also has the seed
ADVANCED = tuple(name for name in SETTINGS if name not in (*BASIC, "seed"))  # inputs of a Recipe
