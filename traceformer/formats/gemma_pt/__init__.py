"""The Gemma capture's .pt files, in its two layouts. How torch's files are opened is `formats.torch_files`.

write  a run's examples as such files, whose squares are views of one
read   such files as a run
files  one of them, in any of its variants
"""
