"""fastdc."""
