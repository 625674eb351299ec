/** Numbers as they are shown: four digits that count, and never a bare zero for what is not zero. */

export function shown(value: number): string {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const digits = Math.max(0, 3 - Math.floor(Math.log10(size)));
  return (size < 1e-4 ? value.toExponential(3) : value.toFixed(digits)).replaceAll("-", "−");
}

export function percent(value: number): string {
  return `${(100 * value).toFixed(1)} %`;
}

export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}
