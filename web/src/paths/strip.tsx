import { useEffect, useMemo, useRef } from "preact/hooks";
import type { PathsPayload, Token, Trace } from "../payload";
import { at, matcher, type Pick } from "./model";
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
  const nodes = useMemo(() => nodesByPosition(trace, isSource), [trace, isSource]);
  const target = at(trace.nodes, trace.target);
  const first = isSource ? 0 : Math.max(0, Math.min(target.position - MOST / 2, tokens.length - MOST));
  const matches = matcher(query);
  const apart = tokens.length > 1 && !tokens.some(({ text }) => /[·↵]/.test(text));
  useEffect(() => {
    const mark = frame.current?.querySelector<HTMLElement>(".target");
    if (frame.current && mark) frame.current.scrollTop = mark.offsetTop - frame.current.clientHeight / 2;
  }, [trace]);
  return (
    <p ref={frame} class={apart ? "apart" : undefined}>
      {first > 0 && <small>{first} tokens before … </small>}
      {tokens.slice(first, first + MOST).map((token, index) => {
        const position = first + index;
        const own = nodes.get(position) ?? [];
        const beams = [...visible].filter((beam) => own.some((node) => at(trace.beams, beam).nodes.includes(node)));
        const bright = lit === null || beams.some((beam) => lit.has(beam));
        const classes = [
          "token",
          beams.length > 0 && "on",
          !bright && "dim",
          !isSource && position === target.position && "target",
          matches?.(token, position) && "found",
        ];
        const shared = { class: classes.filter(Boolean).join(" "), title: title(token, position) };
        const node = own.at(-1);
        const text = <span>{token.text}</span>;
        const broken = token.text.endsWith("↵") ? <br /> : null;
        if (node === undefined || beams.length === 0) {
          return [
            <span key={position} {...shared}>
              {text}
            </span>,
            broken,
          ];
        }
        const pick: Pick = { kind: "node", index: node };
        return [
          <button
            key={position}
            type="button"
            tabindex={-1}
            {...shared}
            style={{ "--stripes": stripes(beams) }}
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

function nodesByPosition(trace: Trace, isSource: boolean): Map<number, number[]> {
  const found = new Map<number, number[]>();
  trace.nodes.forEach(({ position, source }, node) => {
    if (source === isSource) found.set(position, [...(found.get(position) ?? []), node]);
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
