"""Which tokens led to a token: paths backward through attention.

Patterns come in as arrays and results go out; where they come from is in `questions`.

combining  heads become one matrix as they arrive, from a live model or from a run alike
graph      what paths run through: nodes, and weighted edges backward
trace      the search as reverse-attention has it, target by target
beam       many searches at once, without a loop over targets
exact      the k best paths of all, which a beam may miss
flow       from recorded heads to weights of edges; what all paths together carry
checked    is a result from a file what it is said to be?
sankey     paths as the nodes and links of a diagram
result     what a search gives, and its JSON
"""
