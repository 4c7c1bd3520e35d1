import { assertEquals, assertThrows } from "@std/assert";
import { BlkDevice } from "../../src/blk/device.ts";
import { BLK_DEFAULTS, type BlkOptions, blkOptions, offeredFeatures } from "../../src/blk/options.ts";
import { RawImage } from "../../src/image/raw/raw_image.ts";
import { MemoryStorage } from "../../src/storage/memory.ts";
import { featureNames } from "../../src/virtio/features.ts";
import { BLK_FEATURE_NAMES } from "../../src/blk/blk_layout.ts";

/** Each option: values that are refused, with the text of the refusal, and values at the edges that are not. */
const TABLE: readonly [keyof BlkOptions, bad: readonly unknown[], wanted: string, good: readonly unknown[]][] = [
  ["queues", [0, -1, 1.5, NaN, 1025], "a number from 1 to 1024", [1, 1024]],
  ["queueSize", [0, 3, 24, 65536, -4, 1.5, NaN], "a power of two from 1 to 32768", [1, 2, 32768]],
  ["blockSize", [0, 256, 513, 65536, NaN], "a power of two from 512 to 32768", [512, 4096, 32768]],
  [
    "physicalBlockSize",
    [256, 513, 2 ** 25, NaN],
    "a power of two, not below the logical block size",
    [512, 4096, 2 ** 24],
  ],
  ["minIoSize", [-1, 0.5, 65535 * 512 + 1, NaN], "0 to 65535 blocks", [0, 65535 * 512]],
  ["optIoSize", [-1, 0.5, 2 ** 31 + 1, NaN], "0 to 2 GiB", [0, 2 ** 31]],
  [
    "sizeMax",
    [1, 511, -1, 2 ** 32, 512.5, NaN],
    "512 or more, or 0 to offer no limit (a device that offers 0 makes Linux cut requests to pieces)",
    [0, 512, 1000, 2 ** 32 - 1],
  ],
  ["segMax", [-1, 1.5, 2 ** 32], "a number from 1", [0, 1, 2 ** 32 - 1]],
  ["maxRangeSectors", [0, -1, 2 ** 32, NaN], "a number from 1", [1, 2 ** 32 - 1]],
  ["maxRanges", [0, -1, 65537, NaN], "a number from 1 to 65536", [1, 65536]],
];

Deno.test("blkOptions refuses each option that makes no sense, with its name and what it may be", () => {
  for (const [name, bad, wanted, good] of TABLE) {
    for (const value of bad) {
      const error = assertThrows(() => blkOptions({ [name]: value }), RangeError);
      assertEquals(error.message, `device option ${name}: ${value} is not ${wanted}`);
    }
    for (const value of good) blkOptions({ [name]: value });
  }
});

Deno.test("blkOptions refuses a serial that GET_ID could not return", () => {
  for (const serial of ["x".repeat(21), "a\0b", "ü"]) {
    const error = assertThrows(() => blkOptions({ serial }), RangeError);
    assertEquals(error.message, `device option serial: ${JSON.stringify(serial)} is not up to 20 ASCII characters`);
  }
  for (const serial of ["", "x".repeat(20)]) assertEquals(blkOptions({ serial }).serial, serial);
});

Deno.test("blkOptions refuses lifetime values that the standard reserves (VIRTIO 1.4 §5.2.6.2)", () => {
  for (const bad of [{ preEolInfo: 4 }, { preEolInfo: -1 }, { typA: 12 }, { typB: 12 }, { typB: -1 }, { typA: 0.5 }]) {
    const lifetime = { preEolInfo: 1, typA: 1, typB: 1, ...bad };
    const error = assertThrows(() => blkOptions({ lifetime }), RangeError);
    const wanted = "preEolInfo 0 to 3, typA and typB 0 to 11";
    assertEquals(error.message, `device option lifetime: ${JSON.stringify(lifetime)} is not ${wanted}`);
  }
  for (let value = 0; value <= 11; value++) {
    blkOptions({ lifetime: { preEolInfo: value % 4, typA: value, typB: 11 - value } });
  }
});

Deno.test("CONFIG_WCE is never offered without FLUSH, and to ask for that is an error (VIRTIO 1.4 §5.2.5.2)", () => {
  const error = assertThrows(() => blkOptions({ configWce: true, flush: false }), RangeError);
  assertEquals(error.message, "device option configWce: true is not off when flush is off (VIRTIO 1.4 §5.2.5.2)");
  const rows: [Partial<BlkOptions>, flush: bigint, configWce: bigint][] = [
    [{}, 1n, 1n],
    [{ flush: false }, 0n, 0n],
    [{ configWce: false }, 1n, 0n],
    [{ flush: true, configWce: true }, 1n, 1n],
  ];
  for (const [given, flush, configWce] of rows) {
    const features = offeredFeatures(blkOptions(given));
    assertEquals([given, features >> 9n & 1n, features >> 11n & 1n], [given, flush, configWce]);
  }
});

Deno.test("FLUSH is offered unless it is switched off by name (VIRTIO 1.4 §5.2.5.2)", () => {
  assertEquals(offeredFeatures(blkOptions({})) >> 9n & 1n, 1n);
  assertEquals(offeredFeatures(blkOptions({ readOnly: true })) >> 9n & 1n, 1n);
  assertEquals(offeredFeatures(blkOptions({ flush: false })) >> 9n & 1n, 0n);
});

Deno.test("each feature is switched by its option and by no other (VIRTIO 1.4 §5.2.3)", () => {
  const names = (options: Partial<BlkOptions>) =>
    new Set(featureNames(offeredFeatures(blkOptions(options)), BLK_FEATURE_NAMES));
  const base: Partial<BlkOptions> = {
    flush: true,
    configWce: false,
    discard: false,
    writeZeroes: false,
    topology: false,
    segMaxOffered: false,
    blkSizeOffered: false,
    indirect: false,
    eventIdx: false,
    ringReset: false,
  };
  assertEquals(names(base), new Set(["FLUSH", "VERSION_1"]));
  const rows: [Partial<BlkOptions>, string][] = [
    [{ configWce: true }, "CONFIG_WCE"],
    [{ discard: true }, "DISCARD"],
    [{ writeZeroes: true }, "WRITE_ZEROES"],
    [{ secureErase: true }, "SECURE_ERASE"],
    [{ geometry: true }, "GEOMETRY"],
    [{ topology: true }, "TOPOLOGY"],
    [{ segMaxOffered: true }, "SEG_MAX"],
    [{ blkSizeOffered: true }, "BLK_SIZE"],
    [{ sizeMax: 4096 }, "SIZE_MAX"],
    [{ queues: 2 }, "MQ"],
    [{ readOnly: true }, "RO"],
    [{ lifetime: { preEolInfo: 0, typA: 0, typB: 0 } }, "LIFETIME"],
    [{ indirect: true }, "INDIRECT_DESC"],
    [{ eventIdx: true }, "EVENT_IDX"],
    [{ packed: true }, "RING_PACKED"],
    [{ inOrder: true }, "IN_ORDER"],
    [{ ringReset: true }, "RING_RESET"],
    [{ notificationData: true }, "NOTIFICATION_DATA"],
  ];
  for (const [option, name] of rows) {
    assertEquals(names({ ...base, ...option }), new Set(["FLUSH", "VERSION_1", name]));
  }
});

Deno.test("no feature is ever offered that the device would not support: not ZONED, not legacy, not PCI's (VIRTIO 1.4 §2.2.2)", () => {
  const everything: Partial<BlkOptions> = {
    queues: 4,
    sizeMax: 4096,
    lifetime: { preEolInfo: 0, typA: 0, typB: 0 },
    secureErase: true,
    geometry: true,
    packed: true,
    inOrder: true,
    notificationData: true,
  };
  const offered = featureNames(offeredFeatures(blkOptions(everything)), BLK_FEATURE_NAMES);
  assertEquals(offered, [
    ...["SIZE_MAX", "SEG_MAX", "GEOMETRY", "BLK_SIZE", "FLUSH", "TOPOLOGY", "CONFIG_WCE", "MQ", "DISCARD"],
    ...["WRITE_ZEROES", "LIFETIME", "SECURE_ERASE", "INDIRECT_DESC", "EVENT_IDX", "VERSION_1", "RING_PACKED"],
    ...["IN_ORDER", "NOTIFICATION_DATA", "RING_RESET"],
  ]);
});

Deno.test("an option left out has its default, and what depends on others follows them", () => {
  const options = blkOptions({ blockSize: 4096, queueSize: 16 });
  assertEquals(options, { ...BLK_DEFAULTS, blockSize: 4096, physicalBlockSize: 4096, queueSize: 16, segMax: 14 });
  assertEquals(blkOptions({ queueSize: 1 }).segMax, 1);
  assertEquals(blkOptions({ queueSize: 2 }).segMax, 1);
});

Deno.test("an image opened for reading makes a read-only device, whatever the options say", () => {
  const device = new BlkDevice(new RawImage(new MemoryStorage(512, { readOnly: true })), { readOnly: false });
  assertEquals(device.options.readOnly, true);
  assertEquals(device.features >> 5n & 1n, 1n);
});
