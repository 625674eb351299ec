"""Pages that show results: in one file, in a notebook, from a server."""
