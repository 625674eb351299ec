"""Cards: what a notebook shows of a noun, as a small piece of HTML.

Each is at most 60 KB, has no script and asks nothing of any network. Its text takes the colour that is around it, so
that it is right on light and on dark. What is too large is shown in part, and the card says so. No matplotlib here, and
no pages of the viewer.

look              one style, tables, bars, shades, and pictures of one colour
run_card          what a run holds, and thumbnails of one example's patterns
head_table        the metrics of heads, to be sorted by a click
lens_table        the logit lens, a row per layer
statistics_table  the statistics of a run
trait_card        projections as curves and on the text
"""
