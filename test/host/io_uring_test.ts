import { assert, assertEquals } from "@std/assert";
import { EventFd } from "../../src/host/event_fd.ts";
import { IoUring, type IoUringOptions } from "../../src/host/io_uring.ts";
import { IORING_CQE_F, IORING_FSYNC_DATASYNC, OP } from "../../src/host/io_uring_layout.ts";
import { close, FALLOC_FL, fstat, memfdCreate, POLL, pread, pwrite } from "../../src/host/libc.ts";
import { Mapping } from "../../src/host/mapping.ts";
import { requiresUring } from "../storage/uring_support.ts";
import { openDescriptors } from "./support.ts";

/** A test with a ring of its own, which leaves the same descriptors open as it found. */
function test(name: string, fn: (ring: IoUring) => void, options: IoUringOptions = {}): void {
  Deno.test({
    name,
    ...requiresUring(),
    fn() {
      const before = openDescriptors();
      const ring = new IoUring(options);
      try {
        fn(ring);
      } finally {
        ring.close();
      }
      assertEquals(openDescriptors(), before, "descriptors leaked");
    },
  });
}

type Result = [owner: number, token: number, result: number];

const SECOND = 1e9;

/** Waits for `count` results; fails when they do not come. */
function results(ring: IoUring, count: number): Result[] {
  const found: Result[] = [];
  const deadline = performance.now() + 5000;
  while (found.length < count) {
    ring.submitAndWait(1, SECOND);
    ring.reap((owner, token, result) => found.push([owner, token, result]));
    assert(performance.now() < deadline, `only ${found.length} of ${count} results came`);
  }
  assertEquals(found.length, count);
  return found;
}

function counting(sizeBytes: number): number {
  const descriptor = memfdCreate("vblk-test", sizeBytes);
  pwrite(descriptor, Uint8Array.from({ length: sizeBytes }, (_, i) => i), 0);
  return descriptor;
}

test("names come back as they were, all 64 bits of them", (ring) => {
  const names = [[0, 0], [0xffff_ffff, 0xffff_ffff], [0x8000_0000, 1], [1, 0x8000_0000], [7, 8]];
  for (const [owner, token] of names) assert(ring.prepareNop(owner, token));
  assertEquals(ring.prepared, names.length);
  assertEquals(results(ring, names.length), names.map(([owner, token]) => [owner, token, 0] as Result));
});

test("bytes are read and written where they should be, in one piece and in several", (ring) => {
  const file = counting(1000);
  using memory = Mapping.anonymous(8192);
  ring.prepareRead(0, 1, file, memory.address + 5, 10, 200);
  assertEquals(results(ring, 1), [[0, 1, 10]]);
  assertEquals([...memory.bytes.subarray(4, 16)], [0, 200, 201, 202, 203, 204, 205, 206, 207, 208, 209, 0]);

  const iovecs = new BigUint64Array(memory.bytes.buffer, 4096, 4);
  const address = BigInt(memory.address);
  iovecs.set([address + 100n, 3n, address + 200n, 2n]);
  ring.prepareReadv(0, 2, file, memory.address + 4096, 2, 250);
  assertEquals(results(ring, 1), [[0, 2, 5]]);
  assertEquals([...memory.bytes.subarray(100, 104), ...memory.bytes.subarray(200, 203)], [
    250,
    251,
    252,
    0,
    253,
    254,
    0,
  ]);

  ring.prepareWritev(0, 3, file, memory.address + 4096, 2, 5);
  ring.prepareWrite(0, 4, file, memory.address + 5, 1, 998);
  assertEquals(results(ring, 2).sort((a, b) => a[1] - b[1]), [[0, 3, 5], [0, 4, 1]]);
  const found = new Uint8Array(7);
  pread(file, found, 4);
  assertEquals([...found], [4, 250, 251, 252, 253, 254, 10]);
  pread(file, found, 997);
  assertEquals([...found.subarray(0, 3)], [229, 200, 231]);
  close(file);
});

test("offsets beyond 4 GiB arrive whole; what fails gives its number", (ring) => {
  const file = counting(100);
  using memory = Mapping.anonymous(64);
  memory.bytes[0] = 42;
  const far = 9 * 2 ** 32 + 77;
  ring.prepareWrite(0, 1, file, memory.address, 1, far);
  assertEquals(results(ring, 1), [[0, 1, 1]]);
  assertEquals(fstat(file).sizeBytes, far + 1);
  ring.prepare(0, 2, OP.FALLOCATE, file, 2 ** 33, FALLOC_FL.PUNCH_HOLE | FALLOC_FL.KEEP_SIZE, far - 5);
  assertEquals(results(ring, 1), [[0, 2, 0]]);
  const found = Uint8Array.of(1);
  pread(file, found, far);
  assertEquals(found[0], 0);
  ring.prepare(0, 3, OP.FSYNC, file, 0, 0, 0, IORING_FSYNC_DATASYNC);
  assertEquals(results(ring, 1), [[0, 3, 0]]);
  ring.prepareRead(0, 4, file, memory.address, 1, far + 1);
  ring.prepareRead(0, 5, 1000, memory.address, 1, 0);
  ring.prepareRead(0, 6, file, 0x1000, 64, 0);
  assertEquals(results(ring, 3).sort((a, b) => a[1] - b[1]), [[0, 4, 0], [0, 5, -9], [0, 6, -14]]);
  close(file);
});

test("a full ring takes nothing more until it is submitted, and loses nothing", (ring) => {
  assertEquals([ring.entries, ring.room], [4, 4]);
  for (let round = 0; round < 50; round++) {
    for (let i = 0; i < 4; i++) assert(ring.prepareNop(round, i));
    assertEquals([ring.room, ring.prepareNop(9, 9), ring.prepared], [0, false, 4]);
    assertEquals(ring.submit(), 4);
    assertEquals([ring.room, ring.prepared], [4, 0]);
    assertEquals(results(ring, 4).map(([owner, token]) => [owner, token]), [0, 1, 2, 3].map((i) => [round, i]));
  }
}, { entries: 4 });

test("more results than the ring holds are kept by the kernel until there is room", (ring) => {
  assertEquals(ring.completionEntries, 4);
  let submitted = 0;
  for (let round = 0; round < 16; round++) {
    for (let i = 0; i < 4; i++) ring.prepareNop(0, submitted++);
    while (ring.prepared > 0) ring.submit();
  }
  assertEquals(results(ring, submitted).map(([, token]) => token), Array.from({ length: submitted }, (_, i) => i));
}, { entries: 4, completionEntries: 4 });

test("the rings' indexes go round", (ring) => {
  // 70000 operations go 17500 times around a ring of 4; a 16-bit index would go over as well.
  let next = 0;
  for (let i = 0; i < 70_000; i += 4) {
    for (let k = 0; k < 4; k++) ring.prepareNop(0, i + k);
    ring.submitAndWait(4);
    ring.reap((_owner, token) => {
      if (token !== next) throw new Error(`${token} instead of ${next}`);
      next++;
    });
  }
  assertEquals(next, 70_000);
}, { entries: 4 });

test("a handler that throws, or that submits and reaps itself, sees each result once", (ring) => {
  for (let i = 0; i < 4; i++) ring.prepareNop(0, i);
  ring.submitAndWait(4);
  const seen: number[] = [];
  let message = "";
  try {
    ring.reap((_owner, token) => {
      seen.push(token);
      if (token === 1) throw new Error("enough");
    });
  } catch (error) {
    message = (error as Error).message;
  }
  assertEquals([message, seen], ["enough", [0, 1]]);
  ring.reap((_owner, token) => {
    seen.push(token);
    if (token !== 2) return;
    ring.prepareNop(0, 10);
    ring.submitAndWait(1);
    ring.reap((_owner, token) => seen.push(token));
  });
  assertEquals(seen.sort((a, b) => a - b), [0, 1, 2, 3, 10]);
});

test("waiting ends when the time is up, or with the first result", (ring) => {
  const start = performance.now();
  assertEquals(ring.submitAndWait(1, 20e6), 0);
  assert(performance.now() - start >= 19, "it did not wait");
  assertEquals(ring.hasNews, false);
});

test("an eventfd is polled, once or again and again", (ring) => {
  using event = EventFd.create();
  ring.preparePoll(0, 1, event.descriptor, POLL.IN, false);
  ring.submit();
  assertEquals(ring.hasNews, false);
  event.signal();
  assertEquals(results(ring, 1), [[0, 1, POLL.IN]]);
  event.drain();

  ring.preparePoll(0, 2, event.descriptor, POLL.IN, true);
  for (let i = 0; i < 3; i++) {
    ring.submit();
    event.signal();
    let more = 0;
    ring.submitAndWait(1, SECOND);
    assertEquals(ring.reap((_owner, _token, _result, flags) => more = flags), 1);
    assertEquals(more & IORING_CQE_F.MORE, IORING_CQE_F.MORE);
    event.drain();
  }
  ring.prepareCancel(0, 3, 0, 2);
  assertEquals(results(ring, 2).sort((a, b) => a[1] - b[1]), [[0, 2, -125], [0, 3, 1]]);
});

test("an eventfd is written to through the ring", (ring) => {
  using event = EventFd.create();
  using memory = Mapping.anonymous(8);
  memory.bytes[0] = 1;
  for (let i = 0; i < 3; i++) ring.prepareWrite(0, i, event.descriptor, memory.address, 8, 0);
  assertEquals(results(ring, 3).map(([, , result]) => result), [8, 8, 8]);
  assertEquals(event.drain(), 3n);
});

test("an operation that the kernel does not know fails alone", (ring) => {
  ring.prepare(0, 1, 250, -1, 0, 0, 0);
  ring.prepareNop(0, 2);
  assertEquals(results(ring, 2), [[0, 1, -22], [0, 2, 0]]);
  assertEquals(OP.NOP, 0);
});

test("two hundred rings leave nothing behind", () => {
  for (let i = 0; i < 200; i++) new IoUring({ entries: 8 }).close();
});
