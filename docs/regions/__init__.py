"""The generated parts of the documentation, by where their facts come from."""
