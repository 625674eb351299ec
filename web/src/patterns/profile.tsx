import { percent, shown } from "../numbers";
import type { Token } from "../payload";
import { Chart, type Code } from "../ui/chart";

interface Props {
  title: string;
  tokens: Token[];
  /** One for each token; null while they are not there. */
  weights: Float32Array | null;
  selected: number | null;
  onSelect: (position: number) => void;
  code: Code;
  field: string;
  /** Whether the weights are all of one query, which add up to one. */
  whole?: boolean;
}

const MOST = 12;

/** The largest weights of a query or of a key as bars. */
export function Profile({ title, tokens, weights, selected, onSelect, code, field, whole = false }: Props) {
  const ranked = weights ? rankedOf(weights, MOST) : [];
  const largest = weights?.[ranked[0] ?? 0] ?? 1;
  const rest = weights ? weights.length - ranked.length : 0;
  const held = weights ? ranked.reduce((sum, position) => sum + (weights[position] ?? 0), 0) : 0;
  return (
    <Chart
      title={title}
      field={field}
      code={code}
      sheet={() => ({
        caption: title,
        columns: ["position", "token", "weight"],
        rows: tokens.map(({ text }, position) => [position, text, weights?.[position] ?? NaN]),
      })}
    >
      <ol class="profile" aria-busy={!weights}>
        {ranked.map((position) => (
          <li key={position}>
            <button type="button" class={position === selected ? "selected" : undefined} onClick={() => onSelect(position)}>
              <span class="name">
                <span>{tokens[position]?.text}</span>
                <sub>{position}</sub>
              </span>
              <span class="amount">
                <span style={{ width: `${(100 * (weights?.[position] ?? 0)) / (largest || 1)}%` }} />
              </span>
              <b>{shown(weights?.[position] ?? 0)}</b>
            </button>
          </li>
        ))}
      </ol>
      {weights && rest > 0 && (
        <p class="rest">
          {whole ? `The other ${rest} have ${percent(Math.max(0, 1 - held))} of the attention.` : `${rest} others give less.`}
        </p>
      )}
    </Chart>
  );
}

/** Returns the positions of the largest weights above zero, the largest first. */
function rankedOf(weights: Float32Array, most: number): number[] {
  const positions = Array.from(weights.keys()).filter((position) => (weights[position] ?? 0) > 0);
  return positions.sort((a, b) => (weights[b] ?? 0) - (weights[a] ?? 0)).slice(0, most);
}
