"""Pages that show results: from a server, in one file, in a notebook.

Everything that is shown is worked out in Python; the pages' source is in `web/`, pictures for papers in `figures`.

viewing        the verb: a library served, and opened in the browser
server         the live viewer, on this machine alone
library        the runs and effects that it shows, by name
kept           what was worked out once, kept while there is room
query          what a page asks for
resources      what it is sent, name by name
packets        arrays on their way to a page
arrays         which example and which arrays a query means
notices        what a run lacks, in words
tokens         tokens as pages show them
path_payloads  a trace in the shape that its screen draws
pages          the page itself, with or without what it shows
export         a run as one file, in a notebook, as a widget
carried        what each screen asks for, for such a file
widget         the page in a notebook, answered by Python
"""
