"""What one error is: kernels, schedules, parameterisations, weightings, methods for noisy images, and the plan of draws."""
