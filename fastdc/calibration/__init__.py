"""What validation images fit: the race's limit, informative levels, the posterior's temperature."""
