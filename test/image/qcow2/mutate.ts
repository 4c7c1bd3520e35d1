/** Changes to images that are likely to hurt. */

import type { Random } from "../../random.ts";

/** Numbers that end loops late, or overflow, or are nearly right. */
const NASTY = [
  0n,
  1n,
  511n,
  512n,
  0xffffn,
  1n << 31n,
  (1n << 32n) - 1n,
  1n << 53n,
  1n << 62n,
  1n << 63n,
  (1n << 64n) - 1n,
];

/** Changes a few bytes at `at`; `end` is where the part ends that bytes may be copied from. */
export function change(bytes: Uint8Array<ArrayBuffer>, at: number, end: number, random: Random): void {
  const view = new DataView(bytes.buffer);
  switch (random.below(5)) {
    case 0:
      bytes[at] ^= 1 << random.below(8);
      break;
    case 1:
      bytes[at] = random.below(256);
      break;
    case 2:
      view.setUint32(at & ~3, Number(random.pick(NASTY) & 0xffffffffn));
      break;
    case 3:
      view.setBigUint64(at & ~7, random.pick(NASTY) + BigInt(random.below(3)) & (1n << 64n) - 1n);
      break;
    default:
      bytes.copyWithin(at, random.below(end), random.below(end));
  }
}
