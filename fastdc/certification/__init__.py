"""What is promised about an image's neighbours: randomized smoothing and Lipschitz certificates."""
