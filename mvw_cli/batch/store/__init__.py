"""The records of `mvw batch`: appended, resumed, merged, exported."""
