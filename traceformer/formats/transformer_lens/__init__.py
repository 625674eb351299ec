"""What TransformerLens caches. It goes out only: a cache says too little of its run to come back.

write  a .pt file per example
hooks  what a site is called there, and in which shape
"""
