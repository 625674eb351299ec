"""A small compiled part: what numpy and torch cannot do in one pass. All of it is optional, and has its like in Python.

What calls it, and what takes its place where it is not there, is in `store`, `analysis` and `capture`.

building    how a C compiler makes the library, where there is one
library     the library, which variant this processor runs, and how to go without
kernels     its functions, with numpy's arrays
recipes     the one that makes patterns anew of queries and keys
"""
