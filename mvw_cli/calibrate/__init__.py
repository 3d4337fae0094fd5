"""Finding a policy's settings on the user's own images: what `mvw calibrate` runs."""
