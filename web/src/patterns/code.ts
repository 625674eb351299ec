/** The Python and the command line that give what is shown of a head. */

import type { Code } from "../ui/chart";
import { pythonText, shellWord } from "../ui/code";
import type { HeadQuery } from "./pattern";

/** Returns code that reads a pattern, and what follows in it. */
export function codeOf(query: HeadQuery, then = "", name = "pattern"): Code {
  const folder = shellWord(String(query.run));
  return {
    python: `import traceformer as tf\n\nrun = tf.open_run(${pythonText(query.run)})\n${assigned(name, "run", query)}${then && `\n${then}`}`,
    shell: `traceformer inspect ${folder} --example ${query.ex} --site ${query.attn}.attn_pattern --head L${query.layer}H${query.head} --png head.png`,
  };
}

/** Returns code that subtracts one pattern from another. */
export function codeOfDifference(a: HeadQuery, b: HeadQuery): Code {
  const other = a.run === b.run ? "run" : "other";
  const opened = a.run === b.run ? "" : `\nother = tf.open_run(${pythonText(b.run)})`;
  const sameText = a.run === b.run && String(a.ex) === String(b.ex);
  const less = sameText
    ? "difference = a - b"
    : `from traceformer.analysis.alignment import align, partners

# the positions that stand for each other; in cross-attention keys are aligned by their own tokens
first, second = partners(align(run.tokens_of(${a.ex}), ${other}.tokens_of(${b.ex})))
difference = a[first][:, first] - b[second][:, second]`;
  const python = `import traceformer as tf\n\nrun = tf.open_run(${pythonText(a.run)})${opened}\n${assigned("a", "run", a)}\n${assigned("b", other, b)}\n${less}`;
  return { python };
}

function assigned(name: string, run: string, { ex, attn, layer, head }: HeadQuery): string {
  const [stack, kind] = attn.split(".");
  return `${name} = ${run}.attn(${ex}, layer=${layer}, head=${head}, side=${pythonText(stack)}, kind=${pythonText(kind)})  # (query, key)`;
}
