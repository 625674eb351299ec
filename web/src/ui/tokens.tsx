import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import type { Token } from "../payload";

interface Props {
  tokens: Token[];
  /** Whose tokens these are. */
  label: string;
  selected?: number | null;
  /** A second one, such as the key beside the query. */
  second?: number | null;
  /** How strongly each is marked, from 0 to 1. */
  shade?: ArrayLike<number> | null;
  /** Where a response begins. */
  response?: number | null;
  onSelect: (position: number) => void;
  onHover?: (position: number | null) => void;
}

/**
 * A text as its tokens: one is selected by pointer, or by the arrow keys once one has the focus.
 *
 * The tokens of a text are made once, and marked where they stand: there may be thousands.
 */
export function Tokens({ tokens, label, selected = null, second = null, shade = null, response = null, onSelect, onHover }: Props) {
  const list = useRef<HTMLParagraphElement>(null);
  const buttons = useMemo(() => tokens.map((token, position) => <One key={position} {...token} {...{ position, response }} />), [tokens, response]);
  // Of vocabularies that do not write spaces, words would run into each other.
  const apart = tokens.length > 1 && !tokens.some(({ text }) => /[·↵]/.test(text));
  useMarked(list, tokens, selected, "selected");
  useMarked(list, tokens, second === selected ? null : second, "second");
  useLayoutEffect(() => {
    const first = buttonAt(list, selected ?? 0);
    first?.setAttribute("tabindex", "0");
    return () => first?.setAttribute("tabindex", "-1");
  }, [tokens, selected]);
  useLayoutEffect(() => {
    for (const [position, button] of [...(list.current?.children ?? [])].entries()) {
      const { style } = button as HTMLElement;
      const wanted = shade?.[position] ? (shade[position] ?? 0).toFixed(3) : "";
      if (style.getPropertyValue("--shade") !== wanted) style.setProperty("--shade", wanted);
    }
  }, [tokens, shade]);
  const step = (event: KeyboardEvent) => {
    const from = positionOf(event);
    if (from === null) return;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined || !tokens[to]) return;
    event.preventDefault();
    onSelect(to);
    buttonAt(list, to)?.focus();
  };
  return (
    <p
      class={apart ? "tokens apart" : "tokens"}
      ref={list}
      role="listbox"
      aria-label={label}
      aria-orientation="horizontal"
      onClick={(event) => {
        const position = positionOf(event);
        if (position !== null) onSelect(position);
      }}
      onPointerOver={onHover && ((event) => onHover(positionOf(event)))}
      onPointerLeave={onHover && (() => onHover(null))}
      onKeyDown={step}
    >
      {buttons}
    </p>
  );
}

function One({ text, note, position, response }: Token & { position: number; response: number | null }) {
  return (
    <button
      type="button"
      role="option"
      class={position >= (response ?? Infinity) ? "response" : undefined}
      data-position={position}
      aria-selected="false"
      aria-label={`${text}, position ${position}${note && `, ${note}`}`}
      title={`${text} ${position}${note && ` (${note})`}`}
      tabIndex={-1}
    >
      {text}
    </button>
  );
}

type List = { current: HTMLElement | null };

/** Marks one token, and brings it into view where the list scrolls. */
function useMarked(list: List, tokens: Token[], position: number | null, mark: "selected" | "second"): void {
  useLayoutEffect(() => {
    const button = position === null ? null : buttonAt(list, position);
    if (!button || !list.current) return;
    button.classList.add(mark);
    if (mark === "selected") {
      button.setAttribute("aria-selected", "true");
      const [inner, outer] = [button.getBoundingClientRect(), list.current.getBoundingClientRect()];
      if (inner.top < outer.top || inner.bottom > outer.bottom) list.current.scrollTop += inner.top - outer.top - outer.height / 2;
    }
    return () => {
      button.classList.remove(mark);
      if (mark === "selected") button.setAttribute("aria-selected", "false");
    };
  }, [tokens, position, mark]);
}

function buttonAt(list: List, position: number): HTMLElement | null {
  return (list.current?.children[position] as HTMLElement | undefined) ?? null;
}

function positionOf(event: Event): number | null {
  const button = event.target instanceof Element ? event.target.closest<HTMLElement>("[data-position]") : null;
  return button ? Number(button.dataset["position"]) : null;
}
