"""The padded store: Zarr v2, every example padded to the longest. A run's own Zarr is in `store`.

write  a run as such a folder, which appears whole
read   such a folder as a run, padding on either side; what was never captured is refused
"""
