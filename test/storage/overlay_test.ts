import { assertEquals } from "@std/assert";
import { FaultStorage } from "../../src/storage/fault.ts";
import { MemoryStorage, PAGE_BYTES } from "../../src/storage/memory.ts";
import { OverlayStorage } from "../../src/storage/overlay.ts";
import { readBytes, writeBytes } from "./support.ts";

/** A base of one page full of `b`, whose reads wait until they are let go. */
async function slowBase(): Promise<{ base: FaultStorage; letGo: () => void }> {
  const memory = new MemoryStorage(PAGE_BYTES);
  await writeBytes(memory, 0, new Uint8Array(PAGE_BYTES).fill(0xbb));
  const { promise, resolve } = Promise.withResolvers<void>();
  return { base: new FaultStorage(memory, () => promise), letGo: resolve };
}

Deno.test("OverlayStorage loses neither of two writes to one page while its base is slow", async () => {
  const { base, letGo } = await slowBase();
  const overlay = new OverlayStorage(base);
  const first = writeBytes(overlay, 0, new Uint8Array(512).fill(1));
  const second = writeBytes(overlay, 512, new Uint8Array(512).fill(2));
  letGo();
  await Promise.all([first, second]);
  const bytes = await readBytes(overlay, 0, PAGE_BYTES);
  assertEquals([bytes[0], bytes[511], bytes[512], bytes[1023], bytes[1024]], [1, 1, 2, 2, 0xbb]);
});

Deno.test("OverlayStorage does not bring a page back from a slow base over a write of the whole page", async () => {
  const { base, letGo } = await slowBase();
  const overlay = new OverlayStorage(base);
  const part = writeBytes(overlay, 100, Uint8Array.of(7));
  await writeBytes(overlay, 0, new Uint8Array(PAGE_BYTES).fill(9));
  letGo();
  await part;
  const bytes = await readBytes(overlay, 0, PAGE_BYTES);
  assertEquals([bytes[0], bytes[99], bytes[100], bytes[101], bytes[PAGE_BYTES - 1]], [9, 9, 7, 9, 9]);
});

Deno.test("OverlayStorage never shows again what a truncation cut off its base", async () => {
  const base = new MemoryStorage(3 * PAGE_BYTES);
  await writeBytes(base, 0, new Uint8Array(3 * PAGE_BYTES).fill(0xbb));
  const overlay = new OverlayStorage(base);
  await overlay.truncate(PAGE_BYTES + 10);
  await overlay.truncate(3 * PAGE_BYTES);
  const bytes = await readBytes(overlay, 0, 3 * PAGE_BYTES);
  assertEquals(bytes.lastIndexOf(0xbb), PAGE_BYTES + 9);
  await writeBytes(overlay, PAGE_BYTES + 20, Uint8Array.of(1));
  assertEquals([...await readBytes(overlay, PAGE_BYTES + 8, 14)], [0xbb, 0xbb, ...new Array(10).fill(0), 1, 0]);
});

Deno.test("OverlayStorage passes no write, zero, discard, truncation or flush on to its base", async () => {
  const kinds: string[] = [];
  const base = new FaultStorage(new MemoryStorage(2 * PAGE_BYTES), ({ kind }) => void kinds.push(kind));
  const overlay = new OverlayStorage(base);
  await writeBytes(overlay, 10, Uint8Array.of(1));
  await overlay.zero(PAGE_BYTES - 5, 10);
  await overlay.discard(0, 2 * PAGE_BYTES);
  await overlay.truncate(100);
  await overlay.flush();
  // The two partly written pages are read once each.
  assertEquals(kinds, ["read", "read"]);
});

Deno.test("OverlayStorage has its base's name, and is as read-only as it is told", () => {
  const base = new MemoryStorage(512, { name: "disk.img", readOnly: true });
  assertEquals([new OverlayStorage(base).name, new OverlayStorage(base).readOnly], ["disk.img", false]);
  assertEquals(new OverlayStorage(base, true).readOnly, true);
});

Deno.test("OverlayStorage takes no memory for whole pages of zeros, and gives each its own when it is written", async () => {
  const MIB = 1 << 20;
  const base = new MemoryStorage(64 * MIB);
  for (const at of [0, 100, 40 * MIB]) await writeBytes(base, at, Uint8Array.of(0xbb));
  const overlay = new OverlayStorage(base);
  await overlay.zero(50, 64 * MIB - 50);
  assertEquals([...await readBytes(overlay, 0, 1)], [0xbb]);
  assertEquals([...await readBytes(overlay, 40 * MIB, 1)], [0]);
  await writeBytes(overlay, 40 * MIB, Uint8Array.of(7));
  assertEquals([...await readBytes(overlay, 40 * MIB, 2)], [7, 0]);
  assertEquals([...await readBytes(overlay, 40 * MIB + PAGE_BYTES, 2)], [0, 0]);
  assertEquals([...await readBytes(overlay, 100, 1)], [0]);
});
