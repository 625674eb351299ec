"""Traces which tokens led a model to a token, prints the paths and writes a page that shows them.

    python examples/demo_qwen2.py --text "The quick brown fox jumps over the lazy dog." --open-browser
    python examples/demo_qwen2.py --model Qwen/Qwen2-0.5B --layer 20 --target-pos -2

The options are those of reverse-attention's demo. Without --model it runs offline, on the built-in model.
"""

import argparse

from traceformer.compat.reverse_attention import ReverseAttentionTracer
from traceformer.models.load import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="byte", help="a Hub name such as Qwen/Qwen2-0.5B, or a folder; default: byte"
    )
    parser.add_argument("--text", default="The quick brown fox jumps over the lazy dog.", help="text to trace")
    parser.add_argument("--target-pos", type=int, default=-1, help="where the paths begin; default: -1, the last token")
    parser.add_argument("--layer", type=int, default=-1, help="which layer; default: -1, the last one")
    parser.add_argument("--top-beam", type=int, default=5, help="how many paths; default: 5")
    parser.add_argument("--top-k", type=int, default=5, help="how many edges of each token are tried; default: 5")
    parser.add_argument("--output", default="output", help="folder for index.html and trace.json; default: output")
    parser.add_argument("--open-browser", action="store_true", help="show the page")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; default: auto, the fastest there is")
    arguments = parser.parse_args()

    loaded = load_model(arguments.model, device=arguments.device)
    tracer = ReverseAttentionTracer(loaded.model, loaded.tokenizer)
    result = tracer.trace_text(
        arguments.text,
        target_pos=arguments.target_pos,
        layer=arguments.layer,
        top_beam=arguments.top_beam,
        top_k=arguments.top_k,
    )
    print(f"target: {result.tokens[result.target_pos]!r} at {result.target_pos}, layer {result.layer}")
    for rank, path in enumerate(result.paths_text, start=1):
        print(f"beam {rank}: {path}")
    print(f"wrote {tracer.render_html(result, arguments.output, open_browser=arguments.open_browser)}")


if __name__ == "__main__":
    main()
