import { Fragment } from "preact";
import { useEffect, useMemo, useRef } from "preact/hooks";
import type { PathsPayload, Token, Trace } from "../payload";
import { useKept } from "./kept";
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
  /** Chooses the token that paths lead to, where that can be done. */
  onTarget?: ((position: number) => void) | undefined;
}

const MOST = 4096; // tokens shown at once
const MOST_STRIPES = 8;

/**
 * The text itself: tokens on paths are underlined in the colours of their beams. Where the target can be chosen, each
 * token can be pressed, and arrow keys go from one to the next.
 */
export function Strip({ payload, trace, visible, lit, query, onPick, onHover, onTarget }: Props) {
  const texts = payload.source_tokens ? [payload.source_tokens, payload.tokens] : [payload.tokens];
  return (
    <div class="strip" role="group" aria-label="The text">
      {texts.map((tokens) => (
        <Text
          key={tokens === payload.tokens ? "own" : "source"}
          tokens={tokens}
          isSource={tokens === payload.source_tokens}
          {...{ trace, visible, lit, query, onPick, onHover }}
          onTarget={tokens === payload.tokens ? onTarget : undefined}
        />
      ))}
    </div>
  );
}

interface TextProps extends Omit<Props, "payload"> {
  tokens: Token[];
  isSource: boolean;
}

function Text({ tokens, isSource, trace, visible, lit, query, onPick, onHover, onTarget }: TextProps) {
  const frame = useRef<HTMLParagraphElement>(null);
  const stops = useMemo(() => stopsOf(trace, isSource), [trace, isSource]);
  const target = isSource ? -1 : at(trace.nodes, trace.target).position;
  const first = Math.max(0, Math.min(target - MOST / 2, tokens.length - MOST));
  const apart = tokens.length > 1 && !tokens.some(({ text }) => /[·↵]/.test(text));
  const choosing = onTarget !== undefined;
  const keep = useKept([tokens, choosing]);
  useEffect(() => {
    const [text, mark] = [frame.current, frame.current?.querySelector<HTMLElement>(".target")];
    if (!text || !mark) return;
    const below = mark.offsetTop - text.scrollTop;
    if (below < 0 || below + mark.offsetHeight > text.clientHeight) text.scrollTop = mark.offsetTop - text.clientHeight / 2;
  }, [trace]);
  const tokenAt = (event: Event) => {
    const token = event.target instanceof Element ? event.target.closest<HTMLElement>("[data-token]") : null;
    return token && Number(token.dataset["token"]);
  };
  const nodeAt = (event: Event): Pick | null => {
    const stop = stops.get(tokenAt(event) ?? -1);
    return stop?.beams.some((beam) => visible.has(beam)) ? { kind: "node", index: stop.node } : null;
  };
  const press = (event: Event) => {
    const [position, pick] = [tokenAt(event), nodeAt(event)];
    if (onTarget && position !== null) onTarget(position);
    else if (pick) onPick(pick);
  };
  const walk = (event: KeyboardEvent) => {
    const from = tokenAt(event) ?? target;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (!onTarget || to === undefined || !tokens[to]) return;
    event.preventDefault();
    frame.current?.querySelector<HTMLElement>(`[data-token="${to}"]`)?.focus();
  };
  const matches = useMemo(() => matcher(query), [query]);
  return (
    <p
      ref={frame}
      class={apart ? "apart" : undefined}
      onClick={press}
      onKeyDown={walk}
      onPointerOver={(event) => onHover(nodeAt(event))}
      onPointerLeave={() => onHover(null)}
    >
      {first > 0 && <small>{first} tokens before … </small>}
      {tokens.slice(first, first + MOST).map((token, index) => {
        const position = first + index;
        const stop = stops.get(position);
        const beams = stop?.beams.filter((beam) => visible.has(beam)) ?? [];
        const classes = [
          "token",
          position === target && "target",
          matches?.(token, position) && "found",
          beams.length > 0 && "on",
          stop && lit && !beams.some((beam) => lit.has(beam)) && "dim",
        ]
          .filter(Boolean)
          .join(" ");
        const colours = beams.length > 0 ? stripes(beams) : "";
        return keep(position, `${classes} ${stop ? "stop" : ""} ${colours}`, () => {
          const shared = { class: classes, title: title(token, position) };
          return (
            <Fragment key={position}>
              {stop || choosing ? (
                <button
                  type="button"
                  tabindex={choosing && position === target ? 0 : -1}
                  data-token={position}
                  {...shared}
                  disabled={!choosing && beams.length === 0}
                  style={colours ? { "--stripes": colours } : undefined}
                >
                  <span>{token.text}</span>
                </button>
              ) : (
                <span {...shared}>
                  <span>{token.text}</span>
                </span>
              )}
              {token.text.endsWith("↵") && <br />}
            </Fragment>
          );
        });
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
