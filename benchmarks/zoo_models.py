"""The architectures of the zoo: small members of many families of timm and transformers, with random weights.

timm imports torchvision, whose wheel does not load beside a CPU build of torch of another build
(github.com/pytorch/vision/issues/9077, 9085). It wants only names to compare with, so a stand-in is put in its place,
here and nowhere else.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

BATCH, TOKENS, VOCABULARY = 8, 16, 97

Call = tuple[tuple[Tensor, ...], dict[str, Tensor]]

# name of the model in timm, with the edge of its square images and what else `create_model` is told
IMAGES: Mapping[str, Mapping[str, Any]] = {
    "resnet18": {"size": 64},
    "resnetv2_18": {"size": 64},
    "resnext26ts": {"size": 64},
    "seresnet18": {"size": 64},
    "repvgg_a0": {"size": 64},
    "densenet121": {"size": 64},
    "hrnet_w18_small": {"size": 64},
    "dla46_c": {"size": 64},
    "ese_vovnet19b_slim_dw": {"size": 64},
    "regnetx_002": {"size": 64},
    "regnety_002": {"size": 64},
    "test_nfnet": {"size": 64},
    "inception_v3": {"size": 160},
    "mobilenetv2_050": {"size": 64},
    "mobilenetv3_small_050": {"size": 64},
    "mobilenetv4_conv_small_050": {"size": 64},
    "mnasnet_small": {"size": 64},
    "efficientnet_b0": {"size": 64},
    "tf_efficientnet_lite0": {"size": 64},
    "mixnet_s": {"size": 64},
    "ghostnet_050": {"size": 64},
    "lcnet_035": {"size": 64},
    "tinynet_e": {"size": 64},
    "mobileone_s0": {"size": 64},
    "repvit_m0_9": {"size": 64},
    "starnet_s050": {"size": 64},
    "hgnetv2_b0": {"size": 64},
    "convnext_atto": {"size": 64},
    "convnextv2_atto": {"size": 64},
    "inception_next_atto": {"size": 64},
    "mambaout_femto": {"size": 64},
    "poolformer_s12": {"size": 64},
    "vit_tiny_patch16_224": {"size": 64, "img_size": 64},
    "deit_tiny_distilled_patch16_224": {"size": 64, "img_size": 64},
    "eva02_tiny_patch14_224": {"size": 56, "img_size": 56},
    "cait_xxs24_224": {"size": 64, "img_size": 64},
    "convit_tiny": {"size": 64, "img_size": 64},
    "swin_tiny_patch4_window7_224": {"size": 64, "img_size": 64, "window_size": 2},
    "swinv2_cr_tiny_224": {"size": 64, "img_size": 64, "window_size": 2},
    "test_maxvit": {"size": 64, "img_size": 64},
    "test_coatnet": {"size": 64, "img_size": 64},
    "mobilevit_xxs": {"size": 64},
    "edgenext_xx_small": {"size": 64},
    "pvt_v2_b0": {"size": 64},
    "xcit_nano_12_p16_224": {"size": 64, "img_size": 64},
    "coat_lite_tiny": {"size": 64, "img_size": 64},
    "tiny_vit_5m_224": {"size": 224},
    "visformer_tiny": {"size": 64, "img_size": 64},
    "mixer_s32_224": {"size": 64, "img_size": 64},
    "gmlp_s16_224": {"size": 64, "img_size": 64},
    "resmlp_12_224": {"size": 64, "img_size": 64},
}

# class in transformers: what it reads, and what its configuration needs besides `SMALL`
SEQUENCES: Mapping[str, Mapping[str, Any]] = {
    "BertForSequenceClassification": {},
    "DistilBertForSequenceClassification": {},
    "RobertaForSequenceClassification": {},
    "AlbertForSequenceClassification": {},
    "ElectraForSequenceClassification": {},
    "MobileBertForSequenceClassification": {"embedding_size": 64, "intra_bottleneck_size": 64, "true_hidden_size": 64},
    "SqueezeBertForSequenceClassification": {"embedding_size": 64},
    "MPNetForSequenceClassification": {},
    "DebertaForSequenceClassification": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DebertaV2ForSequenceClassification": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "FunnelForSequenceClassification": {"block_sizes": [1, 1], "num_hidden_layers": None},
    "FNetForSequenceClassification": {"reads": ("input_ids",)},
    "NystromformerForSequenceClassification": {},
    "XLNetForSequenceClassification": {"max_position_embeddings": None},
    "ModernBertForSequenceClassification": {},
    "T5EncoderModel": {"d_kv": 16, "d_ff": 128},
    "GPT2LMHeadModel": {},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "GPTNeoXForCausalLM": {},
    "OPTForCausalLM": {"word_embed_proj_dim": 64},
    "BloomForCausalLM": {},
    "FalconForCausalLM": {},
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "MixtralForCausalLM": {"num_local_experts": 2},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 16},
    "GemmaForCausalLM": {"head_dim": 16},
    "Gemma2ForCausalLM": {"head_dim": 16},
    "PhiForCausalLM": {},
    "Phi3ForCausalLM": {},
    "MambaForCausalLM": {"reads": ("input_ids",)},
    "ViTForImageClassification": {"reads": ("pixel_values",)},
    "BeitForImageClassification": {"reads": ("pixel_values",)},
    "Dinov2ForImageClassification": {"reads": ("pixel_values",)},
    "SegformerForImageClassification": {"reads": ("pixel_values",), "depths": [1, 1, 1, 1]},
    "MobileViTForImageClassification": {"reads": ("pixel_values",)},
    "CLIPVisionModelWithProjection": {"reads": ("pixel_values",), "config": "CLIPVisionConfig"},
    "CLIPTextModelWithProjection": {"config": "CLIPTextConfig", "eos_token_id": 2},
    "WhisperEncoder": {"reads": ("input_features",), "module": "transformers.models.whisper.modeling_whisper"},
    "Wav2Vec2ForSequenceClassification": {"reads": ("input_values",), "conv_dim": [32] * 7},
    "ASTForAudioClassification": {"reads": ("input_values",), "max_length": 64, "num_mel_bins": 32, "spectra": True},
}

SMALL: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "projection_dim", "state_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_inner", "ffn_dim", "encoder_ffn_dim"), 128),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("vocab_size",), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("image_size",), 64),
    **dict.fromkeys(("patch_size",), 16),
    **dict.fromkeys(("num_mel_bins",), 32),
    **dict.fromkeys(("max_source_positions",), 32),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), 0),
}
"""Sizes under the names that configurations call them by; each takes those that it knows."""


def names() -> tuple[str, ...]:
    """All architectures, timm's first."""
    return (*IMAGES, *SEQUENCES)


def build(name: str) -> tuple[nn.Module, Call, tuple[str, ...]]:
    """A model of that name with seeded random weights, a batch for it, and the names of its inputs."""
    torch.manual_seed(0)
    model, inputs = (_of_timm if name in IMAGES else _of_transformers)(name)
    _vary(model)
    if name in IMAGES:
        _settle(model, *inputs.values())
        return model.eval(), (tuple(inputs.values()), {}), tuple(inputs)
    return model.eval(), ((), inputs), tuple(inputs)


def _of_timm(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    sys.meta_path.insert(0, _TorchvisionStandIn())
    import timm

    options = dict(IMAGES[name])
    size = options.pop("size")
    return timm.create_model(name, pretrained=False, num_classes=10, **options), {
        "x": torch.randn(BATCH, 3, size, size)
    }


def _of_transformers(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers

    options = dict(SEQUENCES[name])
    reads = options.pop("reads", ("input_ids", "attention_mask"))
    spectra = options.pop("spectra", False)
    kind = getattr(importlib.import_module(options.pop("module", "transformers")), name)
    config = getattr(transformers, options.pop("config", kind.config_class.__name__))
    known = config()
    sizes = {key: value for key, value in SMALL.items() if hasattr(known, key) and not _is_list(getattr(known, key))}
    chosen = {key: value for key, value in {**sizes, **options}.items() if value is not None}
    model = kind(config(**chosen, use_cache=False))
    audio = torch.randn(BATCH, 64, 32) if spectra else torch.randn(BATCH, 4000)
    made: dict[str, Callable[[], Tensor]] = {
        "input_ids": lambda: torch.randint(3, VOCABULARY, (BATCH, TOKENS)),
        "attention_mask": lambda: (torch.arange(TOKENS) < torch.tensor([[16], [12], [9], [16]] * 2)).long(),
        "pixel_values": lambda: torch.randn(BATCH, 3, 64, 64),
        "input_features": lambda: torch.randn(BATCH, 32, 64),
        "input_values": lambda: audio,
    }
    return model, {each: made[each]() for each in reads}


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _settle(model: nn.Module, images: Tensor) -> None:
    """Take the statistics of batch norms from the images, as training would: made-up ones let deep networks explode."""
    norms = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    momenta = [each.momentum for each in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def _vary(model: nn.Module) -> None:
    """Draw anew what initialization leaves constant: gains of zero would hide errors."""
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in module.named_parameters(recurse=False):
                if tensor.numel() < 2 or not bool((tensor == tensor.flatten()[0]).all()):
                    continue
                if "bias" in name or "beta" in name:
                    tensor.normal_(0.0, 0.1)
                elif tensor.squeeze().dim() < 2:
                    tensor.uniform_(0.5, 1.5)
                else:
                    tensor.normal_(0.0, tensor[0].numel() ** -0.5)


class _TorchvisionStandIn(MetaPathFinder, Loader):
    """Any module of torchvision, as one whose every attribute is an empty class."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


class _Names(type):
    def __getattr__(cls, name: str) -> str:
        return name
