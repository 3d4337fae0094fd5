"""Finding a policy's settings on the user's own images: what `mvw calibrate` runs.

It does not know the command line, and patches no model but for the length of a forward pass.
"""
