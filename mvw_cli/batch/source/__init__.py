"""Where the items of `mvw batch` come from: folders, lists, tables, datasets."""
