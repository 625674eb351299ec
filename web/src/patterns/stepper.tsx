import { stepped } from "./pattern";

interface Props {
  /** Such as `layer`. */
  name: string;
  value: number;
  numbers: readonly number[];
  /** The keys that do the same, for the tool tips. */
  keys: [before: string, after: string] | null;
  onChange: (value: number) => void;
}

/** A number among those there are: the one before, the one after, or any of them. */
export function Stepper({ name, value, numbers, keys, onChange }: Props) {
  const button = (by: number, sign: string) => (
    <button
      type="button"
      aria-label={`${by < 0 ? "Previous" : "Next"} ${name}`}
      title={`${by < 0 ? "Previous" : "Next"} ${name}${keys ? ` (${keys[by < 0 ? 0 : 1]})` : ""}`}
      onClick={() => onChange(stepped(numbers, value, by))}
    >
      {sign}
    </button>
  );
  return (
    <div class="stepper" role="group" aria-label={name}>
      {button(-1, "‹")}
      <label>
        {name}{" "}
        <select value={value} onChange={(event) => onChange(Number(event.currentTarget.value))}>
          {numbers.map((number) => (
            <option key={number} value={number}>
              {number}
            </option>
          ))}
        </select>
      </label>
      {button(1, "›")}
    </div>
  );
}
