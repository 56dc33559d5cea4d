"""A frozen vision transformer: any local `transformers` folder of ViT, DeiT, DINOv2 or CLIP's vision tower."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..errors import BaseModelError
from ..model.attach import Reading
from ..model.attachment import Attachment
from ..model.base import Fingerprint
from ..model.precision import AUTOCAST, Precision
from ..model.projections import Projection, Role, Slot
from ..model.text_states import Report, reported
from ..pictures import as_floats, to_bytes

STARTER = "starter"
STARTER_FOLDER = Path(__file__).parent / "starter"
AT_ONCE = 64  # pictures in one forward pass without gradients
SIDE_LIMIT_PX = 4096
ROLES: Mapping[str, Role] = {
    **{"q_proj": "query", "query": "query"},
    **{"k_proj": "key", "key": "key"},
    **{"v_proj": "value", "value": "value"},
}
# encoder.layer.3.attention.attention.query, layers.3.attention.q_proj, encoder.layers.3.self_attn.q_proj, …
PLACE = re.compile(rf"(?:^|\.)(\d+)\.[a-z_.]*?({'|'.join(ROLES)})$")
AFTER_ATTENTION = re.compile(r"\.(layernorm_after|norm2|layer_norm2)$")  # the norm between attention and perceptron


class Vision:
    """The frozen network. Deltas go on the queries, keys and values of every self-attention.

    width: of a feature. side: of the square pictures that it reads, in pixels.
    """

    def __init__(self, network: nn.Module, *, side: int, mean: Tensor, deviation: Tensor, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.network: Any = network.to(self.device, torch.float32).eval().requires_grad_(False)
        self._pooled = type(network).__name__.startswith("CLIP")  # whose last states are not normalized
        modules = attention_projections(network).items()
        self.slots: Mapping[Projection, Slot] = {
            projection: Slot(module, 0, projection.shape[0]) for projection, module in modules
        }
        _only_class_token(network)
        self.attachments: list[Attachment] = []
        self.side = side
        self._mean, self._deviation = (value.view(3, 1, 1).to(self.device) for value in (mean, deviation))
        self._compute: torch.dtype | None = None
        self.width = self.all_features(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1]
        kind = f"{self.network.config.model_type} {self.width}"
        self.fingerprint = Fingerprint(kind, _digest(self.network, side, mean, deviation))

    @contextmanager
    def learning(
        self, *, precision: Precision, checkpointing: bool = False, words: bool = False
    ) -> Iterator[torch.dtype]:
        """While entered, gradients flow through the network in that precision. There is no checkpointing yet."""
        before, self._compute = self._compute, AUTOCAST[precision]
        try:
            yield self._compute or torch.float32
        finally:
            self._compute = before

    @contextmanager
    def merged(self, deltas: Mapping[Projection, Tensor]) -> Iterator[None]:
        """While entered, these frozen matrices (out, in) are added to the weights, which costs nothing per picture."""
        weights = {projection: self.slots[projection].module.get_parameter("weight") for projection in deltas}
        before = {projection: weight.data for projection, weight in weights.items()}
        try:
            for projection, weight in weights.items():
                weight.data = weight.data + deltas[projection].to(weight.device)
            yield
        finally:
            for projection, weight in weights.items():
                weight.data = before[projection]

    def features(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, side, side) in [-1, 1] → features (n, width) float32: the class token after the last norm.

        Attached deltas apply; gradients flow.
        """
        pixels = ((pictures.to(self.device) + 1) / 2 - self._mean) / self._deviation
        autocast = torch.autocast(self.device.type, self._compute, enabled=self._compute is not None)
        with Reading.of(self), autocast:
            output = self.network(pixel_values=pixels)
        return (output.pooler_output if self._pooled else output.last_hidden_state[:, 0]).float()

    @torch.no_grad()
    def all_features(self, pictures: Tensor, report: Report | None = None) -> Tensor:
        """Bytes (n, 3, side, side) → features (n, width) on the CPU, in batches. `report` may raise to stop."""
        parts = [self.features(as_floats(part)).cpu() for part in reported(pictures.split(AT_ONCE), report)]
        features = torch.cat(parts) if parts else torch.zeros(0, self.width)
        if not features.isfinite().all():
            raise BaseModelError(
                "The features are not finite numbers: the weights of the network or the museum are broken."
            )
        return features

    def prepared(self, picture: Image.Image) -> Tensor:
        """The network's input: the middle square of a picture, bytes (3, side, side)."""
        return to_bytes(ImageOps.fit(picture.convert("RGB"), (self.side, self.side), Image.Resampling.BICUBIC))


def open_vision(path_or_name: str | Path, *, device: str = "cpu") -> Vision:
    """Open "starter" or a local `transformers` folder with config.json and model.safetensors.

    Raises BaseModelError for everything that cannot be opened.
    """
    folder = STARTER_FOLDER if str(path_or_name) == STARTER else Path(path_or_name)
    if not (folder / "config.json").is_file():
        raise BaseModelError(
            f"'{path_or_name}' is not a folder of a vision transformer: it has no config.json. Give 'starter', or the "
            "folder of a ViT, DeiT, DINOv2 or CLIP model as transformers saves it."
        )
    try:
        return _opened(folder, device)
    except BaseModelError:
        raise
    except ImportError as error:
        raise BaseModelError(f"Vision transformers need transformers: {error}. pip install transformers") from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise BaseModelError(f"'{path_or_name}' cannot be opened ({type(error).__name__}: {reason:.300}).") from error


def attention_projections(network: nn.Module) -> dict[Projection, nn.Module]:
    """The query, key and value projections of every self-attention, by names that do not depend on library versions.

    Raises BaseModelError unless every layer has all three.
    """
    modules: dict[Projection, nn.Module] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and (place := PLACE.search(name)):
            role = ROLES[place[2]]
            path = f"layers.{place[1]}.{role}"
            modules[Projection(path, role, (module.out_features, module.in_features))] = module
    layers = {layer_path(projection) for projection in modules}
    if not modules or len(modules) != 3 * len(layers):
        raise BaseModelError(
            f"{type(network).__name__} is not a vision transformer whose layers have a query, a key and a value "
            "projection each. Use a ViT, DeiT, DINOv2 or CLIP model."
        )
    return modules


def _only_class_token(network: nn.Module) -> None:
    """Let the last layer's perceptron compute the class token alone, since nothing else of the last layer is read.

    The residual connection broadcasts it over the other tokens, whose outputs have no meaning then.
    """
    if norms := [module for name, module in network.named_modules() if AFTER_ATTENTION.search(name)]:
        norms[-1].register_forward_pre_hook(lambda module, inputs: (inputs[0][:, :1],))


def layer_path(projection: Projection) -> str:
    """ "layers.3.key" → "layers.3" """
    return projection.path.rpartition(".")[0]


def _opened(folder: Path, device: str) -> Vision:
    """The network of the folder, only from safetensors and transformers' own code, with all of its weights."""
    import transformers

    kinds = {
        "vit": (transformers.ViTModel, {"add_pooling_layer": False}),
        "deit": (transformers.DeiTModel, {"add_pooling_layer": False}),
        "dinov2": (transformers.Dinov2Model, {}),
        "clip": (transformers.CLIPVisionModel, {}),
        "clip_vision_model": (transformers.CLIPVisionModel, {}),
    }
    name = _json(folder / "config.json").get("model_type")
    if not isinstance(name, str) or name not in kinds:
        raise BaseModelError(f"'{folder}' holds a model of type {name!r:.60}; supported are {', '.join(kinds)}.")
    if (folder / "adapter_config.json").exists():
        raise BaseModelError(f"'{folder}' holds an adapter. Give the folder of the model itself.")
    if not list(folder.glob("*.safetensors")):
        raise BaseModelError(f"'{folder}' has no .safetensors file. Save the model with safe_serialization=True.")
    kind, options = kinds[name]
    safely = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    with _quiet():
        network, loading = kind.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **safely, **options
        )
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, loading[problem])):
            raise BaseModelError(f"The weights in '{folder}' do not fit its config.json: {keys[0]} ({problem}).")
    extra = [key for key in loading["unexpected_keys"] if PLACE.search(key.removesuffix(".weight"))]
    if extra := [key for key in extra if not key.startswith("text_model.")]:
        raise BaseModelError(f"The weights in '{folder}' have more layers than its config.json: {min(extra)}.")
    side, mean, deviation = _preprocessing(folder, network.config.image_size)
    return Vision(network, side=side, mean=mean, deviation=deviation, device=device)


@contextmanager
def _quiet() -> Iterator[None]:
    """While entered, transformers prints no progress bar and no report of the weights; `_opened` checks them."""
    from transformers.utils import logging

    enabled, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if enabled:
            logging.enable_progress_bar()


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise BaseModelError(f"'{path}' is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise BaseModelError(f"'{path}' holds a {type(values).__name__}; expected an object.")
    return values


def _digest(network: nn.Module, side: int, mean: Tensor, deviation: Tensor) -> str:
    """SHA-256 of all weights, whatever a version of transformers calls them, and of how pictures are prepared.

    The same for float16 and float32 copies.
    """
    weights = []
    for value in network.state_dict().values():
        halves = value.detach().to("cpu", torch.float16).contiguous()
        weights.append(hashlib.sha256(f"{tuple(value.shape)}".encode() + halves.numpy().tobytes()).hexdigest())
    preparation = json.dumps([side, mean.tolist(), deviation.tolist()])
    return hashlib.sha256(("".join(sorted(weights)) + preparation).encode()).hexdigest()


def _preprocessing(folder: Path, image_size: int) -> tuple[int, Tensor, Tensor]:
    """The side of the pictures, and the mean and deviation of their values in [0, 1].

    image_size: the side where preprocessor_config.json does not give one.
    """
    path = folder / "preprocessor_config.json"
    values = _json(path)
    size = (values.get("do_center_crop", True) and values.get("crop_size")) or values.get("size") or image_size
    side = size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3} if values.get("do_normalize") is False else values
    mean, deviation = (
        torch.tensor(np.array(plain.get(name, [0.5] * 3), dtype=np.float32)) for name in ("image_mean", "image_std")
    )
    if mean.shape != (3,) or deviation.shape != (3,) or not mean.isfinite().all() or not (deviation > 0).all():
        raise BaseModelError(f"'{path}' must have an image_mean and an image_std of three numbers above 0.")
    if type(side) is not int or not 1 <= side <= SIDE_LIMIT_PX:
        raise BaseModelError(
            f"The pictures of '{folder}' have a side of {side!r:.60} px; expected 1 to {SIDE_LIMIT_PX}."
        )
    return side, mean, deviation
