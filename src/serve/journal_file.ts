/**
 * A journal in a file beside the socket: it outlives a process that is killed, and is not believed once the machine
 * was started anew, since the cache that the image's data were in is gone then.
 *
 * @module
 */

import * as host from "../host/libc.ts";
import { BlockError, type BlockOperation } from "../storage/block_error.ts";
import type { JournalStore } from "../image/qcow2/journal.ts";

/** Length of what the file begins with: whose journal it is. */
const HEADER_BYTES = 256;
/** Fail for a symbolic link: it would be somebody else's file. */
const NOFOLLOW = 0x20000;
/** More than this was never written: a flush comes before (journal.ts). */
const MOST_BYTES = 64 << 20;

/** A journal of one image. */
export class JournalFile implements JournalStore {
  readonly #path: string;
  readonly #descriptor: number;
  readonly #header: Uint8Array<ArrayBuffer>;
  #endBytes = 0;

  /**
   * Opens the file, or makes it.
   *
   * @param image identity of the image's file
   */
  constructor(path: string, image: string) {
    this.#path = path;
    this.#descriptor = host.open(path, host.O.RDWR | host.O.CREAT | NOFOLLOW, 0o600);
    this.#header = new Uint8Array(HEADER_BYTES);
    new TextEncoder().encodeInto(`vblk journal 1\nboot ${bootId()}\nimage ${image}\n`, this.#header);
    this.#endBytes = host.sizeOf(this.#descriptor);
  }

  read(): Uint8Array {
    const bytes = new Uint8Array(Math.min(this.#endBytes, MOST_BYTES));
    const count = bytes.byteLength === 0 ? 0 : host.pread(this.#descriptor, bytes, 0);
    const isOurs = count > HEADER_BYTES && this.#header.every((byte, i) => byte === bytes[i]);
    return isOurs ? bytes.slice(HEADER_BYTES, count) : new Uint8Array(0);
  }

  append(bytes: Uint8Array): void {
    this.#attempt("write", () => this.#write(new Uint8Array(bytes)));
  }

  clear(): void {
    this.#attempt("flush", () => {
      host.ftruncate(this.#descriptor, 0);
      this.#endBytes = 0;
      this.#write(this.#header);
    });
  }

  /** The image was closed as it should be: nobody will want the journal. */
  remove(): void {
    host.close(this.#descriptor);
    try {
      host.unlink(this.#path);
    } catch {
      // It is gone already.
    }
  }

  #attempt(operation: BlockOperation, action: () => void): void {
    try {
      action();
    } catch (error) {
      throw BlockError.from(error, { path: this.#path, operation });
    }
  }

  #write(bytes: Uint8Array<ArrayBuffer>): void {
    for (let done = 0; done < bytes.byteLength;) {
      done += host.pwrite(this.#descriptor, bytes.subarray(done), this.#endBytes + done);
    }
    this.#endBytes += bytes.byteLength;
  }
}

function bootId(): string {
  const descriptor = host.open("/proc/sys/kernel/random/boot_id", host.O.RDONLY);
  try {
    const bytes = new Uint8Array(36);
    host.pread(descriptor, bytes, 0);
    return new TextDecoder().decode(bytes);
  } finally {
    host.close(descriptor);
  }
}
