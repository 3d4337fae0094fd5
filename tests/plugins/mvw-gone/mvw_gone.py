"""A plugin whose module the tests delete after installing it."""
