"""What one error is: kernels, schedules, parameterisations, weightings, noisy methods, the plan of draws."""
