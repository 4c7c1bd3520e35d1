/**
 * Sizes as QEMU's tools read and print them: `4k`, `1.5M`, `0x200`; `4 KiB`, `1.500 GiB`.
 *
 * @module
 */

/** Why a size could not be read. */
export type SizeError = "not-a-number" | "too-large";

const SUFFIX_POWER = "bkmgtpe";
const LARGEST = 2n ** 63n - 1n;

/**
 * Reads a size: decimal, decimal with a fraction, or 0x hexadecimal; a suffix b, k, M, G, T, P or E (powers of 1024,
 * either case) may follow, but not a hexadecimal number, where `b` and `e` are digits.
 *
 * @returns bytes, rounded to the nearest; or why not
 */
export function parseSize(text: string): number | SizeError {
  const match = /^[\t-\r ]*\+?(?:(0x[0-9a-f]+)|(\d+|(?=\.\d))(\.\d*)?([bkmgtpe])?)$/i.exec(text);
  if (match === null) return "not-a-number";
  const [, hex, whole, fraction, suffix] = match;
  const unit = 1024n ** BigInt(suffix === undefined ? 0 : SUFFIX_POWER.indexOf(suffix.toLowerCase()));
  // Half a byte has no meaning: a fraction needs a suffix above b.
  const part = Number(`0${fraction ?? ""}`);
  if (unit === 1n && /[1-9]/.test(fraction ?? "")) return "not-a-number";
  const value = BigInt(hex ?? whole) * unit + BigInt(Math.round(part * Number(unit)));
  if (value > LARGEST) return "too-large";
  // Between 2^53 and 2^63 a number can't be exact; no disk is that large, so the nearest one does as well.
  return Number(value);
}

const UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/** Prints a size as qemu-io does: the largest unit that leaves 1 or more, three decimals unless they are zeros. */
export function formatSize(bytes: number): string {
  let unit = -1;
  while (unit + 1 < UNITS.length && bytes >= 1024 ** (unit + 2)) unit++;
  const digits = unit < 0 ? bytes.toFixed(6) : threeDecimals(bytes / 1024 ** (unit + 1));
  // As there: the decimals go only when the first three are zeros.
  const point = digits.indexOf(".000");
  const number = point < 0 ? digits : digits.slice(0, point);
  return `${number} ${unit < 0 ? "bytes" : UNITS[unit]}`;
}

/** As printf does it: what is exactly in between goes to the even digit. That happens to odd sixteenths only. */
function threeDecimals(value: number): string {
  return (value * 16 % 2 === 1 ? 2 * Math.round(value * 500) / 1000 : value).toFixed(3);
}
