// The error of a diffusion classifier on one pixel:
//
//   r = a * F + (b * x + (c * e + d * z)),      rho(r) = r^2 | |r| | huber_delta(r) | r
//
// F is the raw network output, x the image, e the noise and z an optional target image. Every parameterisation and
// every published diffusion classifier is a row (a, b, c, d); see fastdc/diffusion/parameterization.py. The part in
// brackets does not depend on the class, so it is computed once for all classes that share (image, draw).
#pragma once

#include "common.h"

namespace fastdc {

FASTDC_HD float residual_offset(float b, float c, float x, float e) { return b * x + c * e; }

FASTDC_HD float residual_offset(float b, float c, float d, float x, float e, float z) {
  return b * x + (c * e + d * z);
}

FASTDC_HD float residual(float a, float network_output, float offset) { return a * network_output + offset; }

FASTDC_HD float absolute(float value) { return value < 0.0f ? -value : value; }

// huber: r^2 / 2 inside [-delta, delta], delta * (|r| - delta / 2) outside.
template <Loss loss>
FASTDC_HD float rho(float r, float delta) {
  if constexpr (loss == Loss::kL2) {
    return r * r;
  } else if constexpr (loss == Loss::kL1) {
    return absolute(r);
  } else if constexpr (loss == Loss::kResidual) {
    return r;
  } else {
    const float magnitude = absolute(r);
    const float inside = 0.5f * r * r;
    const float outside = delta * (magnitude - 0.5f * delta);
    return magnitude <= delta ? inside : outside;
  }
}

// Computes the error of a cell from its sum of rho over `size` pixels.
FASTDC_HD float weighted_mean(double sum, int64_t size, float weight) {
  return static_cast<float>(static_cast<double>(weight) * (sum / static_cast<double>(size)));
}

}  // namespace fastdc
