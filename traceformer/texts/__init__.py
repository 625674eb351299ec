"""Texts: which ones a run reads, which prompts are answered, and what a reader is shown for a token.

    load_texts("demo", limit=8).examples[0].text

No token ids: how a model reads a text is in `capture`. Importing this loads neither datasets nor pyarrow.

load       from what a user names, or writes down as a list, to the examples that are meant
named      data sets that have a name of their own, and how their rows become examples
hub        data sets that the `datasets` library holds, where there may be no network
files      a user's own files, one or a folder of them, in seven formats
delimited  tables as text: what separates their columns, and their records
packed     files, compressed or not, as bytes that can be read from any place
streams    texts that are read as they come, and gone on with at the record where a run stopped
chats      conversations: messages with roles, and the tools that could be called
conllu     sentences in CoNLL-U, and the text that their words stand for
lines      the lines of a UTF-8 file, counted while they are read
prompts    prompts: one, a file of them, or a set that has a name
windows    one long file in consecutive windows of tokens
contrasts  pairs of a clean and a corrupt text, for patching
cells      what is read: a text, a pair of texts, words, token ids or a conversation
examples   what every data set becomes: examples that are made when they are asked for
lazily     sequences whose items are made when they are asked for
shown      how a token is written: its text or bytes, in a terminal, in a figure, on a page
"""
