import { attentionOf } from "../../heads";
import type { OverviewAbout } from "../../payload";
import { useJson, usePacket } from "../../resource";
import { Await } from "../../ui/states";
import { Tokens } from "../../ui/tokens";
import { useView } from "../../view";
import type { ScreenProps } from "..";
import { Heads } from "./heads";
import { Predictions } from "./predictions";

const NAMES = { enc: "Encoder", dec: "Decoder" };

/** An example: its text, what was predicted at each position, and all heads. */
export function Overview({ run, example }: ScreenProps) {
  const [view, change] = useView();
  const asked = { run: run.name, ex: example.number };
  const about = useJson<OverviewAbout>("overview", asked);
  const predictions = usePacket("predictions", asked);
  const name = attentionOf(run, view);
  const attention = run.attentions.find((each) => each.name === name);
  const stacks = Object.entries(example.tokens) as ["enc" | "dec", (typeof example.tokens)["dec"]][];
  return (
    <div class="overview">
      <section class="texts" aria-label="Text">
        {stacks.map(([stack, tokens = []]) => {
          // Without an attention in the address, positions are the queries' of the first one.
          const [queries, keys] = [attention?.stack ?? stack, attention?.key_stack ?? stack];
          return (
            <div key={stack}>
              {stacks.length > 1 && <h3>{NAMES[stack]}</h3>}
              <Tokens
                tokens={tokens}
                label={stacks.length > 1 ? `${NAMES[stack]} text` : "Text"}
                selected={position(stack === queries ? view.q : undefined)}
                second={position(stack === keys ? view.k : undefined)}
                response={stack === "dec" ? example.n_prompt : null}
                onSelect={(at) => change(stack === queries ? { q: at } : { k: at })}
              />
              {tokens.length === 0 && <p class="missing">This example has no tokens.</p>}
            </div>
          );
        })}
      </section>
      <Await loaded={predictions}>{(packet) => <Predictions {...{ run, example, packet }} queries={attention?.stack ?? "dec"} />}</Await>
      <Await loaded={about}>
        {({ attentions }) => {
          const atlas = attentions.find((each) => each.name === name);
          if (!atlas || !attention) {
            return <p class="missing">No attention patterns were recorded; tf.record(..., capture="attn") keeps them.</p>;
          }
          if (!atlas.rows || !atlas.columns) return <p class="missing">Without tokens there is no attention.</p>;
          return <Heads key={`${example.number} ${name}`} {...{ run, example, atlas, attention }} />;
        }}
      </Await>
    </div>
  );
}

function position(text: string | undefined): number | null {
  return text === undefined ? null : Number(text);
}
