/**
 * Draws a matrix into a canvas: each pixel has the colour of one number, nothing is blended.
 *
 * 1. `levelFor` gives the matrix itself, or what stands for it where a pixel covers several cells.
 * 2. Its numbers are a texture. The shader finds a pixel's number, where that lies in the range, and its colour.
 * 3. Without WebGL 2, and of matrices that no texture holds, `plainly` does the same pixel by pixel.
 */

import { type Level, levelFor, type Matrix } from "./levels";

export type Scale = "linear" | "sqrt" | "log";

/** How numbers become colours. A number that is none is not painted. */
export interface Colouring {
  palette: Uint8Array;
  /** Of the least and the greatest colour; the lower one of a log scale is above zero, one below zero is −greatest. */
  range: readonly [number, number];
  scale: Scale;
}

/** Which cells the canvas covers: its upper left corner, and how many columns and rows. */
export interface Area {
  column: number;
  row: number;
  columns: number;
  rows: number;
}

export interface Painter {
  /** `webgl2`, or `2d` where that is missing. */
  readonly kind: "webgl2" | "2d";
  draw(matrix: Matrix, area: Area, colouring: Colouring): void;
  dispose(): void;
}

/**
 * Returns what draws into a canvas.
 *
 * A canvas is of one kind for ever: where its graphics card goes away, `lost` is told, for another to take its place.
 */
export function painterOf(canvas: HTMLCanvasElement, plain: boolean, lost: () => void): Painter {
  const gl = plain ? null : canvas.getContext("webgl2", { alpha: true, antialias: false, preserveDrawingBuffer: true });
  return gl ? new Shaded(canvas, gl, lost) : new Plain(canvas);
}

/** Returns where a number lies on a palette, from 0 to 255; NaN for none. Roots of a range on both sides of zero have its sign. */
export function stepOf(value: number, { range: [low, high], scale }: Colouring): number {
  const part = scale === "log" ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
  const bounded = Math.min(1, Math.max(0, part));
  const side = 2 * bounded - 1;
  const rooted = low < 0 ? 0.5 + 0.5 * Math.sign(side) * Math.sqrt(Math.abs(side)) : Math.sqrt(bounded);
  return Math.floor((scale === "sqrt" ? rooted : bounded) * 255 + 0.5);
}

const SCALES: Scale[] = ["linear", "sqrt", "log"];

const VERTEX = `#version 300 es
void main() {
  gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
uniform highp sampler2D numbers;
uniform highp sampler2D palette;
uniform vec4 area;
uniform float height;
uniform float block;
uniform bool bytes;
uniform float most;
uniform vec2 range;
uniform int scale;
out vec4 colour;
void main() {
  vec2 cell = area.xy + vec2(gl_FragCoord.x, height - gl_FragCoord.y) * area.zw;
  ivec2 at = ivec2(floor(cell / block));
  colour = vec4(0.0);
  if (any(lessThan(at, ivec2(0))) || any(greaterThanEqual(at, textureSize(numbers, 0)))) return;
  float value = texelFetch(numbers, at, 0).r;
  if (isnan(value)) return;
  if (bytes) value *= value * most;
  float part = scale == 2 ? log(max(value, range.x) / range.x) / log(range.y / range.x) : (value - range.x) / (range.y - range.x);
  part = clamp(part, 0.0, 1.0);
  float side = 2.0 * part - 1.0;
  if (scale == 1) part = range.x < 0.0 ? 0.5 + 0.5 * sign(side) * sqrt(abs(side)) : sqrt(part);
  colour = vec4(texelFetch(palette, ivec2(int(floor(part * 255.0 + 0.5)), 0), 0).rgb, 1.0);
}`;

class Shaded implements Painter {
  readonly kind = "webgl2";
  private readonly program: WebGLProgram;
  private readonly places = new Map<string, WebGLUniformLocation | null>();
  private readonly most: number;
  private palette: Uint8Array | null = null;
  /** The levels of one matrix that have been drawn: there is no going back to another's. */
  private readonly textures = new Map<Level, WebGLTexture>();
  private matrix: Matrix["data"] | null = null;
  private readonly told: (event: Event) => void;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly gl: WebGL2RenderingContext,
    lost: () => void,
  ) {
    this.told = (event) => {
      event.preventDefault();
      lost();
    };
    canvas.addEventListener("webglcontextlost", this.told);
    this.most = gl.getParameter(gl.MAX_TEXTURE_SIZE) as number;
    this.program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]] as const) {
      const shader = gl.createShader(kind);
      if (!shader) continue; // the context is lost already, which is told
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(this.program, shader);
    }
    gl.linkProgram(this.program);
    gl.useProgram(this.program);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.texture(1); // stays bound: the palette
    gl.uniform1i(this.place("numbers"), 0);
    gl.uniform1i(this.place("palette"), 1);
  }

  draw(matrix: Matrix, area: Area, colouring: Colouring): void {
    const { gl, canvas } = this;
    const level = this.fitting(matrix, area);
    this.bind(matrix, level);
    if (this.palette !== colouring.palette) {
      this.palette = colouring.palette;
      gl.activeTexture(gl.TEXTURE1);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, 256, 1, 0, gl.RGB, gl.UNSIGNED_BYTE, colouring.palette);
    }
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.uniform4f(this.place("area"), area.column, area.row, area.columns / canvas.width, area.rows / canvas.height);
    gl.uniform1f(this.place("height"), canvas.height);
    gl.uniform1f(this.place("block"), level.block);
    gl.uniform1i(this.place("bytes"), level.data instanceof Uint8Array ? 1 : 0);
    gl.uniform1f(this.place("most"), matrix.most);
    gl.uniform2f(this.place("range"), ...colouring.range);
    gl.uniform1i(this.place("scale"), SCALES.indexOf(colouring.scale));
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  dispose(): void {
    this.canvas.removeEventListener("webglcontextlost", this.told);
    this.gl.getExtension("WEBGL_lose_context")?.loseContext(); // a page has about sixteen; those collected count as well
  }

  /** Returns the level for an area, a coarser one where no texture holds that. */
  private fitting(matrix: Matrix, area: Area): Level {
    let cells = Math.max(area.columns / this.canvas.width, area.rows / this.canvas.height);
    let level = levelFor(matrix, cells);
    while (Math.max(level.rows, level.columns) > this.most) {
      cells = 2 * level.block;
      level = levelFor(matrix, cells);
    }
    return level;
  }

  private bind(matrix: Matrix, level: Level): void {
    const { gl } = this;
    if (this.matrix !== matrix.data) {
      for (const texture of this.textures.values()) gl.deleteTexture(texture);
      this.textures.clear();
      this.matrix = matrix.data;
    }
    const known = this.textures.get(level);
    gl.activeTexture(gl.TEXTURE0);
    if (known) return gl.bindTexture(gl.TEXTURE_2D, known);
    this.textures.set(level, this.texture(0));
    const { columns, rows, data } = level;
    if (data instanceof Uint8Array) gl.texImage2D(gl.TEXTURE_2D, 0, gl.R8, columns, rows, 0, gl.RED, gl.UNSIGNED_BYTE, data);
    else gl.texImage2D(gl.TEXTURE_2D, 0, gl.R32F, columns, rows, 0, gl.RED, gl.FLOAT, data);
  }

  /** Returns a new texture, bound to a unit. */
  private texture(unit: number): WebGLTexture {
    const { gl } = this;
    const texture = gl.createTexture();
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    for (const wrap of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, wrap, gl.CLAMP_TO_EDGE);
    return texture;
  }

  private place(name: string): WebGLUniformLocation | null {
    if (!this.places.has(name)) this.places.set(name, this.gl.getUniformLocation(this.program, name));
    return this.places.get(name) ?? null;
  }
}

class Plain implements Painter {
  readonly kind = "2d";
  private readonly context: CanvasRenderingContext2D | null;

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.context = canvas.getContext("2d");
  }

  draw(matrix: Matrix, area: Area, colouring: Colouring): void {
    const { width, height } = this.canvas;
    if (this.context && width && height) this.context.putImageData(plainly(width, height, matrix, area, colouring), 0, 0);
  }

  dispose(): void {}
}

/** Returns the picture that the shader draws. */
function plainly(width: number, height: number, matrix: Matrix, area: Area, colouring: Colouring): ImageData {
  const [across, down] = [area.columns / width, area.rows / height];
  const level = levelFor(matrix, Math.max(across, down));
  const image = new ImageData(width, height);
  const [bytes, { palette }] = [level.data instanceof Uint8Array, colouring];
  const steps = bytes ? Uint8Array.from({ length: 256 }, (_, byte) => stepOf(matrix.most * (byte / 255) ** 2, colouring)) : null;
  const columns = Int32Array.from({ length: width }, (_, x) => Math.floor((area.column + (x + 0.5) * across) / level.block));
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor((area.row + (y + 0.5) * down) / level.block);
    for (let x = 0; x < width; x++, at += 4) {
      const column = columns[x]!;
      if (row < 0 || column < 0 || row >= level.rows || column >= level.columns) continue;
      const value = level.data[row * level.columns + column]!;
      const step = steps ? steps[value]! : stepOf(value, colouring);
      if (Number.isNaN(step)) continue;
      image.data[at] = palette[3 * step]!;
      image.data[at + 1] = palette[3 * step + 1]!;
      image.data[at + 2] = palette[3 * step + 2]!;
      image.data[at + 3] = 255;
    }
  }
  return image;
}
