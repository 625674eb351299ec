import { useEffect, useRef, useState } from "preact/hooks";
import type { RunAbout, Token } from "../../payload";
import { acrossAll, type Asked, type Option } from "./options";

interface Props {
  run: RunAbout;
  /** Whether anything can be searched: a page that carries its answers has those only. */
  live: boolean;
  asked: Asked;
  /** The token that paths lead to, if it is there. */
  target: Token | undefined;
  /** A head that is selected on another screen. */
  head: { layer: number; head: number } | null;
  set: (options: Partial<Record<Option | "layer", string>>) => void;
  setAttention: (name: string) => void;
  reset: () => void;
}

/** What can be changed of a search; whatever is changed is searched anew. */
export function Controls({ run, live, asked, target, head, set, setAttention, reset }: Props) {
  const { attention, cross, layer, options } = asked;
  const stacks = run.attentions.filter(({ stack }, index) => run.attentions.findIndex((other) => other.stack === stack) === index);
  const all = acrossAll(attention, cross);
  const one = layer !== "all";
  const choice = (name: Option, label: string, choices: Choice[]) => (
    <Choose label={label} value={options[name]} choices={choices} onChoose={(value) => set({ [name]: value })} />
  );
  const tick = (name: Option, label: string) => (
    <label class="tick">
      <input type="checkbox" checked={options[name] === "1"} onChange={({ currentTarget }) => set({ [name]: currentTarget.checked ? "1" : "0" })} />
      {label}
    </label>
  );
  const slide = (name: Option, label: string, most: number, step = 1, disabled = false) => (
    <Slider {...{ label, most, step, disabled }} least={step < 1 ? 0 : 1} value={Number(options[name])} onSlide={(value) => set({ [name]: String(value) })} />
  );
  return (
    <form class="asking" aria-label="Search" onSubmit={(event) => event.preventDefault()}>
      <h2>Search</h2>
      {!live && <p class="hint">This file holds some searches only.</p>}
      <p class="to">
        To <b>{target ? target.text : "?"}</b> <sub>{asked.target}</sub>
        <small>Press another token above.</small>
      </p>
      {stacks.length > 1 && (
        <Choose
          label="Stack"
          value={stacks.find(({ stack }) => stack === attention.stack)?.name ?? ""}
          choices={stacks.map(({ name, stack }) => [name, stack === "enc" ? "encoder" : "decoder"])}
          onChoose={setAttention}
        />
      )}
      <Choose
        label="Layer"
        value={`${layer}`}
        choices={[["all", "across all layers", !all], ...attention.layers.map((number): Choice => [`${number}`, `L${number}`])]}
        onChoose={(value) => set(value === "all" && !["mean", "max"].includes(options.agg_heads) ? { layer: value, agg_heads: "mean" } : { layer: value })}
      />
      {choice("agg_heads", "Heads", [
        ["mean", "mean of all"],
        ["max", "strongest per edge"],
        ["none", "each by itself", !one],
        ...attention.heads.map((number): Choice => [`${number}`, `H${number} alone`, !one]),
      ])}
      {head && (`${layer}` !== `${head.layer}` || options.agg_heads !== `${head.head}`) && (
        <button type="button" class="inline" onClick={() => set({ layer: `${head.layer}`, agg_heads: `${head.head}` })}>
          Only L{head.layer}H{head.head}, which is selected
        </button>
      )}
      {choice("weighting", "An edge weighs", [
        ["attention", "its attention"],
        ["rollout", "with residual stream", one],
        ["value-norm", "what is moved"],
      ])}
      {slide("top_beam", "Paths", 30)}
      {slide("top_k", "Edges tried per token", 30, 1, options.search === "exact")}
      {slide("min_attn", "Smallest weight", 0.5, 0.005)}
      {choice("search", "Found by", [
        ["beam", "beams, quickly"],
        ["exact", "exact search"],
      ])}
      {choice("length_norm", "Score of a path", [
        ["avg_logprob", "mean of logarithms"],
        ["sqrt", "sum ÷ √edges"],
        ["none", "sum: short ones first"],
      ])}
      {tick("exclude_self", "without self-attention")}
      {tick("exclude_sink", "without sinks")}
      {one && tick("stop_at_bos", "end where the text begins")}
      <button type="button" onClick={reset}>
        Reset
      </button>
    </form>
  );
}

type Choice = [value: string, text: string, disabled?: boolean];

interface ChooseProps {
  label: string;
  value: string;
  choices: Choice[];
  onChoose: (value: string) => void;
}

function Choose({ label, value, choices, onChoose }: ChooseProps) {
  const known = choices.some(([own]) => own === value);
  return (
    <label>
      <span>{label}</span>
      <select value={value} onChange={({ currentTarget }) => onChoose(currentTarget.value)}>
        {!known && <option value={value}>{value}</option>}
        {choices.map(([own, text, disabled = false]) => (
          <option key={own} value={own} disabled={disabled}>
            {text}
          </option>
        ))}
      </select>
    </label>
  );
}

const SETTLED = 120; // milliseconds without a move

interface SliderProps {
  label: string;
  least: number;
  most: number;
  step: number;
  value: number;
  disabled: boolean;
  onSlide: (value: number) => void;
}

/** A slider that tells its value once it rests, or is let go. */
function Slider({ label, least, most, step, value, disabled, onSlide }: SliderProps) {
  const [moved, setMoved] = useState<number | null>(null);
  const timer = useRef(0);
  const tell = (next: number) => {
    window.clearTimeout(timer.current);
    setMoved(null);
    if (next !== value) onSlide(next);
  };
  useEffect(() => () => window.clearTimeout(timer.current), []);
  return (
    <label class={disabled ? "off" : undefined}>
      <span>
        {label} <b>{moved ?? value}</b>
      </span>
      <input
        type="range"
        min={least}
        max={Math.max(most, value)}
        step={step}
        value={moved ?? value}
        disabled={disabled}
        aria-label={label}
        onInput={({ currentTarget }) => {
          const next = Number(currentTarget.value);
          setMoved(next);
          window.clearTimeout(timer.current);
          timer.current = window.setTimeout(() => tell(next), SETTLED);
        }}
        onChange={({ currentTarget }) => tell(Number(currentTarget.value))}
      />
    </label>
  );
}
