/** Headers that are written: what is read back, and what a crash in between leaves. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { createQcow2, type Qcow2CreateOptions } from "../../../src/image/qcow2/create.ts";
import { type Qcow2Header, readHeader } from "../../../src/image/qcow2/header.ts";
import { changeHeader, encodeHeader, newHeader, writeHeader } from "../../../src/image/qcow2/header_writer.ts";
import { EXTENSION, INCOMPATIBLE } from "../../../src/image/qcow2/qcow2_layout.ts";
import { BlockError } from "../../../src/storage/block_error.ts";
import { forSeedsAsync, type Random } from "../../random.ts";
import { ByteStorage } from "../../simulation/byte_storage.ts";
import { explore } from "../../simulation/crash_explorer.ts";
import { Recorder, RecordingStorage } from "../../simulation/recording_storage.ts";
import { storageOf } from "./build.ts";

/** Everything that a header means; not where in the cluster it says so, and not the names of features. */
function meaning(header: Qcow2Header) {
  const extensions = header.extensions.filter(({ type }) => type !== EXTENSION.featureNames);
  return { ...header, backingNameOffset: 0, extensions };
}

const name = (random: Random, most: number) => "n".repeat(random.between(1, most - 1)) + random.below(10);

/** A new image, as bytes. */
async function imageOf(options: Qcow2CreateOptions): Promise<Uint8Array<ArrayBuffer>> {
  const storage = new ByteStorage(new Uint8Array());
  await createQcow2(storage, options, new ByteStorage(new Uint8Array()));
  return storage.bytes.slice();
}

function pickOptions(random: Random): Qcow2CreateOptions {
  const version = random.oneIn(4) ? 2 : 3;
  const backing = random.oneIn(2);
  return {
    sizeBytes: 1 << 20,
    version,
    clusterBytes: random.pick([1024, 4096, 16384, 65536]),
    backingName: backing ? name(random, 300) : null,
    backingFormat: backing && random.oneIn(2) ? random.pick(["raw", "qcow2"]) : null,
    dataFileName: version === 3 && random.oneIn(4) ? name(random, 40) : null,
    compression: version === 3 && random.oneIn(2) ? "zstd" : "zlib",
  };
}

/** Some change that a command makes. */
function pickChange(random: Random, { version, backingName, clusterBits }: Qcow2Header): Partial<Qcow2Header> {
  const backing = { backingName: name(random, 300), backingFormat: random.pick(["raw", "qcow2", null]) };
  const changes: Partial<Qcow2Header>[] = [
    { l1Offset: 0x30000, l1Entries: 32 },
    { sizeBytes: 1 << 19 },
    { snapshotsOffset: 0x30000, snapshotCount: 3 },
    backing,
    backing,
    { backingName: null },
    ...backingName === null ? [] : [{ backingName: backingName.slice(0, -1) || "x" }],
    // The table of feature names comes with it.
    ...version === 2 ? [{ version: 3 } as const] : [],
  ];
  if (version === 3) {
    changes.push({ dirty: random.oneIn(2) }, { corrupt: true }, { lazyRefcounts: random.oneIn(2) });
    changes.push({ bitmaps: { count: 1, offset: 0, lengthBytes: 2 ** clusterBits } }, { bitmaps: null });
    changes.push({ dataFileName: name(random, 40), externalData: true });
  }
  return random.pick(changes);
}

Deno.test("writeHeader: what was changed is read back, and the rest is as it was", async () => {
  await forSeedsAsync(300, 1, async (random) => {
    const storage = new ByteStorage(await imageOf(pickOptions(random)));
    let header = await readHeader(storage);
    for (let i = 0; i < 6; i++) {
      const change = pickChange(random, header);
      const next = changeHeader(header, change);
      let written: Qcow2Header;
      try {
        written = await writeHeader(storage, header, next);
      } catch (error) {
        // A small cluster has not room for everything.
        assert(error instanceof BlockError && error.kind === "no-space" && header.clusterBits <= 10);
        assertEquals(await readHeader(storage), header);
        continue;
      }
      // Beyond the end of a test's file.
      const found = await readHeader(withTail(storage));
      assertEquals(meaning(found), meaning(next));
      assertEquals(found.backingNameOffset, written.backingNameOffset);
      for (const [field, value] of Object.entries(change)) {
        assertEquals(found[field as keyof Qcow2Header], value, field);
      }
      header = written;
    }
  });
});

/** The storage, long enough for everything that a test's header refers to. */
function withTail(storage: ByteStorage): ByteStorage {
  const bytes = new Uint8Array(320 << 10);
  bytes.set(storage.bytes.subarray(0, storage.sizeBytes));
  return new ByteStorage(bytes);
}

Deno.test("writeHeader: a crash at any write, torn at 512 bytes, leaves the old header or the new one", async () => {
  let judged = 0;
  await forSeedsAsync(150, 1, async (random) => {
    const bytes = await imageOf(pickOptions(random));
    const initial = new Uint8Array(320 << 10);
    initial.set(bytes);
    let header = await readHeader(new ByteStorage(initial.slice()));
    let before = initial.slice();
    for (let i = 0; i < 3; i++) {
      const next = changeHeader(header, pickChange(random, header));
      const recorder = new Recorder();
      const storage = new RecordingStorage(new ByteStorage(before.slice()), recorder);
      try {
        header = await writeHeader(storage, header, next);
      } catch (error) {
        assert(error instanceof BlockError && error.kind === "no-space");
        continue;
      }
      const [old, new_] = [await readHeader(new ByteStorage(before)), next].map((h) => text(meaning(h)));
      judged += await explore({
        initial: [before.slice(0, 2 ** header.clusterBits)],
        operations: recorder.operations,
        random,
        judge: async ({ files: [file] }) => {
          const whole = before.slice();
          whole.set(file);
          const found = text(meaning(await readHeader(new ByteStorage(whole))));
          assert(found === old || found === new_, found);
        },
      });
      before = storage.inner.bytes.slice();
    }
  });
  assert(judged > 500, `${judged}`);
});

function text(header: Qcow2Header): string {
  return JSON.stringify(
    header,
    (_, value) => typeof value === "bigint" ? `${value}n` : value instanceof Uint8Array ? [...value] : value,
  );
}

Deno.test("writeHeader keeps unknown extensions, unknown fields and unknown feature bits", async () => {
  const start = newHeader({ version: 3, clusterBits: 16, refcountBits: 16 });
  const unknown = { type: 0x12345678, data: Uint8Array.of(1, 2, 3, 4, 5) };
  const header = {
    ...changeHeader(start, { compatible: 1n << 40n, autoclear: 1n << 41n, extensions: [...start.extensions, unknown] }),
    headerBytes: 128,
    unknownFields: Uint8Array.from({ length: 16 }, (_, i) => i + 1),
    refcountTableClusters: 1,
    refcountTableOffset: 65536,
  };
  const bytes = new Uint8Array(4 << 16);
  bytes.set(encodeHeader(header));
  const storage = new ByteStorage(bytes);
  await writeHeader(storage, header, changeHeader(header, { backingName: "base", backingFormat: "raw", dirty: true }));
  const found = await readHeader(storageOf(storage.bytes));
  assertEquals(found.unknownFields, header.unknownFields);
  assertEquals([found.compatible, found.autoclear], [1n << 40n, 1n << 41n]);
  assertEquals(found.extensions.find(({ type }) => type === unknown.type), unknown);
  assertEquals([found.backingName, found.backingFormat, found.dirty], ["base", "raw", true]);
});

Deno.test("writeHeader leaves nothing of an old name in the file", async () => {
  const secret = "secret-".repeat(20);
  const storage = new ByteStorage(await imageOf({ sizeBytes: 1 << 20, backingName: secret, backingFormat: "raw" }));
  let header = await readHeader(storage);
  for (const backingName of ["b", null]) {
    header = await writeHeader(storage, header, changeHeader(header, { backingName }));
  }
  assert(!new TextDecoder("latin1").decode(storage.bytes).includes("secret"));
});

Deno.test("changeHeader keeps what is said twice the same in both places", () => {
  const start = newHeader({ version: 3, clusterBits: 16, refcountBits: 8 });
  const on = changeHeader(start, { dirty: true, compression: "zstd", extendedL2: true });
  assertEquals(on.incompatible, INCOMPATIBLE.dirty | INCOMPATIBLE.compressionType | INCOMPATIBLE.extendedL2);
  const off = changeHeader(on, { incompatible: INCOMPATIBLE.corrupt });
  assertEquals([off.dirty, off.corrupt, off.compression, off.extendedL2], [false, true, "zlib", false]);
  const stale = changeHeader(changeHeader(start, { bitmaps: { count: 1, offset: 65536, lengthBytes: 32 } }), {
    autoclear: 0n,
  });
  assertEquals(stale.bitmaps, null);
  assertEquals(stale.extensions.some(({ type }) => type === EXTENSION.bitmaps), true);
  const old = changeHeader(stale, { version: 2 });
  assertEquals([old.headerBytes, old.refcountBits, old.extensions.map(({ type }) => type)], [72, 16, []]);
});

Deno.test("a header that does not fit into the first cluster is refused, and nothing is written", async () => {
  const header = changeHeader(newHeader({ version: 3, clusterBits: 9, refcountBits: 16 }), {});
  const long = changeHeader(header, { backingName: "a".repeat(600) });
  assertThrows(() => encodeHeader(long), BlockError, "does not fit into the first cluster: No space left on device");
  const storage = new ByteStorage(encodeHeader(header));
  await assertRejects(() => writeHeader(storage, header, long), BlockError, "No space left on device");
  assertEquals(storage.bytes.subarray(0, 512), encodeHeader(header));
});
