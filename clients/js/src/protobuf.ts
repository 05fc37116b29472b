/**
 * As much of protobuf (proto3) as the viewer protocol needs: messages described by
 * tables of fields, read into and written from plain objects. Fields that a table
 * does not have are skipped, and absent ones get their default unless they are
 * `optional`.
 */

/** How a field is encoded. `payload` is bytes with the rule of `payload.ts`. */
export type Kind = "string" | "uint" | "int" | "bool" | "payload" | "fixed32" | "double" | "counts" | Table;
export type Rule = "" | "optional" | "repeated";
/** Number, name, encoding, rule. */
export type Field = readonly [number: number, name: string, kind: Kind, rule?: Rule];
export type Table = readonly Field[];

type Values = Record<string, unknown>;

import { bytesOf, payloadOf } from "./payload.js";

const utf8 = new TextDecoder();
const encoder = new TextEncoder();
const SAFE = 2 ** 53;
const ENTRY: Table = [
  [1, "key", "string"],
  [2, "value", "uint"],
];

/** Reads from a range of bytes and never beyond it. */
export class Reader {
  private at = 0;
  private readonly view: DataView;

  constructor(private readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get done(): boolean {
    return this.at >= this.bytes.length;
  }

  /** An unsigned number below 2^64, as near as a double gets. */
  varint(): number {
    let value = 0;
    for (let scale = 1; scale < 2 ** 64; scale *= 128) {
      const byte = this.bytes[this.at++];
      if (byte === undefined) throw new RangeError("a message ends too early");
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw new RangeError("a number is longer than 64 bits");
  }

  uint(): number {
    const value = this.varint();
    if (value >= SAFE) throw new RangeError("a number is not below 2^53");
    return value;
  }

  /** A signed number: negative ones are written as 2^64 more. */
  int(): number {
    const began = this.at;
    const value = this.varint();
    if (value < SAFE) return value;
    let exact = 0n;
    for (let i = this.at - 1; i >= began; i -= 1) exact = (exact << 7n) | BigInt(this.bytes[i]! & 127);
    return Number(BigInt.asIntN(64, exact));
  }

  take(length: number): Uint8Array {
    const end = this.at + length;
    if (end > this.bytes.length) throw new RangeError("a message ends too early");
    const part = this.bytes.subarray(this.at, end);
    this.at = end;
    return part;
  }

  block(): Uint8Array {
    return this.take(this.varint());
  }

  fixed32(): number {
    this.at += 4;
    return this.view.getUint32(this.at - 4, true);
  }

  double(): number {
    this.at += 8;
    return this.view.getFloat64(this.at - 8, true);
  }

  skip(wire: number): void {
    if (wire === 0) this.varint();
    else if (wire === 1) this.take(8);
    else if (wire === 2) this.block();
    else if (wire === 5) this.take(4);
    else throw new RangeError(`wire type ${wire}`);
  }
}

const WIRE: Record<string, number> = { uint: 0, int: 0, bool: 0, double: 1, fixed32: 5 };
const wireOf = (kind: Kind): number => (typeof kind === "string" ? (WIRE[kind] ?? 2) : 2);

function defaultOf(kind: Kind): unknown {
  if (typeof kind !== "string") return undefined;
  if (kind === "string") return "";
  if (kind === "payload") return null;
  return kind === "bool" ? false : 0;
}

/**
 * Reads a message.
 *
 * @throws RangeError for one that is cut off, too long, or has a number beyond 2^53.
 */
export function read(table: Table, bytes: Uint8Array): Values {
  const reader = new Reader(bytes);
  const out: Values = {};
  for (const [, name, kind, rule] of table) {
    if (rule === "repeated") out[name] = [];
    else if (kind !== "counts" && rule !== "optional" && typeof kind === "string") out[name] = defaultOf(kind);
  }
  while (!reader.done) {
    const tag = reader.uint();
    const field = table.find(([number]) => number === tag >>> 3);
    if (field === undefined || wireOf(field[2]) !== (tag & 7)) reader.skip(tag & 7);
    else set(out, field, reader);
  }
  return out;
}

function set(out: Values, [, name, kind, rule]: Field, reader: Reader): void {
  if (kind === "counts") {
    const { key, value } = read(ENTRY, reader.block()) as { key: string; value: number };
    out[name] = { ...(out[name] as object), ...Object.fromEntries([[key, value]]) };
    return;
  }
  const value = one(kind, reader);
  if (rule === "repeated") (out[name] as unknown[]).push(value);
  else out[name] = value;
}

function one(kind: Kind, reader: Reader): unknown {
  switch (kind) {
    case "uint":
      return reader.uint();
    case "int":
      return reader.int();
    case "bool":
      return reader.varint() !== 0;
    case "fixed32":
      return reader.fixed32();
    case "double":
      return reader.double();
    case "string":
      return utf8.decode(reader.block());
    case "payload":
      return payloadOf(reader.block());
    case "counts":
      return undefined;
    default:
      return read(kind, reader.block());
  }
}

function putVarint(out: number[], value: number): void {
  if (value < 0) {
    let rest = BigInt.asUintN(64, BigInt(value));
    for (; rest > 127n; rest >>= 7n) out.push(Number(rest & 127n) | 128);
    out.push(Number(rest));
    return;
  }
  let rest = value;
  for (; rest > 127; rest = Math.floor(rest / 128)) out.push((rest % 128) | 128);
  out.push(rest);
}

function putBlock(out: number[], bytes: ArrayLike<number>): void {
  putVarint(out, bytes.length);
  for (let i = 0; i < bytes.length; i += 1) out.push(bytes[i]!);
}

/** Writes a message; fields that are `undefined` are left out. */
export function write(table: Table, values: Values): number[] {
  const out: number[] = [];
  for (const [number, name, kind] of table) {
    const value = values[name];
    if (value === undefined) continue;
    putVarint(out, number * 8 + wireOf(kind));
    if (typeof kind !== "string") putBlock(out, write(kind, value as Values));
    else if (kind === "string") putBlock(out, encoder.encode(value as string));
    else if (kind === "payload") putBlock(out, bytesOf(value));
    else if (kind === "fixed32") for (let i = 0; i < 32; i += 8) out.push(((value as number) >>> i) & 255);
    else putVarint(out, Number(value));
  }
  return out;
}
