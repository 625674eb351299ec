"""The facts that must be proved of each family, written by hand; and what a check says of them."""

from typing import Any

from traceformer.capture.proofs.check import ALONE, CheckResult, Example, random_examples
from traceformer.sites import GROUPS

Fact = tuple[str, str]

# What a family is made of, in words of its own; `facts_of` turns them into the facts that must be proved.
FAMILIES = {
    "gpt2": "dec pre-norm plain",
    "llama": "dec pre-norm gated rotary",
    "mistral": "dec pre-norm gated rotary",
    "qwen2": "dec pre-norm gated rotary",
    "qwen3": "dec pre-norm gated rotary",
    "gemma": "dec pre-norm gated rotary",
    "gemma2": "dec pre-norm gated rotary normed-out",
    "gemma3_text": "dec pre-norm gated rotary normed-out",
    "phi3": "dec pre-norm gated rotary",
    "olmo2": "dec final-norm gated rotary normed-out",
    "gpt_neox": "dec pre-norm plain rotary",
    "gpt_neox_parallel": "dec pre-norm plain rotary parallel",
    "opt": "dec pre-norm plain",
    "opt_post_norm": "dec plain",
    "mixtral": "dec pre-norm experts rotary",
    "gpt_oss": "dec pre-norm experts rotary sinks",
    "nanochat": "dec pre-norm plain rotary",
    "bert": "enc plain",
    "roberta": "enc plain",
    "xlm-roberta": "enc plain",
    "electra": "enc plain",
    "distilbert": "enc plain",
    "modernbert": "enc pre-norm gated rotary",
    "t5": "enc dec pre-norm plain",
    "t5_gated": "enc dec pre-norm gated",
    "mt5": "enc dec pre-norm gated",
    "bart": "enc dec plain",
    "gptj": "dec pre-norm plain rotary parallel one-norm own-attention",
    "bloom": "dec pre-norm plain alibi own-attention",
    "mpt": "dec pre-norm plain alibi own-attention",
    "byte_sparse": "dec pre-norm gated rotary",
    "granite": "dec pre-norm gated rotary",
    "deepseek_v3_latent_queries": "dec pre-norm experts shared rotary latent",
    "stablelm_parallel": "dec pre-norm gated rotary parallel one-norm",
    "glm4": "dec pre-norm gated rotary normed-out",
    "qwen3_moe": "dec pre-norm experts rotary",
    "gpt_neo": "dec pre-norm plain own-attention",
    "falcon_new": "dec pre-norm plain rotary parallel own-attention",
    "deberta-v2": "enc plain own-attention content-bias",
    "mbart": "enc dec pre-norm plain",
    "xglm": "dec pre-norm plain outside",
    "qwen3_next": "dec pre-norm experts shared rotary gated-out",
}
EVERY_STACK = (
    ("token_embed", "equals the embedding's rows of the token ids"),
    ("embed", "equals resid_pre of the first block"),
    ("resid_pre", "equals resid_post of the block before, or embed"),
    ("mlp_out", ""),
    ("resid_post", "equals resid_mid + mlp_out (parallel: resid_pre + attn_out + mlp_out)"),
    ("hidden", "equals the model's own output_hidden_states"),
)
RESID_MID = ("resid_mid", "equals resid_pre + attn_out, normed in post-norm blocks")
EVERY_ATTENTION = (
    ("q_proj", "equals W_Q of attention's input"),
    ("k_proj", "equals W_K of attention's input"),
    ("v_proj", "equals W_V of attention's input"),
    ("v_proj", "gives attn_out through the model's own attentions"),
    ("attn_out", ""),
)
OWN_VALUES = (("v", "equals v_proj"),)
SEEN_ATTENTION = (
    ("attn_scores", "equals q k^T, scaled, softcapped, biased"),
    ("attn_pattern", "equals the softmax of attn_scores in a mask built by hand"),
    ("attn_pattern", "equals the model's own eager attentions"),
    ("z", "equals attn_pattern v"),
    ("attn_out", "equals W_O z + b, after the post-norm where there is one"),
)
BY_RECIPE = (
    ("attn_pattern", "made anew by recipe of q and k, equals what is recorded"),
    ("attn_pattern", "made anew by recipe of q and k, equals the model's own eager attentions"),
)
GATED = ("attn_out", "equals W_O of z times its gate, after the post-norm")
ROTARY = (
    ("q", "has the lengths of q_proj (normed where the family does)"),
    ("k", "has the lengths of k_proj (normed where the family does)"),
)
NOT_ROTARY = (
    ("q", "equals q_proj (normed or scaled where the family does)"),
    ("k", "equals k_proj (normed where the family does)"),
)
LATENT = (
    ("q_proj", "equals W_Q of attention's input"),
    ("q", "has the lengths of q_proj (normed where the family does)"),
    ("kv_latent", "equals the normed narrow row of attention's input"),
    ("k", "is made of kv_latent, but for the part that heads share"),
    ("v", "is made of kv_latent"),
    ("attn_out", ""),
)
NORMED = "equals the norm of the residual stream"
ONE_MLP = (
    ("mlp_up", "equals the up projection of the MLP's input"),
    ("mlp_act", ""),
    ("mlp_mid", ""),
    ("mlp_down", "equals the down projection of mlp_mid"),
    ("mlp_out", "equals mlp_down, after the post-norm where there is one"),
)
MLPS = {
    "plain": (*ONE_MLP, ("mlp_act", "equals the activation function of mlp_up"), ("mlp_mid", "equals mlp_act")),
    "gated": (*ONE_MLP, ("mlp_mid", "equals mlp_act * mlp_up")),
    "experts": (
        ("mlp_out", "equals the experts' output for the MLP's input"),
        ("router_logits", "equals the router's matrix times the MLP's input"),
        ("router_logits", "equals the model's own output_router_logits"),
        ("expert_topk", "names the experts of the largest router_logits"),
        ("expert_topk", "gives mlp_out: the outputs of the experts that it names, each times its weight, added up"),
        ("expert_weight", "gives mlp_out with expert_topk, as a sum"),
        ("expert_weight", "falls from the first expert to the last"),
    ),
    "shared": (
        ("shared_up", "equals the up projection of the MLP's input"),
        ("shared_act", "gives shared_mid, times shared_up"),
        ("shared_mid", "gives shared_out through the down projection"),
        ("shared_out", "equals the shared expert's output for the MLP's input"),
    ),
}
OWN_NUMBERS = "an edit that puts its own numbers there changes nothing"
OF_A_DONOR = "of another text, put there by an edit, gives that text's output"
WITHOUT_A_HEAD = "without a head is what it was less z @ W_O of that head"
NOTHING_DONE = "steering by 0 and cutting no edge change nothing"
BESIDE_A_CACHE = "edited beside a cache is as edited in one pass"
WITHIN_THE_MODULE = ("q", "k", "v", "attn_scores", "attn_pattern")
LOGITS = {
    "dec": "equals the unembedding of the last residual stream",
    "enc": "equals the model's own head on the last residual stream",
}


def facts_of(family: str) -> set[Fact]:
    """The facts that must be proved of a family; an empty fact only says that its site is recorded."""
    words = FAMILIES[family].split()
    stacks = [stack for stack in ("enc", "dec") if stack in words]
    facts: set[Fact] = set()

    def add(prefix: str, *more: Fact) -> None:
        facts.update((f"{prefix}.{site}", fact) for site, fact in more)

    for stack in stacks:
        add(stack, *EVERY_STACK)
        for mlp in MLPS.keys() & set(words):
            add(stack, *MLPS[mlp])
        if "parallel" not in words:
            add(stack, RESID_MID)
        if "pre-norm" in words or "final-norm" in words:
            add(stack, ("final_norm", "equals the final norm of the last resid_post"))
        if "pre-norm" in words and "one-norm" not in words:
            add(stack, ("mlp_norm", NORMED))
        for attention in ("self", "cross") if len(stacks) == 2 and stack == "dec" else ("self",):
            add(f"{stack}.{attention}", *(LATENT if "latent" in words else EVERY_ATTENTION))
            if "pre-norm" in words:
                add(f"{stack}.{attention}", ("attn_norm", NORMED))
            if "outside" not in words:
                projected = () if "latent" in words else ROTARY if "rotary" in words else NOT_ROTARY
                values = () if "latent" in words else OWN_VALUES
                add(f"{stack}.{attention}", *SEEN_ATTENTION, *values, *projected)
                add(f"{stack}.{attention}", *(() if "content-bias" in words else BY_RECIPE))
                if "gated-out" in words:
                    facts -= {(f"{stack}.{attention}.{site}", fact) for site, fact in SEEN_ATTENTION[-1:]}
                    add(f"{stack}.{attention}", GATED)
                rows_sum = "to at most 1 (sinks)" if "sinks" in words else "to 1"
                add(f"{stack}.{attention}", ("attn_pattern", f"has rows that sum {rows_sum}"))
    if "alibi" in words:
        add("dec.self", ("q_proj", "gives the model's own attentions with k_proj and ALiBi"))
    add(stacks[-1], ("logits", "equals the model's logits when nothing is recorded"), ("logits", LOGITS[stacks[-1]]))
    return {each for each in facts if each[1]} | {(key, ALONE) for key, _ in facts} | _facts_of_edits(facts, words)


def _facts_of_edits(facts: set[Fact], words: list[str]) -> set[Fact]:
    """What holds of edits of the sites that other facts are about."""
    sites = {key: key.rpartition(".")[2] for key, _ in facts}
    hidden = WITHIN_THE_MODULE if "own-attention" in words else ()
    found = {(key, OWN_NUMBERS) for key, site in sites.items() if site not in ("hidden", *hidden, *GROUPS["experts"])}
    found |= {(key, OF_A_DONOR) for key, site in sites.items() if site in ("resid_pre", "resid_mid", "resid_post")}
    found |= {(key, NOTHING_DONE) for key, site in sites.items() if site == "resid_post"}
    if not {"normed-out", "gated-out"} & {*words}:
        found |= {(key.replace(".z", ".attn_out"), WITHOUT_A_HEAD) for key, site in sites.items() if site == "z"}
    if "dec" in words and "enc" not in words:
        found.add(("dec.logits", BESIDE_A_CACHE))
    return found


def two_examples(model: Any) -> list[Example]:
    """Examples of different lengths, as few as there can be."""
    return random_examples(model.config)[:2]


def failures(result: CheckResult) -> dict[str, str]:
    return {f"{proof.key} {proof.fact}": f"{proof.error:.1e}" for proof in result.proofs if not proof.ok}


def failing_sites(result: CheckResult) -> set[str]:
    return {proof.key.rpartition(".")[2] for proof in result.proofs if not proof.ok and proof.fact != ALONE}
