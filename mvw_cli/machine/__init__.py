"""What the machine and a checkpoint are: devices, memory, weights, and whether they fit."""
