import { assert, assertEquals } from "@std/assert";
import { formatSize, parseSize } from "../../src/image/size.ts";
import { requires } from "../requires.ts";
import { run, tryRun } from "../storage/support.ts";

const KIB = 1024;

/** What the rules of QEMU 10.2 (util/cutils.c) make of it. */
const SIZES: readonly (readonly [text: string, expected: ReturnType<typeof parseSize>])[] = [
  ["0", 0],
  ["1", 1],
  ["08", 8],
  ["+5", 5],
  ["\t5", 5],
  ["4096", 4096],
  ["1b", 1],
  ["1B", 1],
  ["1k", KIB],
  ["1K", KIB],
  ["4k", 4 * KIB],
  ["1m", KIB ** 2],
  ["1M", KIB ** 2],
  ["1g", KIB ** 3],
  ["1G", KIB ** 3],
  ["1t", KIB ** 4],
  ["1T", KIB ** 4],
  ["1p", KIB ** 5],
  ["1P", KIB ** 5],
  ["1e", KIB ** 6],
  ["1E", KIB ** 6],
  ["7E", 7 * KIB ** 6],
  ["1.5k", 1536],
  ["1.5M", 1536 * KIB],
  ["1.1m", 1153434],
  ["0.5k", 512],
  ["0.1k", 102],
  ["1.k", KIB],
  ["1.", 1],
  ["1.0", 1],
  ["0.0000b", 0],
  ["1.e", KIB ** 6],
  ["1.5e", 1.5 * KIB ** 6],
  ["7.999e", 7.999 * KIB ** 6],
  // Rounded to the nearest, half a byte upwards.
  ["0.0009765625k", 1],
  ["0.00048828125k", 1],
  ["0.0004k", 0],
  ["0x10", 16],
  ["0X1F", 31],
  ["+0x10", 16],
  ["0x1b", 27],
  ["0x1e", 30],
  ["9223372036854775807", 2 ** 63],
  ["0x7fffffffffffffff", 2 ** 63],
  ["9007199254740991", Number.MAX_SAFE_INTEGER],
  ["9223372036854775808", "too-large"],
  ["0x8000000000000000", "too-large"],
  ["18446744073709551615", "too-large"],
  ["18446744073709551616", "too-large"],
  ["99999999999999999999", "too-large"],
  ["8e", "too-large"],
  ["15.9e", "too-large"],
  ["16e", "too-large"],
  ["1.5", "not-a-number"],
  ["1.5b", "not-a-number"],
  ["0x", "not-a-number"],
  ["00x10", "not-a-number"],
  ["0x1.8", "not-a-number"],
  ["0b1", "not-a-number"],
  ["1kk", "not-a-number"],
  ["1kb", "not-a-number"],
  ["1KiB", "not-a-number"],
  ["1s", "not-a-number"],
  ["1e3", "not-a-number"],
  ["1.5e5", "not-a-number"],
  ["1.5.5k", "not-a-number"],
  ["1_0", "not-a-number"],
  ["1,5k", "not-a-number"],
  ["k", "not-a-number"],
  [".", "not-a-number"],
  [".k", "not-a-number"],
  [".e", "not-a-number"],
  ["inf", "not-a-number"],
  ["nan", "not-a-number"],
  ["++5", "not-a-number"],
  ["+-5", "not-a-number"],
  ["\u0661", "not-a-number"],
  ["\u00a05", "not-a-number"],
];

/** Where the qemu-io of Debian 12 (7.2) is older than the rules, or cannot be asked (spaces; a minus is an option). */
const SIZES_UNLIKE_7_2: typeof SIZES = [
  // Accepted since 8.1.
  [".5k", 512],
  ["+.5k", 512],
  [".0", 0],
  // Hexadecimal takes no suffix any more.
  ["0x1k", "not-a-number"],
  ["0x1M", "not-a-number"],
  // The fraction rounds up to the next whole unit.
  ["0.99999999999999999999k", KIB],
  // However small, a fraction needs a unit.
  [`1.${"0".repeat(400)}1`, "not-a-number"],
  [`1.${"0".repeat(400)}1k`, KIB],
  ["", "not-a-number"],
  [" ", "not-a-number"],
  [" 5", 5],
  ["5 ", "not-a-number"],
  ["1 k", "not-a-number"],
  ["+ 5", "not-a-number"],
  ["-5", "not-a-number"],
  ["-0", "not-a-number"],
  ["-.5k", "not-a-number"],
];

/** Short enough for a name. */
function shown(text: string): string {
  return text.length > 30
    ? `${JSON.stringify(text.slice(0, 10))}... (${text.length} characters)`
    : JSON.stringify(text);
}

for (const [text, expected] of [...SIZES, ...SIZES_UNLIKE_7_2]) {
  Deno.test(`parseSize() of ${shown(text)} is ${expected}`, () => assertEquals(parseSize(text), expected));
}

/** The largest disk that QEMU can have: 2^63 - 1 GiB. */
const HUGE_DISK = "driver=null-co,read-zeroes=on,size=9223372035781033984";

/** What qemu-io understands by an offset. */
function qemuParseSize(text: string): number | string {
  const output = tryRun("qemu-io", "--image-opts", HUGE_DISK, "-c", `read ${text} 0`).text;
  if (output.includes("Parsing error: non-numeric argument")) return "not-a-number";
  if (output.includes("Parsing error: argument too large")) return "too-large";
  // Behind the end of the disk the offset is not printed, but it was understood.
  if (output.includes("read failed")) return "beyond 2^63 - 2^30";
  const offset = /at offset (\d+)/.exec(output)?.[1];
  return offset === undefined ? output : Number(offset);
}

Deno.test({
  name: "parseSize() reads sizes as qemu-io does",
  ...requires("qemu-io"),
  fn() {
    for (const [text, expected] of SIZES) {
      const beyond = typeof expected === "number" && expected >= 2 ** 63 - 2 ** 30;
      assertEquals(qemuParseSize(text), beyond ? "beyond 2^63 - 2^30" : expected, text);
    }
  },
});

Deno.test({
  name: "the qemu-io that sizes are compared with understands a number, and refuses what is none (canary)",
  ...requires("qemu-io"),
  fn: () => assertEquals(["3k", "3x"].map(qemuParseSize), [3072, "not-a-number"]),
});

/** Multiples of 512, which qemu-io can show as the length of a disk. */
const LENGTHS: readonly (readonly [bytes: number, text: string])[] = [
  [1024, "1 KiB"],
  [1536, "1.500 KiB"],
  [3072, "3 KiB"],
  // Exactly in between: to the even digit.
  [17 * KIB ** 2 / 16, "1.062 MiB"],
  [19 * KIB ** 2 / 16, "1.188 MiB"],
  [1023 * KIB, "1023 KiB"],
  // Rounded, but not to the next unit; a decimal that rounds away goes.
  [KIB ** 2 - 512, "1023.500 KiB"],
  [KIB ** 2, "1 MiB"],
  [KIB ** 2 + 512, "1 MiB"],
  [KIB ** 3 - 512, "1024 MiB"],
  [1.5 * KIB ** 3, "1.500 GiB"],
  [KIB ** 4, "1 TiB"],
  [1001 * KIB ** 4 + 512, "1001 TiB"],
  [KIB ** 5, "1 PiB"],
  [KIB ** 6, "1 EiB"],
  [2 ** 63 - 2 ** 30, "8 EiB"],
];

/** Below 1 KiB, which it shows as the length of a read. */
const SHORT_LENGTHS: typeof LENGTHS = [[0, "0 bytes"], [1, "1 bytes"], [512, "512 bytes"], [1023, "1023 bytes"]];

for (const [bytes, text] of [...SHORT_LENGTHS, ...LENGTHS]) {
  Deno.test(`formatSize() of ${bytes} is ${text}`, () => assertEquals(formatSize(bytes), text));
}

Deno.test({
  name: "formatSize() prints sizes as qemu-io does",
  ...requires("qemu-io"),
  fn() {
    for (const [bytes] of LENGTHS) {
      const disk = `driver=null-co,size=${BigInt(bytes)}`;
      assertEquals(formatSize(bytes), run("qemu-io", "--image-opts", disk, "-c", "length").trim());
    }
    for (const [bytes] of SHORT_LENGTHS) {
      const output = run("qemu-io", "--image-opts", "driver=null-co,read-zeroes=on,size=1M", "-c", `read 0 ${bytes}`);
      assert(output.includes(`\n${formatSize(bytes)}, 1 ops;`), output);
    }
  },
});
