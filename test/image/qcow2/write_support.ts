/** Images made by `createQcow2` in memory, and what the tests of writing do with them. */

import { createQcow2, type Qcow2CreateOptions } from "../../../src/image/qcow2/create.ts";
import { Qcow2Image, type Qcow2Options } from "../../../src/image/qcow2/qcow2_image.ts";
import { SegmentList } from "../../../src/memory/segment_list.ts";
import { FaultStorage } from "../../../src/storage/fault.ts";
import { MemoryStorage } from "../../../src/storage/memory.ts";

/** A new image, with its bytes in reach. */
export interface Made {
  readonly memory: MemoryStorage;
  readonly storage: FaultStorage;
  open(options?: Qcow2Options): Promise<Qcow2Image>;
  /** A number of the file, as 64 bits. */
  u64(offset: number): bigint;
  setU64(offset: number, value: bigint): void;
}

/** Makes an image. Closing what `open` gives leaves the bytes as they are. */
export async function make(options: Qcow2CreateOptions): Promise<Made> {
  const memory = new MemoryStorage(0, { name: "disk.qcow2" });
  await createQcow2(memory, options);
  memory.close = () => {};
  const storage = new FaultStorage(memory);
  const bytesAt = (offset: number, bytes: Uint8Array<ArrayBuffer>) => {
    memory.read(offset, SegmentList.over(bytes));
    return new DataView(bytes.buffer);
  };
  return {
    memory,
    storage,
    open: (openOptions) => Qcow2Image.open(storage, openOptions),
    u64: (offset) => bytesAt(offset, new Uint8Array(8)).getBigUint64(0),
    setU64: (offset, value) => {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setBigUint64(0, value);
      memory.write(offset, SegmentList.over(bytes));
    },
  };
}

/** Bytes of one value. */
export function filled(value: number, lengthBytes: number): SegmentList {
  return SegmentList.over(new Uint8Array(lengthBytes).fill(value));
}

/** Where the first L2 table of a closed image is. */
export function l2OffsetOf({ u64 }: Made): number {
  return Number(u64(Number(u64(40))) & 0x00ff_ffff_ffff_fe00n);
}
