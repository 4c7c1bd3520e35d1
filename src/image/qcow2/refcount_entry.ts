/**
 * Entries of refcount blocks, of 1 to 64 bits (QEMU's docs/interop/qcow2, "Refcount handling").
 *
 * @module
 */

/** Reads and writes entries of one width. */
export interface RefcountEntries {
  /** Largest value; at most 2^53 - 1, which no count of references in a file reaches. */
  readonly max: number;
  /** Entry `index` of a block. */
  get(block: DataView, index: number): number;
  /** Changes entry `index` of a block. */
  set(block: DataView, index: number, value: number): void;
}

/** The entries of blocks with `bits` (a power of two) bits each. */
export function refcountEntries(bits: number): RefcountEntries {
  switch (bits) {
    case 8:
      return {
        max: 0xff,
        get: (block, index) => block.getUint8(index),
        set: (block, index, value) => block.setUint8(index, value),
      };
    case 16:
      return {
        max: 0xffff,
        get: (block, index) => block.getUint16(index * 2),
        set: (block, index, value) => block.setUint16(index * 2, value),
      };
    case 32:
      return {
        max: 0xffff_ffff,
        get: (block, index) => block.getUint32(index * 4),
        set: (block, index, value) => block.setUint32(index * 4, value),
      };
    case 64:
      return {
        max: Number.MAX_SAFE_INTEGER,
        get: (block, index) => block.getUint32(index * 8) * 0x1_0000_0000 + block.getUint32(index * 8 + 4),
        set: (block, index, value) => {
          block.setUint32(index * 8, Math.floor(value / 0x1_0000_0000));
          block.setUint32(index * 8 + 4, value % 0x1_0000_0000);
        },
      };
    default:
      return partOfByte(bits);
  }
}

/** Several entries in a byte: the first of them in its lowest bits. */
function partOfByte(bits: number): RefcountEntries {
  const perByte = 8 / bits;
  const max = 2 ** bits - 1;
  return {
    max,
    get: (block, index) => (block.getUint8(Math.floor(index / perByte)) >>> (index % perByte * bits)) & max,
    set: (block, index, value) => {
      const at = Math.floor(index / perByte);
      const shift = index % perByte * bits;
      block.setUint8(at, (block.getUint8(at) & ~(max << shift)) | (value << shift));
    },
  };
}
