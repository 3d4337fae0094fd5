"""Many images, one model: the work list, the records and who does the work.

Nothing here prints. Importing the package imports nothing heavy.
"""
