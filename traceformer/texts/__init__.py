"""Which texts a run reads: named data sets, Hugging Face data sets, files, folders, and the built-in demo.

`load.load_texts("demo", limit=8).examples[0].text`. Importing any of it loads neither datasets nor pyarrow.
"""
