"""Open a model: a diffusers folder, or a single file in the original layout. Only safetensors files are read.

The tensors of a file do not say what the model predicts. The rule, in this order: the caller's choice; the metadata
`modelspec.prediction_type`; a tensor called "v_pred" (and "ztsnr" for zero terminal SNR); for families with both kinds,
the deviation of the bias of the last attention's first norm, as in ComfyUI, so that both read a file the same way; else
the family's default. A folder's scheduler has the prediction.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel

from ..errors import BaseModelError, CLoRAError
from ..model import families
from ..model.base import Prediction, Schedule
from ..model.families.family import Checkpoint, Family, StoredEncoder
from ..museum.file.files import other_kind
from . import ldm_layout
from .prompts import TextEncoder

HUB_TOKENIZER = "openai/clip-vit-large-patch14"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
}
FACTOR = 8  # pixels per latent pixel, along one side
TIMESTEPS_LIMIT = 100_000
LAYERS_LIMIT = 1000  # of one block or encoder; building more would take hours before tensors are found missing
MESSAGE_LIMIT = 600  # characters of a library's error
KINDS = (  # a pattern of tensor names, and what such a file is; the most certain first
    (r"lora_|\.lora", "It looks like a LoRA: give the model that it belongs to."),
    (
        r"(double|joint)_blocks\.|(single|joint)_transformer_blocks\.",
        "It looks like a model with joint attention, such as Flux or SD3; those have no cross-attention.",
    ),
    (r"clip_txt(_pooled)?_mapper\.", "It looks like a Stable Cascade, which reads the text differently."),
    (
        r"^(?!model\.diffusion_model\.).*(input|down)_blocks\.\d.*attn2\.",
        "It looks like a UNet alone, without text encoders and autoencoder; in ComfyUI, Load Diffusion Model opens it.",
    ),
    (
        r"(^|\.)blocks\.\d+\.(cross_attn|attn2)\.|(^|\.)transformer_blocks\.\d+\.attn2\.",
        "It looks like a diffusion transformer, such as PixArt, Wan or LTX; only UNets can be opened here.",
    ),
    (r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(mid|down|up|conv_in)", "It looks like an autoencoder (VAE)."),
    (r"^(text_model\.|cond_stage_model\.|transformer\.text_model\.)", "It looks like a text encoder."),
)
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Parts:
    """All that a text-to-image model is made of."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    encoders: tuple[TextEncoder, ...]
    schedule: Schedule


@contextmanager
def model_errors(path: Path) -> Iterator[None]:
    """Turn every error of the libraries in the block, of any class, into a BaseModelError that names the path.

    Lack of memory is not the files' fault, so its error stays as it is.
    """
    try:
        yield
    except (CLoRAError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error!s:.{MESSAGE_LIMIT}}"
        raise BaseModelError(
            f"'{path}' cannot be opened as a model: {reason}. Its files are broken, incomplete, or of a variant that "
            "cannot be used here. Get it again, or use another model."
        ) from error


def open_parts(path: Path, *, dtype: torch.dtype, tokenizer: Path | None, prediction: Prediction | None) -> Parts:
    """The parts of the model in a diffusers folder or a .safetensors checkpoint, the autoencoder's in float32."""
    if path.suffix.lower() in PICKLES:
        raise BaseModelError(
            f"'{path}' is a pickle, which can run any program when it is opened. Only .safetensors files are read: "
            "convert it, or get the model as .safetensors."
        )
    if path.is_dir():
        return _open_folder(path, dtype, tokenizer, prediction)
    if path.is_file() and path.suffix.lower() == ".safetensors":
        return _open_file(path, dtype, tokenizer, prediction)
    problem = "is not a .safetensors file" if path.is_file() else "does not exist"
    raise BaseModelError(
        f"'{path}' {problem}. Give 'starter', the folder of a diffusers pipeline (with model_index.json), "
        f"or a checkpoint of {_known()} ending in .safetensors. Nothing is downloaded by name."
    )


def _open_folder(folder: Path, dtype: torch.dtype, tokenizer: Path | None, prediction: Prediction | None) -> Parts:
    if not (folder / "unet" / "config.json").is_file():
        also = (
            "; it has a 'transformer'. Diffusion transformers are supported in ComfyUI only"
            * (folder / "transformer").is_dir()
        )
        raise BaseModelError(
            f"There is no 'unet/config.json' in '{folder}'{also}. Expected a diffusers pipeline of {_known()}: "
            "a folder with unet, vae, text_encoder, tokenizer and scheduler."
        )
    unet = _pretrained(UNet2DConditionModel, folder / "unet", dtype)
    tiny = _json(folder / "vae" / "config.json").get("_class_name") == "AutoencoderTiny"
    vae = _pretrained(AutoencoderTiny if tiny else AutoencoderKL, folder / "vae", torch.float32)
    family, _ = families.recognized(unet)
    encoders = []
    for name, suffix in zip(family.encoders, ("", "_2"), strict=False):
        kind = CLIPTextModelWithProjection if _pooled(family, name) else CLIPTextModel
        model = _pretrained(kind, folder / f"text_encoder{suffix}", dtype)
        words = open_tokenizer(tokenizer or folder / f"tokenizer{suffix}")
        padding: int = words.pad_token_id  # type: ignore[assignment]
        encoders.append(TextEncoder(name, model, words, padding, family.penultimate))
    schedule = _schedule(_json(folder / "scheduler" / "scheduler_config.json"), prediction)
    return Parts(unet, vae, tuple(encoders), schedule)


def _open_file(path: Path, dtype: torch.dtype, tokenizer: Path | None, prediction: Prediction | None) -> Parts:
    file = _read(path)
    family, layout = _recognized(file)
    words = open_tokenizer(tokenizer)
    predicts = prediction or _prediction(file, family, layout)
    size = family.resolution_px(predicts) // FACTOR
    unet_config = ldm_layout.unet_config(file.unet, text_width=family.text_width, heads=layout.heads, sample_size=size)
    vae_config = ldm_layout.vae_config(file.vae, scaling_factor=layout.scaling_factor)
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**unet_config), AutoencoderKL(**vae_config)  # type: ignore[arg-type]
    _fill(unet, ldm_layout.unet_tensors(file.unet, unet_config), dtype)
    _fill(vae, ldm_layout.vae_tensors(file.vae, vae_config), torch.float32)
    encoders = tuple(
        _file_encoder(file, name, family, stored, words, dtype) for name, stored in layout.encoders.items()
    )
    betas: dict[str, object] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    betas["rescale_betas_zero_snr"] = {"v_pred", "ztsnr"} <= file.tensors.keys()
    return Parts(unet, vae, encoders, _schedule(betas, predicts))


@dataclass(frozen=True, eq=False)
class _File:
    """A checkpoint in the original layout. Its tensors are memory-mapped, and read when they are copied."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with the prefix, by the rest of their names."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    @cached_property
    def unet(self) -> dict[str, Tensor]:
        return self.under("model.diffusion_model.")

    @cached_property
    def vae(self) -> dict[str, Tensor]:
        return self.under("first_stage_model.")


def _read(path: Path) -> _File:
    if other := other_kind(path):
        raise BaseModelError(f"'{path}' cannot be opened as a model. {other}")
    with safe_open(path, framework="pt") as file:
        return _File(path, file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()})


def _recognized(file: _File) -> tuple[Family, Checkpoint]:
    """The file's family and its layout. Raises BaseModelError for an unsupported file."""
    path, tensors, unet, vae = file.path, file.tensors, file.unet, file.vae
    weights = {name.removesuffix(".weight"): tensor for name, tensor in unet.items() if name.endswith(".weight")}
    projections = families.projections_in(weights, lambda name: weights[name].shape)
    if not projections:
        kinds = (kind for pattern, kind in KINDS if any(map(re.compile(pattern).search, tensors)))
        hint = "".join(f" {kind}" for kind in list(kinds)[:1])
        raise BaseModelError(
            f"'{path}' holds no UNet with cross-attention in the original layout.{hint} "
            f"Expected a whole checkpoint of {_known()}."
        )
    family = next((f for f in families.FAMILIES if f.has(projections) and f.marked(weights)), None)
    if family and family.reads != "states":
        raise BaseModelError(
            f"'{path}' is a {family.title} model. Commands open {_known()}; use {family.title} in ComfyUI, with the "
            "nodes."
        )
    if family is None or family.checkpoint is None or ("label_emb.0.0.weight" in unet) != family.pooled:
        widths = ", ".join(str(width) for width in sorted({projection.shape[1] for projection in projections}))
        raise BaseModelError(
            f"'{path}' holds a UNet that reads text states of width {widths} and is not a model of {_known()}. "
            "Refiners and variants that are conditioned on pictures cannot be used."
        )
    if any(name.endswith((".scale_weight", ".weight_scale", ".comfy_quant", "scaled_fp8")) for name in tensors):
        raise BaseModelError(
            f"'{path}' is a scaled float8 (fp8) checkpoint, whose scales only its own programs apply. Use the model's "
            "fp16 or bf16 file."
        )
    if "edm_mean" in tensors or "edm_vpred.sigma_max" in tensors:
        raise BaseModelError(
            f"'{path}' was trained with EDM's noise levels. Use a model that predicts epsilon or v_prediction."
        )
    if not vae or not any(name.startswith(("cond_stage_model.", "conditioner.")) for name in tensors):
        missing = "text encoder" if vae else "autoencoder"
        raise BaseModelError(f"'{path}' holds no {missing}. Expected a whole checkpoint, not a UNet alone.")
    return family, family.checkpoint


def _prediction(file: _File, family: Family, layout: Checkpoint) -> Prediction:
    if prediction := PREDICTIONS.get(file.metadata.get("modelspec.prediction_type", "").lower()):
        return prediction
    if "v_pred" in file.tensors:
        return "v_prediction"
    bias = file.unet.get("output_blocks.11.1.transformer_blocks.0.norm1.bias")
    most = layout.velocity_deviation
    if most is not None and bias is not None and bias.float().std(unbiased=False) > most:
        return "v_prediction"
    return next(iter(family.resolutions))


def _file_encoder(
    file: _File, name: str, family: Family, stored: StoredEncoder, tokenizer: CLIPTokenizer, dtype: torch.dtype
) -> TextEncoder:
    """A text encoder of a file. OpenCLIP's encoders were trained on prompts padded with id 0."""
    tensors, pooled = file.under(stored.prefix), _pooled(family, name)
    if stored.open_clip:
        tensors = ldm_layout.open_clip_tensors(tensors, projected=pooled, used=stored.layers)
    else:
        tensors = ldm_layout.clip_tensors(tensors)
    shape = ldm_layout.clip_config(tensors, activation="gelu" if stored.open_clip else "quick_gelu")
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(**shape, **ids)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(config) if pooled else CLIPTextModel(config)
    if hasattr(model, "text_model"):
        tensors = {key if key.startswith("text_projection") else f"text_model.{key}": v for key, v in tensors.items()}
    _fill(model, tensors, dtype)
    padding: int = 0 if stored.open_clip else tokenizer.eos_token_id  # type: ignore[assignment]
    return TextEncoder(name, model, tokenizer, padding, family.penultimate)


def open_tokenizer(folder: Path | None) -> CLIPTokenizer:
    """CLIP's tokenizer from a folder; without one, from the hub's cache or the hub."""
    if folder is None:
        try:
            files = [_hub_file(name) for name in ("vocab.json", "merges.txt")]
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise BaseModelError(
                "A single file has no tokenizer, and CLIP's is neither in the hub's cache nor available from the hub "
                f"({HUB_TOKENIZER}). Give a folder with its vocab.json and merges.txt (tokenizer=…, --tokenizer): "
                "the 'tokenizer' folder of any SD pipeline, or ComfyUI's comfy/sd1_tokenizer."
            ) from error
        folder = files[0].parent
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise BaseModelError(
            f"There is no tokenizer in '{folder}': expected tokenizer.json, or vocab.json and merges.txt."
        )
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _hub_file(name: str) -> Path:
    try:
        return Path(hf_hub_download(HUB_TOKENIZER, name, local_files_only=True))
    except (OSError, ValueError):
        return Path(hf_hub_download(HUB_TOKENIZER, name))


def _schedule(config: Mapping[str, object], prediction: Prediction | None) -> Schedule:
    kind, predicts = str(config.get("_class_name", "")), prediction or str(config.get("prediction_type", "epsilon"))
    if "Flow" in kind or "EDM" in kind or predicts not in PREDICTIONS:
        raise BaseModelError(
            f"This model's scheduler is '{kind}' with prediction '{predicts}'; only models that predict epsilon or "
            "v_prediction over a schedule of discrete timesteps are supported."
        )
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= TIMESTEPS_LIMIT:
        raise BaseModelError(
            f"The scheduler has {steps!r:.60} timesteps; it must be a whole number from 1 to {TIMESTEPS_LIMIT}."
        )
    alphas: Tensor = DDIMScheduler.from_config(dict(config)).alphas_cumprod.float()  # type: ignore[union-attr]
    if alphas.ndim != 1 or not ((alphas >= 0) & (alphas <= 1)).all():
        raise BaseModelError(
            "This model's scheduler has invalid noise levels: each must be one number from 0 to 1. Repair the betas in "
            "scheduler_config.json."
        )
    return Schedule(alphas, PREDICTIONS[predicts])


def _pretrained(kind: type[Model], folder: Path, dtype: torch.dtype) -> Model:
    """A complete model from its folder. The libraries would fill missing tensors with random numbers."""
    _check_layers(folder, _json(folder / "config.json"))
    names = [path.name for path in folder.glob("*.safetensors")]
    if names:
        _check_size(kind, folder)
    variant = "fp16" if names and all(".fp16" in name for name in names) else None
    options = {"torch_dtype": dtype, "local_files_only": True, "use_safetensors": True, "variant": variant}
    model, info = kind.from_pretrained(folder, output_loading_info=True, **options)  # type: ignore[attr-defined]
    if lacking := sorted([*info["missing_keys"], *(str(entry) for entry in info["mismatched_keys"])]):
        raise BaseModelError(
            f"'{folder}' lacks {len(lacking)} of its tensors, or has them in other shapes; the first is {lacking[0]}. "
            "Get the complete folder again."
        )
    return model


def _check_layers(folder: Path, config: Mapping[str, object]) -> None:
    for name, value in config.items():
        numbers = re.findall(r"\d+", str(value)) if "layers" in name or "blocks" in name else ()
        if any(len(number) > 4 or int(number) > LAYERS_LIMIT for number in numbers):
            raise BaseModelError(
                f"'{folder}' says {name} = {value!r:.60} in config.json; no model has more than {LAYERS_LIMIT} layers."
            )


def _check_size(kind: type[nn.Module], folder: Path) -> None:
    """Refuse a configuration with more numbers than the files have bytes, before allocating memory."""
    with torch.device("meta"):
        if issubclass(kind, PreTrainedModel):
            model: nn.Module = kind(kind.config_class.from_pretrained(folder, local_files_only=True))  # type: ignore[union-attr]
        else:
            model = kind.from_config(kind.load_config(folder, local_files_only=True))  # type: ignore[attr-defined]
    numbers = sum(parameter.numel() for parameter in model.parameters())
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if numbers > size:
        raise BaseModelError(
            f"By its config.json, the model in '{folder}' has {numbers} numbers, but its files have only {size} bytes. "
            "They do not belong together; get the complete folder again."
        )


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Copy the tensors into a model that was built without weights. Raises BaseModelError unless all fit."""
    expected = model.state_dict()
    wrong = sorted(name for name in expected if name not in tensors or tensors[name].shape != expected[name].shape)
    if wrong or (wrong := sorted(set(tensors) - set(expected))):
        raise BaseModelError(
            f"This file does not fit {type(model).__name__}: {len(wrong)} tensors are missing, too many, or of other "
            f"shapes, the first is {wrong[0]}. It may be incomplete, or a variant that only its own program can read."
        )
    if odd := [name for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise BaseModelError(
            f"'{odd[0]}' in this file is of {tensors[odd[0]].dtype}. A quantized model that only its own program can "
            "read? Get it in float32, float16 or bfloat16."
        )
    copies = {name: tensor.to(dtype, copy=True).contiguous() for name, tensor in tensors.items()}
    model.load_state_dict(copies, assign=True)
    for module in model.modules():
        positions = getattr(module, "position_ids", None)
        if isinstance(positions, Tensor) and positions.device.type == "meta":
            module.position_ids = torch.arange(int(positions.shape[-1]))[None]


def _pooled(family: Family, encoder: str) -> bool:
    """Whether the network reads that text encoder's pooled vector."""
    return family.pooled and encoder == [*family.encoders][-1]


def _known() -> str:
    *others, last = (family.title for family in families.FAMILIES if family.checkpoint)
    return f"{', '.join(others)} or {last}"


def _json(path: Path) -> Mapping[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))
