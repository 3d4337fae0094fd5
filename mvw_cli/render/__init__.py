"""SVG charts and the blocks that reports are made of."""
