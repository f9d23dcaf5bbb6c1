// The forward process of a diffusion model on one pixel: u = gx * x + ge * e, the network's input. gx and ge come from
// the draw's coefficient row: (alpha, sigma) for variance preserving models, (c_in, c_in * sigma) for EDM
// preconditioning (Karras et al., arXiv 2206.00364, table 1), (1 - t, t) for flow matching.
#pragma once

#include "common.h"

namespace fastdc {

FASTDC_HD float noisy_value(float gx, float ge, float x, float e) { return gx * x + ge * e; }

}  // namespace fastdc
