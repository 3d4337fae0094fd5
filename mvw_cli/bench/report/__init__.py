"""A report of `mvw profile` made readable: one screen, tables, charts, a page."""
