"""Pages that show results: in one file, in a notebook, from a server.

Everything that is shown is worked out in Python; the pages' source is in `web/`, pictures for papers in `figures`.

payloads  what pages are sent, in the shapes that `web/src/payload.ts` states
export    a page as one file that asks nothing of any network
"""
