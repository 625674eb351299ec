"""Pictures: what verbs return, as matplotlib figures, one value in and one figure out.

No numbers are made here; pages for the browser are in `viewer`. matplotlib is loaded when a picture is drawn.

style   one look for all of them, and how a figure is saved
heads   head metrics and clusters of heads
lens    the logit lens
paths   paths for papers: one ribbon lane per path
traits  curves of a trait over tokens, and the quality of vectors by layer
"""
