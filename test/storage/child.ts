/**
 * Another process, for tests that need one: does what its arguments say, and prints one line of JSON.
 *
 * - `open PATH read|write [share]`: opens an image, says how that ended, and holds it until standard input ends.
 * - `open-as-nobody PATH read|write`: the same, without root's right to open everything.
 * - `flushes PATH N`: writes and flushes a storage N times.
 * - `ring PATH`: writes, flushes and closes through the ring.
 * - `writethrough PATH N`: writes N times through the ring of a device without a write cache.
 */

import process from "node:process";
import { attach } from "../../src/attach.ts";
import { SegmentList } from "../../src/memory/segment_list.ts";
import { BlockError } from "../../src/storage/block_error.ts";
import { DenoFileStorage } from "../../src/storage/deno_file.ts";

async function open(path: string, mode: string, share?: string): Promise<void> {
  let storage: DenoFileStorage | undefined;
  try {
    storage = DenoFileStorage.open(path, { readOnly: mode === "read", share: share === "share" });
    console.log(JSON.stringify({ kind: "open" }));
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const { kind, message, hint } = error;
    console.log(JSON.stringify({ kind, message, hint }));
  }
  for await (const _ of Deno.stdin.readable);
  storage?.close();
}

function openAsNobody(path: string, mode: string): Promise<void> {
  if (process.getuid?.() === 0) process.setuid!(65534);
  return open(path, mode);
}

function flushes(path: string, count: string): void {
  const storage = DenoFileStorage.open(path);
  for (let i = 0; i < Number(count); i++) {
    storage.write(i * 512, SegmentList.over(new Uint8Array(512).fill(1)));
    storage.flush();
  }
  storage.close();
}

async function ring(path: string): Promise<void> {
  const machine = await attach(path, { format: "raw" });
  await machine.guest.write(512, new Uint8Array(512).fill(1));
  await machine.guest.flush();
  await machine.guest.write(1024, new Uint8Array(512).fill(2));
  await machine.close();
}

async function writethrough(path: string, count: string): Promise<void> {
  const machine = await attach(path, { format: "raw", device: { writeback: false } });
  for (let i = 0; i < Number(count); i++) await machine.guest.write(i * 512, new Uint8Array(512).fill(1));
  await machine.close();
}

const ACTIONS: Record<string, (...args: string[]) => void | Promise<void>> = {
  "open": open,
  "open-as-nobody": openAsNobody,
  "flushes": flushes,
  "ring": ring,
  "writethrough": writethrough,
};

const [action, ...args] = Deno.args;
await ACTIONS[action](...args);
