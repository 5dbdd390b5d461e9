"""What every number on the pages means: one entry each, from which tooltips, definitions and the manual are made.

Refuses: anything about one study. An entry holds for all of them.
"""
