/**
 * Memory outside of JavaScript's heap: a part of a file mapped into the process, or fresh pages. It has an address that
 * the kernel can be given and an `ArrayBuffer` that JavaScript sees it through.
 *
 * @module
 */

import { HostError } from "./errno.ts";
import { fstat, lastErrno, libc, pageSizeBytes, sizeOf } from "./libc.ts";

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_ANONYMOUS = 0x20;
/** No page is set aside for what nobody writes to: guests may be larger than what is free now. */
const MAP_NORESERVE = 0x4000;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;
const HUGETLBFS_MAGIC = 0x958458f6n;

/** Where the bytes of the buffers that were asked for lie. */
const addresses = new WeakMap<ArrayBufferLike, number>();
let lastBuffer: ArrayBufferLike | undefined;
let lastAddress = 0;

/**
 * Where the bytes of a buffer lie. V8 never moves them; but whoever hands the address to the kernel keeps the buffer
 * alive until the kernel is done. (A small typed array lies in the heap, which does move: asking for its `buffer` takes
 * it out of there.)
 */
export function addressOf(buffer: ArrayBufferLike): number {
  // Guest memory is one or two buffers: nearly always the same one as before.
  if (buffer === lastBuffer) return lastAddress;
  let address = addresses.get(buffer);
  if (address === undefined) {
    const pointer = Deno.UnsafePointer.of(new Uint8Array(buffer as ArrayBuffer));
    address = Number(Deno.UnsafePointer.value(pointer));
    addresses.set(buffer, address);
  }
  lastBuffer = buffer;
  lastAddress = address;
  return address;
}

/** A pointer to an address. */
export function pointerTo(address: number): Deno.PointerValue {
  return Deno.UnsafePointer.create(BigInt(address));
}

/** Which part of a file to map. */
export interface MappingOptions {
  /** First byte, at any offset. Default: 0. */
  offset?: number;
  /** In bytes, at least 1. */
  lengthBytes: number;
  /** Map for reading only: writes from JavaScript would end the process. Default: false. */
  readOnly?: boolean;
}

/** A range of mapped memory. */
export class Mapping implements Disposable {
  /** Address of the first byte, in this process. */
  readonly address: number;
  /** The bytes; of length 0 when it was unmapped. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** What munmap(2) is told: pages around the bytes. */
  #pages: { pointer: Deno.PointerObject; lengthBytes: number } | null;

  private constructor(pointer: Deno.PointerObject, mappedBytes: number, skipBytes: number, lengthBytes: number) {
    this.#pages = { pointer, lengthBytes: mappedBytes };
    this.address = Number(Deno.UnsafePointer.value(pointer)) + skipBytes;
    const buffer = Deno.UnsafePointerView.getArrayBuffer(pointer, lengthBytes, skipBytes);
    addresses.set(buffer, this.address);
    this.bytes = new Uint8Array(buffer);
  }

  /** Fresh pages, all zeros, that start at a page. */
  static anonymous(lengthBytes: number): Mapping {
    checkRange(0, lengthBytes);
    const pages = roundUp(lengthBytes, pageSizeBytes());
    const pointer = map(pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return new Mapping(pointer, pages, 0, lengthBytes);
  }

  /**
   * Maps a part of a file, shared with all who map it. The descriptor may be closed afterwards.
   *
   * @throws RangeError when the range does not lie in the file: to touch it would end the process
   * @throws HostError
   */
  static ofFile(descriptor: number, options: MappingOptions): Mapping {
    const { offset = 0, lengthBytes, readOnly = false } = options;
    checkRange(offset, lengthBytes);
    const status = fstat(descriptor);
    const sizeBytes = status.kind === "block" ? sizeOf(descriptor) : status.sizeBytes;
    if (offset + lengthBytes > sizeBytes) {
      throw new RangeError(
        `cannot map ${lengthBytes} bytes at offset ${offset} of a file that has ${sizeBytes} bytes`,
      );
    }
    // Huge pages are mapped, and given back, as wholes.
    const unit = hugePageBytes(descriptor) ?? pageSizeBytes();
    const skip = offset % unit;
    const mapped = roundUp(skip + lengthBytes, unit);
    const protection = readOnly ? PROT_READ : PROT_READ | PROT_WRITE;
    const pointer = map(mapped, protection, MAP_SHARED | MAP_NORESERVE, descriptor, offset - skip);
    return new Mapping(pointer, mapped, skip, lengthBytes);
  }

  /** Maps what a kernel object offers at an offset that stands for a thing, not for a place in a file. */
  static ofDevice(descriptor: number, offset: number, lengthBytes: number): Mapping {
    checkRange(offset, lengthBytes);
    const pages = roundUp(lengthBytes, pageSizeBytes());
    return new Mapping(map(pages, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, offset), pages, 0, lengthBytes);
  }

  /** Whether it is still mapped. */
  get isMapped(): boolean {
    return this.#pages !== null;
  }

  /** Length in bytes. */
  get byteLength(): number {
    return this.bytes.byteLength;
  }

  /**
   * Takes the memory away. All views of it have length 0 from here on: who still holds one reads `undefined` instead of
   * ending the process. The kernel must not be using it.
   */
  unmap(): void {
    const pages = this.#pages;
    if (pages === null) return;
    this.#pages = null;
    if (lastBuffer === this.bytes.buffer) lastBuffer = undefined;
    this.bytes.buffer.transfer(0);
    if (libc().munmap(pages.pointer, BigInt(pages.lengthBytes)) !== 0) throw new HostError("munmap", lastErrno());
  }

  [Symbol.dispose](): void {
    this.unmap();
  }
}

function map(lengthBytes: number, protection: number, flags: number, fd: number, offset: number): Deno.PointerObject {
  const pointer = libc().mmap(null, BigInt(lengthBytes), protection, flags, fd, BigInt(offset));
  if (pointer === null || Deno.UnsafePointer.value(pointer) === MAP_FAILED) throw new HostError("mmap", lastErrno());
  return pointer;
}

function checkRange(offset: number, lengthBytes: number): void {
  const isRange = Number.isSafeInteger(offset) && offset >= 0 && Number.isSafeInteger(lengthBytes) && lengthBytes > 0;
  // Room for rounding up to a page of any size.
  if (isRange && offset + lengthBytes < 2 ** 52) return;
  throw new RangeError(`cannot map ${lengthBytes} bytes at offset ${offset}: not a range`);
}

function hugePageBytes(descriptor: number): number | null {
  const statfs = new BigInt64Array(32);
  if (libc().fstatfs(descriptor, new Uint8Array(statfs.buffer)) !== 0) return null;
  return statfs[0] === HUGETLBFS_MAGIC ? Number(statfs[1]) : null;
}

function roundUp(n: number, unit: number): number {
  return Math.ceil(n / unit) * unit;
}
