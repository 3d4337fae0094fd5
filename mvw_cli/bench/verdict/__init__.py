"""What the figures allow one to say."""
