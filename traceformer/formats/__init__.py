"""Files of other systems, out and in; and files of results.

A run's own files are in `store`, texts and prompts in `texts`. A format is a folder: `write`, and `read` where a run
can be had back.

registry          the formats, one row each; `export` and `import_run`
options           what can be said of an export or an import, whatever the format
outgoing          what an export tells of its run, so that an import can give it back
rows              rows of the token table as plain values, exactly, and back
incoming          a run made of other people's files, unknown rows and all
whole             files that appear whole or not at all
tensor_files      arrays as a .safetensors file
torch_files       what torch saved, without running pickle's code
torch_archives    the same of today's files, without torch
nanochat_json     nanochat traces: JSON
gemma_pt          the Gemma capture's .pt files
safetensors_runs  every array as safetensors, and a manifest
padded_zarr       the padded store: Zarr, every example as long as the longest
transformer_lens  what TransformerLens caches
results           files of what was found
"""
