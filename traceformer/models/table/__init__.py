"""The rows of the table of families, by kind; `models.families` makes one mapping of them.

parts             what many rows share: positions, readouts, tiny sizes, and short ways to write a row down
decoders          decoders with one MLP a block
experts           decoders with mixtures of experts
hybrids           decoders that have attention in some layers only, or none
encoders          encoders
encoder_decoders  pairs of stacks
"""
