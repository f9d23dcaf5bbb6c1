"""Images from noise and back: trajectories, guidance, samplers and FlowEdit, on every backend and without torch."""

from fastdc.sampling.flow_edit import flow_edit_step
from fastdc.sampling.generate import sample
from fastdc.sampling.guided import GuidedDenoiser, check_guidance, conditions_of
from fastdc.sampling.runs import ModelAndNetwork, SamplingRun
from fastdc.sampling.space import Decoder, Space
from fastdc.sampling.steps import SAMPLERS, AbstractSampler, noise_of, sampler_of, walk
from fastdc.sampling.trajectory import SPACINGS, Point, Span, Trajectory

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "AbstractSampler",
    "Decoder",
    "GuidedDenoiser",
    "ModelAndNetwork",
    "Point",
    "SamplingRun",
    "Space",
    "Span",
    "Trajectory",
    "check_guidance",
    "conditions_of",
    "flow_edit_step",
    "noise_of",
    "sample",
    "sampler_of",
    "walk",
]
