"""Diffusion models in the formats of other tools, brought to one form, :class:`Source`."""

from fastdc.sources.adapters import add_lora, lora_weights, merge_lora
from fastdc.sources.base import Source, WithTables
from fastdc.sources.choose import is_text_conditional, open_source
from fastdc.sources.edm_networks import edm_network
from fastdc.sources.image_text import DUAL, JOINT, ImageTextModel, computing, open_image_text
from fastdc.sources.latents import open_decoder, open_vae
from fastdc.sources.lora import Lora
from fastdc.sources.new_classes import with_classes, with_prompts

__all__ = [
    "DUAL",
    "JOINT",
    "ImageTextModel",
    "Lora",
    "Source",
    "WithTables",
    "add_lora",
    "computing",
    "edm_network",
    "is_text_conditional",
    "lora_weights",
    "merge_lora",
    "open_decoder",
    "open_image_text",
    "open_source",
    "open_vae",
    "with_classes",
    "with_prompts",
]
