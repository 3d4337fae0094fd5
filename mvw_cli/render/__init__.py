"""Sections and charts as people read them: terminal, Markdown, SVG, HTML."""
