/**
 * The image of a thread: opened on its io_uring, and closed in the end.
 *
 * @module
 */

import type { BlkDevice } from "../blk/device.ts";
import { BlockError, type Image, SECTOR_BYTES } from "../image/image.ts";
import { openImage } from "../image/open.ts";
import { PolicyImage } from "../image/policy.ts";
import { probeAlignment } from "../storage/uring_direct.ts";
import type { UringEngine } from "../storage/uring_engine.ts";
import { UringFileStorage } from "../storage/uring_file.ts";
import { JournalFile } from "./journal_file.ts";
import type { CommonStart } from "./thread_start.ts";

/** An open image. */
export class ServedImage {
  readonly image: Image;
  readonly #files: readonly UringFileStorage[];
  readonly #journals: readonly JournalFile[];

  private constructor(image: Image, files: readonly UringFileStorage[], journals: readonly JournalFile[]) {
    this.image = image;
    this.#files = files;
    this.#journals = journals;
  }

  /**
   * Opens it.
   *
   * @param journalPath beside what a journal is kept in; `null` for none
   * @throws BlockError
   */
  static async open(start: CommonStart, engine: UringEngine, journalPath: string | null): Promise<ServedImage> {
    const { direct, ignoreFlush, ignoreDiscard } = start;
    const files: UringFileStorage[] = [];
    const journals: JournalFile[] = [];
    const journal = (identity: string) => {
      const file = new JournalFile(`${journalPath}.journal`, identity);
      journals.push(file);
      return file;
    };
    const image = await openImage(start.image, {
      ...start.open,
      openFile: (path, options) => {
        const file = UringFileStorage.open(path, { ...options, direct, engine });
        files.push(file);
        return file;
      },
      journal: journalPath === null ? undefined : journal,
    });
    const isPlain = !ignoreFlush && !ignoreDiscard;
    return new ServedImage(isPlain ? image : new PolicyImage(image, { ignoreFlush, ignoreDiscard }), files, journals);
  }

  /** Which file it is; that of several threads must be the same. */
  get identity(): string {
    return this.#files[0]?.identity ?? "";
  }

  /**
   * Refuses what several threads can't serve, each through a storage of its own, since one would have to know what the
   * other does: a file that grows when its last sector is written, and writes of less than the file can take.
   *
   * @throws BlockError
   */
  checkDivisible({ options }: BlkDevice): void {
    const [file] = this.#files;
    if (this.image.readOnly) return;
    const blockBytes = file.isDirect ? probeAlignment(file.descriptor).blockBytes : SECTOR_BYTES;
    if (file.sizeBytes % blockBytes !== 0) {
      throw this.#notDivisible(
        `It ends in the middle of a block of ${blockBytes} bytes, which several threads can't serve`,
        "make it longer with 'vblk resize', or leave out --iothreads",
      );
    }
    if (blockBytes > options.blockSize) {
      throw this.#notDivisible(
        `Past the page cache it is written in blocks of ${blockBytes} bytes, and the device's have ${options.blockSize}: ` +
          "of two threads that each write a part of one, the later would undo what the other did",
        `give --device logical_block_size=${blockBytes}, or leave out --iothreads`,
      );
    }
  }

  /**
   * Refuses another file than the one that the first thread has locked.
   *
   * @throws BlockError
   */
  checkIdentity(identity: string): void {
    if (this.identity === identity) return;
    throw this.#notDivisible("Another file has come in its place while it was opened", "start again");
  }

  /** Closes it, flushed unless others have it as well. */
  async close({ flush }: { flush: boolean }): Promise<void> {
    try {
      if (flush && !this.image.readOnly) await this.image.flush();
    } finally {
      await this.image.close();
    }
    for (const journal of this.#journals) journal.remove();
  }

  #notDivisible(reason: string, hint: string): BlockError {
    return new BlockError({ kind: "unsupported", path: this.image.name, operation: "open", reason, hint });
  }
}
