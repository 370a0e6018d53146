"""What both halves need and neither owns: files, YAML, words, the parser, trackers.

Imports nothing of this project, and nothing heavy before it is used.
"""
