"""What withdrawal does to answers: agreement, divergence, attention."""
