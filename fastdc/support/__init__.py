"""What every wing leans on and that knows nothing of diffusion: exceptions, checks, optional packages, atomic files."""
