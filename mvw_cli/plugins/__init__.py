"""The plugin seam: `loading` finds and loads what is installed, `lookup` finds one by its name."""
