"""Image files as people have them, read into RGB pictures."""
