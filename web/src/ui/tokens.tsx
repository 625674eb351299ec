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

/** A text as its tokens: one is selected by pointer, or by the arrow keys once one has the focus. */
export function Tokens({ tokens, label, selected, second, shade, response, onSelect, onHover }: Props) {
  const step = (event: KeyboardEvent, from: number) => {
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined || !tokens[to]) return;
    event.preventDefault();
    onSelect(to);
    (event.currentTarget as Element).parentElement?.querySelectorAll<HTMLElement>("button")[to]?.focus();
  };
  return (
    <p class="tokens" role="listbox" aria-label={label} aria-orientation="horizontal" onPointerLeave={() => onHover?.(null)}>
      {tokens.map(({ text, note }, position) => (
        <button
          key={position}
          type="button"
          role="option"
          class={position === selected ? "selected" : position === second ? "second" : position >= (response ?? Infinity) ? "response" : undefined}
          aria-selected={position === selected}
          aria-label={`${text}, position ${position}${note && `, ${note}`}`}
          title={`${text} ${position}${note && ` (${note})`}`}
          tabIndex={position === (selected ?? 0) ? 0 : -1}
          style={shade ? { "--shade": `${shade[position] ?? 0}` } : undefined}
          onClick={() => onSelect(position)}
          onPointerEnter={() => onHover?.(position)}
          onKeyDown={(event) => step(event, position)}
        >
          {text}
        </button>
      ))}
    </p>
  );
}
