"""Runs as data sets of the libraries that train on them; what comes in which order is `store.training_data`'s.

torch_batches  an `IterableDataset` of torch: several workers, several ranks, resumed in the middle of an epoch
single_items   an `IterableDataset` of Hugging Face's datasets: row by row, or square by square
"""
