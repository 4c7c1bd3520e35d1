/**
 * What the sectors of a test's disk hold: a tag of 31 bits fills a whole sector, so that each sector of each write can be
 * told from all others, and from a mix of two.
 */

export const SECTOR = 512;
const WORDS = SECTOR / 4;
/** Tags from here on look like noise; the others are one word repeated, which compresses. */
export const NOISY = 0x4000_0000;
/** Stands for a sector that nobody wrote like that. */
export const TORN = -1;

function word(tag: number, index: number): number {
  if (tag < NOISY || index === 0) return tag;
  const x = Math.imul(tag ^ Math.imul(index, 0x9e3779b1), 0x85ebca6b);
  return (x ^ x >>> 13) >>> 0;
}

/** Sectors with these tags, one after the other; 0 is zeros. */
export function sectorsOf(tags: ArrayLike<number>): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(tags.length * WORDS);
  for (let i = 0; i < tags.length; i++) {
    if (tags[i] === 0) continue;
    for (let k = 0; k < WORDS; k++) words[i * WORDS + k] = word(tags[i], k);
  }
  return new Uint8Array(words.buffer);
}

/** The tag of each sector, or TORN. */
export function tagsOf(bytes: Uint8Array<ArrayBuffer>): Int32Array {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 2);
  const tags = new Int32Array(bytes.byteLength / SECTOR);
  for (let i = 0; i < tags.length; i++) {
    const tag = words[i * WORDS];
    tags[i] = tag;
    for (let k = 1; k < WORDS; k++) {
      if (words[i * WORDS + k] !== word(tag, k)) {
        tags[i] = TORN;
        break;
      }
    }
  }
  return tags;
}
