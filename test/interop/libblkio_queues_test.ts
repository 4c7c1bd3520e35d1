/**
 * Several queues at once: QEMU's libblkio driver uses one, so this drives libblkio itself, through FFI.
 */

import { assert, assertEquals } from "@std/assert";
import { join } from "node:path";
import { Random } from "../random.ts";
import { Folder, sameBytes } from "../storage/support.ts";
import { requiresTrixie, trixieRoot } from "../trixie.ts";
import { ServedDisk } from "./guest/served_disk.ts";
import { control } from "../serve/rig.ts";
import { create, runTrixie } from "./libblkio.ts";

const QUEUES = 4;
const BLOCK_BYTES = 4096;
const BLOCKS = 256;
const ROUNDS = 40;
/** Requests of a queue that are under way together. */
const DEPTH = 16;
/** Each round writes and reads. */
const ALL = 2 * ROUNDS * QUEUES * DEPTH;

const SYMBOLS = {
  blkio_create: { parameters: ["buffer", "buffer"], result: "i32" },
  blkio_destroy: { parameters: ["buffer"], result: "void" },
  blkio_set_str: { parameters: ["pointer", "buffer", "buffer"], result: "i32" },
  blkio_set_int: { parameters: ["pointer", "buffer", "i32"], result: "i32" },
  blkio_connect: { parameters: ["pointer"], result: "i32" },
  blkio_start: { parameters: ["pointer"], result: "i32" },
  blkio_alloc_mem_region: { parameters: ["pointer", "buffer", "usize"], result: "i32" },
  blkio_map_mem_region: { parameters: ["pointer", "buffer"], result: "i32" },
  blkio_get_queue: { parameters: ["pointer", "i32"], result: "pointer" },
  blkio_get_error_msg: { parameters: [], result: "pointer" },
  blkioq_read: { parameters: ["pointer", "u64", "pointer", "usize", "usize", "u32"], result: "void" },
  blkioq_write: { parameters: ["pointer", "u64", "pointer", "usize", "usize", "u32"], result: "void" },
  blkioq_do_io: { parameters: ["pointer", "buffer", "i32", "i32", "buffer"], result: "i32" },
} as const;

/** struct blkio_completion: user_data, error_msg, ret, reserved. */
const COMPLETION_BYTES = 32;
/** struct blkio_mem_region: addr, iova, len, fd_offset, fd, flags. */
const REGION_BYTES = 40;

type Blkio = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

function text(value: string): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`${value}\0`);
}

function check(blkio: Blkio, what: string, result: number): number {
  if (result >= 0) return result;
  const why = blkio.blkio_get_error_msg();
  throw new Error(`${what}: ${why === null ? result : new Deno.UnsafePointerView(why).getCString()}`);
}

function pointerIn(bytes: Uint8Array<ArrayBuffer>): Deno.PointerObject {
  const pointer = Deno.UnsafePointer.create(new BigUint64Array(bytes.buffer)[0]);
  assert(pointer !== null);
  return pointer;
}

/** A front-end with several queues and one piece of memory. */
class Client implements Disposable {
  readonly #library = Deno.dlopen(join(trixieRoot(), "usr/lib/x86_64-linux-gnu/libblkio.so.1"), SYMBOLS);
  readonly #handle = new Uint8Array(8);
  readonly #region = new Uint8Array(REGION_BYTES);
  readonly #queues: Deno.PointerObject[] = [];
  readonly memory: Uint8Array;

  constructor(socket: string, queues: number, memoryBytes: number) {
    const blkio = this.#library.symbols;
    check(blkio, "create", blkio.blkio_create(text("virtio-blk-vhost-user"), this.#handle));
    const handle = pointerIn(this.#handle);
    check(blkio, "path", blkio.blkio_set_str(handle, text("path"), text(socket)));
    check(blkio, "connect", blkio.blkio_connect(handle));
    check(blkio, "num-queues", blkio.blkio_set_int(handle, text("num-queues"), queues));
    check(blkio, "start", blkio.blkio_start(handle));
    check(blkio, "memory", blkio.blkio_alloc_mem_region(handle, this.#region, BigInt(memoryBytes)));
    check(blkio, "map", blkio.blkio_map_mem_region(handle, this.#region));
    for (let i = 0; i < queues; i++) this.#queues.push(blkio.blkio_get_queue(handle, i)!);
    const view = Deno.UnsafePointerView.getArrayBuffer(pointerIn(this.#region), memoryBytes);
    this.memory = new Uint8Array(view);
  }

  /** Asks one queue to move a block between the disk and the memory. */
  submit(queue: number, kind: "read" | "write", block: number, at: number): void {
    const base = new BigUint64Array(this.#region.buffer)[0];
    const address = Deno.UnsafePointer.create(base + BigInt(at));
    const move = this.#library.symbols[kind === "read" ? "blkioq_read" : "blkioq_write"];
    move(this.#queues[queue], BigInt(block * BLOCK_BYTES), address, BigInt(BLOCK_BYTES), BigInt(block), 0);
  }

  /** Waits until `count` requests of a queue have ended well. */
  finish(queue: number, count: number): void {
    const blkio = this.#library.symbols;
    const completions = new Uint8Array(COMPLETION_BYTES * count);
    const patience = new BigInt64Array([10n, 0n]);
    const ended = blkio.blkioq_do_io(this.#queues[queue], completions, count, count, new Uint8Array(patience.buffer));
    assertEquals(check(blkio, `queue ${queue}`, ended), count);
    const results = new DataView(completions.buffer);
    for (let i = 0; i < count; i++) assertEquals(results.getInt32(i * COMPLETION_BYTES + 16, true), 0);
  }

  [Symbol.dispose](): void {
    this.#library.symbols.blkio_destroy(this.#handle);
    this.#library.close();
  }
}

for (const [format, threads] of [["raw", 1], ["raw", 2], ["qcow2", 1]] as const) {
  Deno.test({
    name:
      `${QUEUES} queues of libblkio write and read one served disk at the same time: ${format}, I/O threads: ${threads}`,
    ...requiresTrixie(),
    async fn() {
      using folder = new Folder();
      const random = new Random(4400);
      const path = folder.file("disk");
      await create(path, format, BLOCKS * BLOCK_BYTES);
      await using disk = await ServedDisk.start(
        path,
        folder.file("sock"),
        ...["-f", format, "--device", `num-queues=${QUEUES}`, "--iothreads", `${threads}`],
        ...["--control", folder.file("control")],
      );
      const model = new Uint8Array(BLOCKS * BLOCK_BYTES);
      {
        using client = new Client(disk.socket, QUEUES, 2 * QUEUES * DEPTH * BLOCK_BYTES);
        for (let round = 0; round < ROUNDS; round++) {
          // All queues at once, each on blocks of its own: what a range holds must not depend on who is first.
          const blocks = random.shuffle(Array.from({ length: BLOCKS }, (_, block) => block));
          const jobs = blocks.slice(0, QUEUES * DEPTH).map((block, i) => ({
            block,
            at: i * BLOCK_BYTES,
            queue: i % QUEUES,
          }));
          for (const { block, at, queue } of jobs) {
            const data = random.bytes(BLOCK_BYTES);
            client.memory.set(data, at);
            model.set(data, block * BLOCK_BYTES);
            client.submit(queue, "write", block, at);
          }
          for (let queue = 0; queue < QUEUES; queue++) client.finish(queue, DEPTH);
          const half = QUEUES * DEPTH * BLOCK_BYTES;
          // By another queue than the one that wrote.
          for (const { block, at, queue } of jobs) client.submit((queue + 1) % QUEUES, "read", block, half + at);
          for (let queue = 0; queue < QUEUES; queue++) client.finish(queue, DEPTH);
          for (const { block, at } of jobs) {
            const found = client.memory.subarray(half + at, half + at + BLOCK_BYTES);
            assert(found.every((byte, i) => byte === model[block * BLOCK_BYTES + i]), `block ${block}, round ${round}`);
          }
        }
      }
      const { threads: each = [] } = control(folder.file("control"), { command: "statistics" });
      assertEquals(each.map(({ buffers }) => buffers), threads === 1 ? [] : [ALL / 2, ALL / 2]);
      assertEquals(await disk.stop(), 0, disk.errors);
      assertEquals(disk.errors, "");
      await runTrixie("qemu-img", "convert", "-f", format, "-O", "raw", path, `${path}.raw`);
      assert(sameBytes(Deno.readFileSync(`${path}.raw`), model));
    },
  });
}
