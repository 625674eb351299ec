import type { ComponentChildren } from "preact";
import { useId, useLayoutEffect, useRef, useState } from "preact/hooks";

/** One of the things that can be chosen. */
export interface Choice {
  key: string;
  title: ComponentChildren;
  /** What is said of it, smaller. */
  detail?: ComponentChildren;
  /** The heading above the first of each group. */
  group?: string;
  /** Whether it is the one that is shown now. */
  current?: boolean;
  choose: () => void;
}

interface Props {
  label: string;
  placeholder: string;
  query: string;
  onQuery: (query: string) => void;
  choices: Choice[];
  /** What to say below the list: how many are left out, that none was found. */
  note?: ComponentChildren;
  close: () => void;
}

/** A list to choose from that is open: typing narrows it, arrow keys step through it, Enter chooses, Escape closes it. */
export function Picker({ label, placeholder, query, onQuery, choices, note, close }: Props) {
  const id = useId();
  const panel = useRef<HTMLDivElement>(null);
  const [at, setAt] = useState(-1);
  const shown = Math.min(at, choices.length - 1);
  useLayoutEffect(() => panel.current?.querySelector("input")?.focus(), []);
  useLayoutEffect(() => {
    const outside = ({ target }: Event) => target instanceof Node && !panel.current?.parentElement?.contains(target) && close();
    window.addEventListener("pointerdown", outside);
    return () => window.removeEventListener("pointerdown", outside);
  }, [close]);
  useLayoutEffect(() => {
    panel.current?.querySelector("[data-at=true]")?.scrollIntoView({ block: "nearest" });
  }, [shown]);
  const take = (choice: Choice | undefined) => {
    if (!choice) return;
    close();
    choice.choose();
  };
  const press = (event: KeyboardEvent) => {
    const last = choices.length - 1;
    const to = { ArrowDown: shown >= last ? 0 : shown + 1, ArrowUp: shown <= 0 ? last : shown - 1, PageDown: Math.min(last, shown + 8), PageUp: Math.max(0, shown - 8) }[event.key];
    if (to !== undefined) setAt(to);
    else if (event.key === "Enter") take(choices[Math.max(0, shown)]);
    else if (event.key === "Escape" || event.key === "Tab") close();
    else return;
    if (event.key !== "Tab") event.preventDefault();
  };
  return (
    <div class="picker" ref={panel} onKeyDown={press}>
      <input
        type="search"
        role="combobox"
        list={undefined}
        aria-label={label}
        aria-expanded="true"
        aria-controls={id}
        aria-activedescendant={shown >= 0 ? `${id}-${shown}` : undefined}
        autocomplete="off"
        spellcheck={false}
        placeholder={placeholder}
        value={query}
        onInput={(event) => {
          onQuery(event.currentTarget.value);
          setAt(-1);
        }}
      />
      <div role="listbox" id={id} aria-label={label}>
        {choices.map((choice, index) => (
          <>
            {choice.group !== choices[index - 1]?.group && <h3 key={`heading of ${choice.key}`}>{choice.group}</h3>}
            <div
              key={choice.key}
              id={`${id}-${index}`}
              role="option"
              aria-selected={choice.current ?? false}
              data-at={index === shown}
              onClick={() => take(choice)}
              onPointerMove={() => setAt(index)}
            >
              <span>{choice.title}</span>
              {choice.detail !== undefined && <small>{choice.detail}</small>}
            </div>
          </>
        ))}
      </div>
      {note && (
        <p role="status">
          {note}
        </p>
      )}
    </div>
  );
}
