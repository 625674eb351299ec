/** A safetensors file as typed arrays: views of its bytes, no number is copied. */

export interface Tensor {
  shape: number[];
  data: Float32Array | Uint8Array | Uint16Array | Int32Array;
}

export interface Packet {
  arrays: Record<string, Tensor>;
  about: Record<string, unknown>;
}

const KINDS = { F32: Float32Array, U8: Uint8Array, U16: Uint16Array, I32: Int32Array } as const;

interface Entry {
  dtype: keyof typeof KINDS;
  shape: number[];
  data_offsets: [number, number];
}

export function readPacket(bytes: ArrayBuffer): Packet {
  const length = Number(new DataView(bytes).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, length))) as Record<string, unknown>;
  const { about } = (header["__metadata__"] ?? {}) as { about?: string };
  const entries = Object.entries(header).filter(([name]) => name !== "__metadata__") as [string, Entry][];
  const arrays = entries.map(([name, { dtype, shape, data_offsets }]) => {
    const Kind = KINDS[dtype];
    const [start, stop] = data_offsets;
    return [name, { shape, data: new Kind(bytes, 8 + length + start, (stop - start) / Kind.BYTES_PER_ELEMENT) }] as const;
  });
  return { arrays: Object.fromEntries(arrays), about: about ? (JSON.parse(about) as Record<string, unknown>) : {} };
}

/** Returns an array of float32 that a packet must have. */
export function floats(packet: Packet, name: string): Float32Array {
  const found = packet.arrays[name]?.data;
  if (!(found instanceof Float32Array)) throw new Error(`no float32 array ${name}`);
  return found;
}

/** Returns an array of bytes that a packet must have. */
export function pixels(packet: Packet, name: string): Uint8Array {
  const found = packet.arrays[name]?.data;
  if (!(found instanceof Uint8Array)) throw new Error(`no uint8 array ${name}`);
  return found;
}
