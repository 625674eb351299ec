"""Files of what was found, to hand on; a run is in none of them.

directions         trait vectors, in whatever way others saved theirs
probes             weights of linear probes, and what they reach
head_tables        tables of head metrics, the thesis's columns in front
statistics_tables  statistics as a Parquet file
path_traces        paths as reverse-attention's trace.json
translators        the affine maps of a lens, one per layer
published_lenses   Jacobian lenses and tuned lenses as others save them
"""
