/**
 * The guard on the first sector of an image that is raw only by a guess.
 *
 * Whoever opens such an image next guesses again. A guest that writes the header of a qcow2 image there, with a backing
 * file of its choice, would get to see any file of the host. QEMU refuses such writes, and so does this.
 *
 * @module
 */

import { SegmentList } from "../../memory/segment_list.ts";
import { BlockError } from "../../storage/block_error.ts";
import { after, type Completion } from "../../storage/storage.ts";
import { formatOf, PROBE_BYTES } from "../probe.ts";

type Mover = (offset: number, list: SegmentList) => Completion;

/** Lets writes to the first sector through one by one, each after a look at what the sector would hold. */
export class FirstSectorGuard {
  readonly #name: string;
  readonly #sizeBytes: () => number;
  readonly #read: Mover;
  readonly #write: Mover;
  /** Ends when the last write that was let through has: what the sector holds is known only then. */
  #last: Promise<void> | undefined;

  constructor(name: string, sizeBytes: () => number, read: Mover, write: Mover) {
    this.#name = name;
    this.#sizeBytes = sizeBytes;
    this.#read = read;
    this.#write = write;
  }

  /** Writes from `offset` on, which lies in the first sector. */
  write(offset: number, from: SegmentList): Completion {
    const last = this.#last;
    const completion = last === undefined ? this.#checked(offset, from) : last.then(() => this.#checked(offset, from));
    if (completion !== undefined) {
      const ended = completion.catch(() => {}).then(() => {
        if (this.#last === ended) this.#last = undefined;
      });
      this.#last = ended;
    }
    return completion;
  }

  #checked(offset: number, from: SegmentList): Completion {
    const sector = new Uint8Array(PROBE_BYTES);
    const end = Math.min(PROBE_BYTES, offset + from.byteLength);
    const old = SegmentList.over(sector.subarray(0, Math.min(PROBE_BYTES, this.#sizeBytes())));
    // The old bytes matter where the new ones leave some of them.
    const reading = offset === 0 && end === PROBE_BYTES ? undefined : this.#read(0, old);
    return after(reading, () => {
      const part = new SegmentList();
      part.appendRange(from, 0, end - offset);
      part.copyTo(sector.subarray(offset, end));
      const format = formatOf(sector);
      if (format !== "raw") throw this.#refusal(format, offset);
      // The bytes that were looked at: the guest may have changed its own meanwhile.
      const list = SegmentList.over(sector.subarray(offset, end));
      if (from.byteLength > end - offset) list.appendRange(from, end - offset, from.byteLength - (end - offset));
      return this.#write(offset, list);
    });
  }

  #refusal(format: string, offset: number): BlockError {
    return new BlockError({
      kind: "not-permitted",
      path: this.#name,
      operation: "write",
      offset,
      reason: `It would make the image look like ${format}: Operation not permitted`,
      hint: "the image's format was guessed; give -f raw, and the guest may write what it likes to the first sector",
    });
  }
}
