"""The processes that serve the items: this one, several on this machine, or those of a Ray."""
