"""The pipelines of diffusers that hold networks of the families here.

A pipeline's class says what is made with its networks. A diffusion classifier uses the networks alone. So a folder for
image-to-image, inpainting or ControlNet is read as the plain pipeline of its family, if its network takes no further
inputs. Pipelines whose networks always need others, such as upscalers and editors by instruction, are not listed.
"""

from fastdc.support import BundleError

PLAIN = {
    "unet2d": "DDPMPipeline",
    "dit": "DiTPipeline",
    "stable-diffusion": "StableDiffusionPipeline",
    "stable-diffusion-xl": "StableDiffusionXLPipeline",
    "stable-diffusion-3": "StableDiffusion3Pipeline",
}
"""The pipeline of each family that makes images from classes or texts."""

TEXT_FAMILIES = ("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3")
"""Families whose conditions are prompts."""

_SHARED = ("", "Img2Img", "Inpaint", "ControlNet", "PAG", "PAGImg2Img")
_OF_BOTH = (
    *_SHARED,
    "PAGInpaint",
    "ControlNetImg2Img",
    "ControlNetInpaint",
    "ControlNetXS",
    "ControlNetPAG",
    "Adapter",
)

_KINDS: dict[str, tuple[str, ...]] = {
    "unet2d": ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "RePaintPipeline", "UNet2DModel"),
    "dit": ("DiTPipeline",),
    "stable-diffusion": (
        *(f"StableDiffusion{task}Pipeline" for task in _OF_BOTH),
        *(
            f"StableDiffusion{task}Pipeline"
            for task in ("ControlNetPAGInpaint", "Panorama", "SAG", "AttendAndExcite", "DiffEdit", "GLIGEN")
        ),
        *(f"StableDiffusion{task}Pipeline" for task in ("ModelEditing", "Paradigms", "Pix2PixZero")),
        "CycleDiffusionPipeline",
        "LEditsPPPipelineStableDiffusion",
        "SemanticStableDiffusionPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionPipelineSafe",
        "TextToVideoZeroPipeline",
    ),
    "stable-diffusion-xl": (
        *(f"StableDiffusionXL{task}Pipeline" for task in (*_OF_BOTH, "ControlNetPAGImg2Img")),
        *(f"StableDiffusionXLControlNetUnion{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
        "LEditsPPPipelineStableDiffusionXL",
        "TextToVideoZeroSDXLPipeline",
    ),
    "stable-diffusion-3": tuple(f"StableDiffusion3{task}Pipeline" for task in (*_SHARED, "ControlNetInpainting")),
}

FAMILY_OF = {kind: family for family, kinds in _KINDS.items() for kind in kinds}
"""Family by the name of a pipeline's class, or of a network's class for the folder of a network alone."""


def family_of(kind: str) -> str:
    """The family of a pipeline's networks.

    Args:
        kind: Name of the pipeline's class.

    Raises:
        BundleError: No family has this pipeline.
    """
    if kind not in FAMILY_OF:
        raise BundleError(
            f"{kind:.80} cannot be exported; those that can: {', '.join(PLAIN.values())}, their variants with the same "
            "networks (Img2Img, Inpaint, ControlNet, DDIM, ...), and a UNet2DModel alone with its scheduler "
            "(--scheduler)"
        )
    return FAMILY_OF[kind]
