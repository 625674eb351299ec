import { useEffect, useMemo, useRef } from "preact/hooks";
import type { PathsPayload, Token, Trace } from "../payload";
import { at, crossingsOf, matcher, type Pick } from "./model";
import { colour } from "./palette";

interface Props {
  payload: PathsPayload;
  trace: Trace;
  visible: ReadonlySet<number>;
  lit: ReadonlySet<number> | null;
  query: string;
  onPick: (pick: Pick) => void;
  onHover: (pick: Pick | null) => void;
}

const MOST = 4096; // tokens shown at once
const MOST_STRIPES = 8;

/** The text itself: tokens on paths are underlined in the colours of their beams. */
export function Strip({ payload, trace, visible, lit, query, onPick, onHover }: Props) {
  const texts = payload.source_tokens ? [payload.source_tokens, payload.tokens] : [payload.tokens];
  return (
    <div class="strip" role="group" aria-label="The text">
      {texts.map((tokens) => (
        <Text
          key={tokens === payload.tokens ? "own" : "source"}
          tokens={tokens}
          isSource={tokens === payload.source_tokens}
          {...{ trace, visible, lit, query, onPick, onHover }}
        />
      ))}
    </div>
  );
}

interface TextProps extends Omit<Props, "payload"> {
  tokens: Token[];
  isSource: boolean;
}

function Text({ tokens, isSource, trace, visible, lit, query, onPick, onHover }: TextProps) {
  const frame = useRef<HTMLParagraphElement>(null);
  const stops = useMemo(() => stopsOf(trace, isSource), [trace, isSource]);
  const target = isSource ? -1 : at(trace.nodes, trace.target).position;
  const first = Math.max(0, Math.min(target - MOST / 2, tokens.length - MOST));
  const apart = tokens.length > 1 && !tokens.some(({ text }) => /[·↵]/.test(text));
  useEffect(() => {
    const mark = frame.current?.querySelector<HTMLElement>(".target");
    if (frame.current && mark) frame.current.scrollTop = mark.offsetTop - frame.current.clientHeight / 2;
  }, [trace]);
  // Most tokens are on no path: they are made once, and again only for a search.
  const plain = useMemo(() => {
    const matches = matcher(query);
    return tokens.slice(first, first + MOST).map((token, index) => {
      const position = first + index;
      const classes = ["token", position === target && "target", matches?.(token, position) && "found"];
      const shared = { class: classes.filter(Boolean).join(" "), title: title(token, position) };
      const text = <span>{token.text}</span>;
      const broken = token.text.endsWith("↵") ? <br /> : null;
      return { position, shared, text, broken, whole: [<span key={position} {...shared}>{text}</span>, broken] };
    });
  }, [tokens, first, target, query]);
  return (
    <p ref={frame} class={apart ? "apart" : undefined}>
      {first > 0 && <small>{first} tokens before … </small>}
      {plain.map(({ position, shared, text, broken, whole }) => {
        const stop = stops.get(position);
        if (!stop) return whole;
        const beams = stop.beams.filter((beam) => visible.has(beam));
        const on = beams.length > 0;
        const pick: Pick = { kind: "node", index: stop.node };
        const dim = lit !== null && !beams.some((beam) => lit.has(beam));
        return [
          <button
            key={position}
            type="button"
            tabindex={-1}
            {...shared}
            disabled={!on}
            class={`${shared.class}${on ? " on" : ""}${dim ? " dim" : ""}`}
            style={on ? { "--stripes": stripes(beams) } : undefined}
            onClick={() => onPick(pick)}
            onPointerEnter={() => onHover(pick)}
            onPointerLeave={() => onHover(null)}
          >
            {text}
          </button>,
          broken,
        ];
      })}
      {first + MOST < tokens.length && <small> … {tokens.length - first - MOST} tokens after</small>}
    </p>
  );
}

/** A token on paths: its node, the last one where it has several, and the beams that visit any of them. */
interface Stop {
  node: number;
  beams: number[];
}

function stopsOf(trace: Trace, isSource: boolean): Map<number, Stop> {
  const found = new Map<number, Stop>();
  trace.nodes.forEach(({ position, source }, node) => {
    if (source !== isSource) return;
    const beams = new Set([...(found.get(position)?.beams ?? []), ...at(crossingsOf(trace), node).beams]);
    found.set(position, { node, beams: [...beams].toSorted((a, b) => a - b) });
  });
  return found;
}

function title({ text, note }: Token, position: number): string {
  return `${text} ${position}${note && ` (${note})`}`;
}

function stripes(beams: number[]): string {
  const first = beams.slice(0, MOST_STRIPES);
  const share = 100 / first.length;
  const stops = first.map((beam, index) => `${colour(beam)} ${share * index}% ${share * (index + 1)}%`);
  return `linear-gradient(to right, ${stops.join(", ")})`;
}
