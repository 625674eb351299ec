"""A run as safetensors and a manifest. A model's own safetensors are read in `models`.

write  a file per example, and the manifest
read   only files that the manifest lists, bit for bit
"""
