"""mvw as a model of public evaluation harnesses, in their own process."""
