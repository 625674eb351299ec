"""Models: what each family looks like inside, how one is loaded, its sizes and its weights.

Nothing here watches a forward pass; that is `capture`.

families            a row for each family: all that has to be known of it, as data
table               these rows, by kind
family              the parts of which a row is made
own_attention       how families that compute attention themselves make scores
blocks              where each site lies in a block: paths of modules that alike families share
outputs             what a model's class makes of its last hidden states: tokens, classes, or nothing
behaviour           what only a pass tells of a model: whether it looks ahead, where its positions begin
dims                the sizes of a model in this project's words, whatever its config calls them
load                from a name or a folder to a model and its tokenizer, without running anybody's code
loaded              a model at hand: its tokenizer, its sizes, and where both came from
part                which part of a model is recorded: of several models in one, the text model
held                a model that the user holds already: what lies under its wrappers
placed              where a model's weights are: on one device, on several, or elsewhere until they are used
quantised           models whose weights are codes, and the weights that they multiply by
adapters            adapters of PEFT: loaded as layers around a model's own, and proved to run as PEFT's model does
tokenizer           a model's own tokenizer, or that it has none
precision           sums in float64, also of what lies on a device that has no such numbers
weights             a model folder's weights, tensor by tensor, without torch
readout             what stands behind the last block, read without torch
module_weights      weights by their modules, of a folder without torch or of a model that is loaded
block_weights       what attentions write with: output projections and the norms around them, read without torch
head_weights        the weights of every attention head, norms folded in, read without torch
written             a row as it stands in Python, ready to be added
tiny                tiny random models of real classes, of families with a row and without
mechanisms          what a config says that its model has and no row can describe, in words
shrunk              a tiny config of any text model type of transformers
corrections         what such a config needs that the names of its fields do not tell
checkpoints         the checkpoints of one training, and the step that each is of
nanochat            nanochat's checkpoints in transformers' class, to the last rounding
nanochat_tokenizer  its tokenizer as a Hugging Face one, without running its pickle
"""
