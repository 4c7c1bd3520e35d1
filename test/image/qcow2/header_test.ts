/** Headers that must be refused, and headers that must not. */

import { assertEquals, assertStringIncludes } from "@std/assert";
import { failureOf, readBytes } from "../../storage/support.ts";
import { build, type Built, openBuilt, type Plan } from "./build.ts";

const text = (value: string) => new TextEncoder().encode(value);

/** A row of a feature name table: an incompatible bit and its name. */
function featureRow(type: number, bit: number, name: string): Uint8Array {
  const row = new Uint8Array(48);
  row.set([type, bit]);
  row.set(text(name), 2);
  return row;
}

function rows(...parts: Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

/** What is wrong, what must be said of it, and how. */
const REFUSED: readonly (readonly [what: string, says: string, plan: Plan, change?: (image: Built) => void])[] = [
  ["no magic", "Image is not in qcow2 format", {}, ({ bytes }) => bytes[0] = 0],
  ["version 1", "Unsupported qcow2 version 1", { version: 1 }],
  ["version 4", "Unsupported qcow2 version 4", { version: 4 }],
  ["clusters of 256 bytes", "Unsupported cluster size: 2^8", {}, ({ view }) => view.setUint32(20, 8)],
  ["clusters of 4 MiB", "Unsupported cluster size: 2^22", {}, ({ view }) => view.setUint32(20, 22)],
  ["clusters of 2^4294967295", "Unsupported cluster size", {}, ({ view }) => view.setUint32(20, 0xffffffff)],
  ["a header of 96 bytes", "qcow2 header too short", {}, ({ view }) => view.setUint32(100, 96)],
  ["a header longer than a cluster", "qcow2 header exceeds", {}, ({ view }) => view.setUint32(100, 520)],
  ["a header of 2^32 - 8 bytes", "qcow2 header exceeds", {}, ({ view }) => view.setUint32(100, 0xfffffff8)],
  ["a header of 108 bytes", "not a multiple of 8", {}, ({ view }) => view.setUint32(100, 108)],
  ["a size of 2^53", "The size of the disk is too large", {}, ({ view }) => view.setBigUint64(24, 2n ** 53n)],
  ["a size of 2^64 - 1", "The size of the disk is too large", {}, ({ view }) => view.setBigUint64(24, 2n ** 64n - 1n)],
  ["more disk than the L1 table describes", "L1 table is too small", {}, ({ view }) => view.setBigUint64(24, 40000n)],
  ["an L1 table above 32 MiB", "Active L1 table too large", {}, ({ view }) => view.setUint32(36, (4 << 20) + 1)],
  ["an L1 table of 2^32 - 1 entries", "Active L1 table too large", {}, ({ view }) => view.setUint32(36, 0xffffffff)],
  ["an unaligned L1 table", "Active L1 table offset invalid", {}, ({ view }) => view.setBigUint64(40, 8n)],
  ["an L1 table behind the end", "L1 table lies outside", {}, ({ view }) => view.setBigUint64(40, 512n << 20n)],
  ["an L1 table that goes over the end", "L1 table lies outside", {}, ({ view }) => view.setUint32(36, 300)],
  ["no refcount table", "does not contain a reference count table", {}, ({ view }) => view.setUint32(56, 0)],
  ["a refcount table above 8 MiB", "Reference count table too large", {}, ({ view }) => view.setUint32(56, 16385)],
  ["an unaligned refcount table", "Reference count table offset", {}, ({ view }) => view.setBigUint64(48, 1n)],
  ["a refcount table behind the end", "Reference count table lies", {}, ({ view }) => view.setBigUint64(48, 1n << 40n)],
  ["refcounts of 128 bits", "Reference count entry width too large", {}, ({ view }) => view.setUint32(96, 7)],
  ["65537 snapshots", "Snapshot table too large", {}, ({ view }) => view.setUint32(60, 65537)],
  ["an unaligned snapshot table", "Snapshot table offset invalid", {}, ({ view }) => view.setBigUint64(64, 9n)],
  ["AES encryption", "encrypted (AES)", {}, ({ view }) => view.setUint32(32, 1)],
  ["LUKS encryption", "encrypted (LUKS)", {}, ({ view }) => view.setUint32(32, 2)],
  ["encryption unheard of", "encrypted (unknown method 9)", {}, ({ view }) => view.setUint32(32, 9)],
  ["an unknown incompatible bit", "feature(s): Unknown incompatible feature: 20", { incompatible: 32n }],
  ["an unknown incompatible bit with a name", "Unsupported qcow2 feature(s): time travel", {
    incompatible: 1n << 40n,
    extensions: [[0x6803f857, rows(featureRow(1, 40, "wrong"), featureRow(0, 40, "time\x1b travel"))]],
  }],
  ["two unknown bits of which one has a name", "feature(s): warp, Unknown incompatible feature: 20", {
    incompatible: 0x60n,
    extensions: [[0x6803f857, featureRow(0, 6, "warp")]],
  }],
  ["an unknown bit and broken extensions", "Unknown incompatible feature: 8000000000000000", {
    incompatible: 1n << 63n,
    extensions: [[0x6803f857, new Uint8Array(8)]],
  }, ({ view }) => view.setUint32(116, 0xffffffff)],
  ["a compression type without its bit", "feature bit must be set", { compressionType: 1 }],
  ["the compression bit without a type", "feature bit must not be set", { incompatible: 8n }],
  ["compression unheard of", "unknown compression type: 7", { incompatible: 8n, compressionType: 7 }],
  ["subclusters below 512 bytes", "Unsupported subcluster size: 256", { incompatible: 16n, clusterBits: 13 }],
  [
    "an extension that goes over the end",
    "Header extension too large",
    { extensions: [[99, new Uint8Array(8)]] },
    (i) => i.view.setUint32(116, 1 << 20),
  ],
  [
    "an extension of 2^32 - 1 bytes",
    "Header extension too large",
    { extensions: [[99, new Uint8Array(8)]] },
    (i) => i.view.setUint32(116, 0xffffffff),
  ],
  ["two backing formats", "0xe2792aca appears twice", {
    extensions: [[0xe2792aca, text("raw")], [0xe2792aca, text("qcow2")]],
  }],
  ["a backing format of 16 letters", "name is too long", { extensions: [[0xe2792aca, new Uint8Array(16).fill(65)]] }],
  [
    "a backing name of 1024 bytes",
    "Backing file name too long",
    { backing: "x", clusterBits: 12 },
    ({ view }) => view.setUint32(16, 1024),
  ],
  [
    "a backing name over the cluster's end",
    "Backing file name too long",
    { backing: "x" },
    ({ view }) => view.setUint32(16, 500),
  ],
  ["a backing name behind the cluster", "Invalid backing file offset", {}, ({ view }) => view.setBigUint64(8, 513n)],
  ["a backing name with a NUL", "contains a NUL", { backing: "a\0b" }],
  [
    "a backing name that is not UTF-8",
    "is not UTF-8",
    { backing: "x" },
    ({ bytes, view }) => bytes[Number(view.getBigUint64(8))] = 0xff,
  ],
  ["a data file without a name", "'data-file' is required for this image", { incompatible: 4n }],
  ["raw external data without external data", "data-file-raw requires a data file", { autoclear: 2n }],
  ["a backing file and raw external data", "cannot be used at the same time", {
    incompatible: 4n,
    autoclear: 2n,
    backing: "base",
  }],
  ["bitmaps with a short extension", "bitmaps_ext: Invalid", { autoclear: 1n, extensions: [[0x23852875, text("x")]] }],
  ["a bitmap directory behind the end", "invalid bitmap directory offset", {
    autoclear: 1n,
    extensions: [[0x23852875, Uint8Array.of(0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 1, 0, 0, 0)]],
  }],
];

for (const [what, says, plan, change] of REFUSED) {
  Deno.test(`Qcow2Image.open() refuses ${what}`, async () => {
    const image = build(plan);
    change?.(image);
    const { kind, message } = await failureOf(() => openBuilt(image));
    assertStringIncludes(message, says);
    assertStringIncludes("corrupt unsupported", kind);
  });
}

const READ: readonly (readonly [what: string, plan: Plan, change?: (image: Built) => void])[] = [
  ["version 2", { version: 2 }],
  ["the dirty bit", { incompatible: 1n }],
  ["the corrupt bit", { incompatible: 2n }],
  ["unknown compatible and autoclear bits", { autoclear: 1n << 50n }, ({ view }) => view.setBigUint64(80, ~0n)],
  ["an unknown extension", { extensions: [[0x12345678, text("hello")]] }],
  ["bitmaps whose bit was cleared", { extensions: [[0x23852875, text("whatever")]] }],
  ["a header of 104 bytes", {}, ({ view }) => view.setUint32(100, 104)],
  ["extensions that end with the cluster", { extensions: [[1, new Uint8Array(512 - 112 - 8)]] }],
];

for (const [what, plan, change] of READ) {
  Deno.test(`Qcow2Image.open() takes an image with ${what}`, async () => {
    const image = build({ ...plan, clusters: [{ data: 7 }, undefined] });
    change?.(image);
    const opened = await openBuilt(image);
    const expected = new Uint8Array(1024);
    expected.fill(7, 0, 512);
    assertEquals(await readBytes(opened, 0, 1024), expected);
    opened.close();
  });
}

Deno.test("a file that ends anywhere in an image's metadata is refused, not read beyond its end", async () => {
  const { bytes, l2Offset } = build({ clusters: [{ data: 1 }] });
  for (let end = 0; end < l2Offset - 504; end += 8) {
    const { kind } = await failureOf(() => openBuilt({ bytes: bytes.subarray(0, end) }));
    assertStringIncludes("corrupt unsupported", kind);
  }
});

Deno.test("a disk has whole sectors: a size that ends in one is rounded down, as in QEMU", async () => {
  const image = build({ clusters: [{ data: 1 }, { data: 2 }], sizeBytes: 1000 });
  const opened = await openBuilt(image);
  assertEquals(opened.sizeBytes, 512);
});
