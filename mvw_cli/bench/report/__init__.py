"""A report made readable: terminal, plain text, Markdown, CSV, pictures, one HTML page.

What is said has one home (`sections.py`, `pictures.py`); each format only draws it. Nothing here
computes a figure of its own.
"""
